"""`thinktune plan CONFIG`: a plan before anything is loaded.

Only the model's configuration is read, and the lengths of the data's examples where that is quick.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from thinktune.config import Config
from thinktune.errors import ThinktuneError, UsageError
from thinktune.imports import importing
from thinktune.planner.hardware import GIB, find_gpu, hardware_here
from thinktune.planner.known_models import known_config
from thinktune.planner.model_shape import ModelShape, shape_of
from thinktune.planner.pack_lengths import PackLengths, in_rollout_packs, longest_packs, read_packs, rollout_packs
from thinktune.planner.plan import Plan, fit, plan_as_configured

logger = logging.getLogger(__name__)


def plan_config(config: Config, *, gpu: str | None = None, fitted: bool = False, gpus: int = 1) -> Plan:
    """Plan a training from the model's configuration, without its weights, as `thinktune plan` does.

    Args:
        gpu: a name or a size to plan for; None: this machine's device.
        fitted: look for better settings (`--fit`).
        gpus: of this kind, over which each optimizer step is spread.

    Raises:
        ThinktuneError: the model's configuration cannot be had, or `gpu` is not known.
    """
    from thinktune.models.device import choose_device, choose_dtype

    if gpu is None:
        device = choose_device(config.load.device)
        dtype = choose_dtype(device, config.load.dtype)
        hardware, width = hardware_here(device, dtype, config.train.memory), dtype.itemsize
    else:
        hardware, width = find_gpu(gpu), 4 if config.load.dtype == "float32" else 2
        if config.train.memory is not None:
            hardware = replace(hardware, memory=min(hardware.memory, int(config.train.memory * GIB)))
    shape, packs = _read_model_and_data(config)
    if config.lora is None and gpus > 1:
        raise UsageError("lora: null runs on one GPU", hint="no --gpus")
    if config.method == "grpo":
        if fitted:
            raise UsageError(
                "with method: grpo, batches follow from the memory: there is nothing to fit", hint="no --fit"
            )
        packs, count = rollout_packs(config)
        config = in_rollout_packs(config, count)
    plan = (fit if fitted else plan_as_configured)(config, shape, packs, hardware, width=width, gpus=gpus)
    return plan if hardware.rated else replace(plan, tokens_per_second=None, hours=None)


def _read_model_and_data(config: Config) -> tuple[ModelShape, PackLengths]:
    """Return the shape of the model and the lengths of the data.

    Of a common model whose files cannot be had: its published shape, and the longest packs that the config allows.
    """
    known = known_config(config.model)
    if known is None:
        return read_shape(config), read_packs(config)
    once = config.load.model_copy(update={"attempts": 1})
    try:
        return read_shape(config.model_copy(update={"load": once})), read_packs(config)
    except ThinktuneError as error:
        logger.info(f"{error.message}; its shape is the published one, from the built-in table of common models")
        return shape_of(known), longest_packs(config)


def read_shape(config: Config) -> ModelShape:
    """Read the shape of a config's model; at most its configuration and tokenizer are downloaded."""
    from thinktune.models import resolve
    from thinktune.models.quantised import method_of

    resolved = resolve(config.model, config.load, weights=False)
    settings: dict[str, Any] = {"gguf_file": resolved.gguf} if resolved.gguf else {}
    with importing():  # reading a configuration imports the modules of its model
        from transformers import AutoConfig

        found = AutoConfig.from_pretrained(
            resolved.folder, local_files_only=True, trust_remote_code=config.load.trust_remote_code, **settings
        )
    if (method := method_of(found.to_dict())) is not None:
        logger.info(f"its weights are stored in {method}, and trained on dequantised: so they are counted")
    return shape_of(found, trust_remote_code=config.load.trust_remote_code)
