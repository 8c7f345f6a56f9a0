"""Full fine-tuning (`lora: null`): all weights of the base are trained, and are the result.

Weights, gradients and the optimizer's moments are float32, products in the dtype that an adapter's training would have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from thinktune.config import Config
from thinktune.errors import ModelError, RunFolderError
from thinktune.files import replacing, telling_full_disk
from thinktune.models import Loaded, Resolved, resolve, write_settings
from thinktune.models.device import choose_dtype
from thinktune.models.fp8_linear import has_quantised_weights
from thinktune.models.loading import load_weights
from thinktune.models.quantised import dequantised_method
from thinktune.models.saving import save_model
from thinktune.models.stored_weights import cast_weights, plain_dtype, require_saved, sums_of_bits
from thinktune.run_folder import RunFolder
from thinktune.training.fused.package_kernels import kernels_that_train

WEIGHTS = "model.safetensors"
"""Of a checkpoint: every trained weight once, by the name of its parameter."""


@contextmanager
def whole_model_to_train(loaded: Loaded, config: Config) -> Iterator[Any]:
    """Let all weights of a model be trained within the block; they are others afterwards.

    Raises:
        ModelError: they are quantised on disk.
    """
    model, base = loaded.model, resolve(config.model, config.load)
    if base.gguf or plain_dtype(base.folder) is None or dequantised_method(base.folder) or has_quantised_weights(model):
        raise ModelError(
            f"lora: null trains original weights, and those of {config.model} are quantised",
            hint="name the model that it was made of, or train an adapter",
        )
    model.requires_grad_(True)
    try:
        with kernels_that_train(model):
            yield model
    finally:
        model.requires_grad_(False)
        model.zero_grad()
        if model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
        model.eval()


def products_dtype(config: Config, loaded: Loaded) -> torch.dtype:
    """Return the dtype in which products are computed."""
    return loaded.dtype if config.lora is not None else choose_dtype(loaded.device, config.load.dtype)


def write_weights(model: Any, folder: Path) -> None:
    """Write all weights into a checkpoint, bit by bit."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().contiguous() for name, weight in model.named_parameters()}, folder / WEIGHTS)


@torch.no_grad()
def read_weights(model: Any, folder: Path) -> None:
    """Take over all weights of a checkpoint.

    Raises:
        RunFolderError: they are of another model.
    """
    saved, own = load_file(folder / WEIGHTS), dict(model.named_parameters())
    strange = sorted(
        name for name in saved.keys() | own.keys()
        if name not in saved or name not in own or saved[name].shape != own[name].shape
    )  # fmt: skip
    if strange:
        raise RunFolderError(
            f"{folder} cannot be resumed: {len(strange)} weights do not fit the model, among them {strange[0]}",
            hint="start anew with --overwrite",
        )
    for name, weight in own.items():
        weight.copy_(saved[name])


def save_whole_model(loaded: Loaded, config: Config, run: RunFolder, settings: dict[str, Any]) -> None:
    """Write the trained model into the run folder, rounded once to the dtype of its base (with `load.dtype: float32`,
    not at all), and make sure that it reads back bit by bit. The model has the rounded weights afterwards.

    Raises:
        ModelError: it does not.
    """
    model, base = loaded.model, resolve(config.model, config.load)
    own = plain_dtype(base.folder) or torch.float32
    cast_weights(model, torch.float32 if config.load.dtype == "float32" else own)
    with telling_full_disk(run.merged), replacing(run.merged) as folder:
        save_model(model, folder, base.folder, loaded.chat.stop_ids)
        loaded.tokenizer.save_pretrained(folder)
        place, cpu = Resolved(str(run.merged), "folder", folder, ""), torch.device("cpu")
        saved = load_weights(place, config.load, cpu, model.dtype, "none")
        require_saved(sums_of_bits(model), sums_of_bits(saved))
        write_settings(folder, {**settings, "whole": True})
