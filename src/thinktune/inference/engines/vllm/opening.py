"""The registry entry of vLLM."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.vllm.engine import VllmEngine, begin_process
from thinktune.inference.engines.vllm.model import OWN, VllmModel
from thinktune.inference.engines.vllm.process import WorkerProcess

if TYPE_CHECKING:
    from thinktune.inference.engines.found_model import FoundModel


class VllmStart:
    """vLLM begun before there is anything to ask it: its process imports vLLM, which takes longer than the imports and
    the tokenizer of this one, and touches no GPU."""

    def __init__(self, model: FoundModel) -> None:
        self._model = model
        self._process: WorkerProcess | None = begin_process(_without_tokenizer(model))

    def open(self) -> Engine:
        """Start vLLM with a model and the adapters beside it; once more, if it was closed since.

        Raises:
            ModelError: an adapter does not fit.
            GenerationError: vLLM does not start.
        """
        described = vllm_model(self._model)
        process, self._process = self._process, None
        return VllmEngine(described, self._model.settings.vllm, process)

    def cancel(self) -> None:
        """End the process, if no engine has it."""
        if self._process is not None:
            self._process.cancel()
            self._process = None


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
        ModelError: an adapter does not fit its base: vLLM would leave out what finds no place.
    """
    from thinktune.models.adapters import require_fit
    from thinktune.models.folder import generation_ends

    resolved = model.resolved
    for adapter in (*resolved.adapters, *model.adapters.values()):
        require_fit(resolved, adapter, model.settings.load)
    stop_ids = model.chat.stop_ids | generation_ends(resolved.folder)
    return replace(_without_tokenizer(model), tokenizer=model.tokenizer, stop_ids=stop_ids)


def _without_tokenizer(model: FoundModel) -> VllmModel:
    from thinktune.models.tokenizer import tokenizer_folder

    resolved = model.resolved
    return VllmModel(
        folder=resolved.folder,
        tokenizer_folder=tokenizer_folder(resolved)[0],
        tokenizer=None,
        stop_ids=frozenset(),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        adapters={**({OWN: resolved.adapter} if resolved.adapter else {}), **model.adapters},
    )
