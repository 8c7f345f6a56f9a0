"""The registry entry of vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.vllm.engine import OWN, VllmEngine, VllmModel

if TYPE_CHECKING:
    from thinktune.inference.engines.found_model import FoundModel


def open_vllm(model: FoundModel) -> Engine:
    """Start vLLM with a model and the adapters beside it.

    Raises:
        ModelError: an adapter does not fit.
        GenerationError: vLLM does not start.
    """
    return VllmEngine(vllm_model(model), model.settings.vllm)


def why_not_vllm(model: FoundModel) -> str | None:
    """Say why it cannot run a model; None: it may."""
    if model.settings.quantize != "none":
        return f"quantize: {model.settings.quantize} is for the transformers engine"
    if model.resolved.gguf:
        return "it is a GGUF file"
    if len(model.resolved.adapters) > 1:
        return "its adapter lies over another one (thinktune merge makes them one model)"
    return None


def vllm_model(model: FoundModel) -> VllmModel:
    """Describe a model in vLLM's terms: its folder, and its adapter and those beside it unmerged.

    Raises:
        ModelError: an adapter does not fit its base: vLLM would leave out weights that find no place.
    """
    from thinktune.models.adapters import require_fit
    from thinktune.models.folder import generation_ends
    from thinktune.models.tokenizer import tokenizer_folder

    resolved = model.resolved
    for adapter in (*resolved.adapters, *model.adapters.values()):
        require_fit(resolved, adapter, model.settings.load)
    return VllmModel(
        folder=resolved.folder,
        tokenizer_folder=tokenizer_folder(resolved)[0],
        tokenizer=model.tokenizer,
        stop_ids=model.chat.stop_ids | generation_ends(resolved.folder),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        adapters={**({OWN: resolved.adapter} if resolved.adapter else {}), **model.adapters},
    )
