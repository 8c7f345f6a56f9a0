"""The engines by name, and the one place that chooses which of them runs a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from thinktune.config import Quantize, Sampling
from thinktune.errors import UsageError
from thinktune.inference.engines.base import unhonoured
from thinktune.inference.engines.vllm.engine import VLLM_CANNOT
from thinktune.inference.engines.vllm.process import has_vllm

if TYPE_CHECKING:
    from thinktune.models import Resolved

EngineName = Literal["auto", "transformers", "vllm"]


def choose_engine(
    engine: EngineName,
    reference: str | Path,
    resolved: Resolved,
    quantize: Quantize,
    samplings: Iterable[Sampling] = (),
    *,
    lacks_gpu: bool,
) -> Literal["transformers", "vllm"]:
    """The engine that was asked for; for "auto" vLLM, if it is here and can do all that is wanted.

    Args:
        lacks_gpu: no GPU is there, without which "auto" leaves vLLM alone.

    Raises:
        UsageError: vLLM was asked for, and cannot run this model.
    """
    if engine == "transformers":
        return engine
    problem = _why_not_vllm(resolved, quantize)
    if engine == "vllm":
        if problem:
            raise UsageError(f"vLLM cannot run {reference}: {problem}", hint="use --engine transformers")
        return engine
    unsupported = VLLM_CANNOT - {"think_budget"}  # which is a layer over engines
    honoured = not any(unhonoured(sampling, unsupported) for sampling in samplings)
    return "vllm" if not lacks_gpu and not problem and has_vllm() and honoured else "transformers"


def _why_not_vllm(resolved: Resolved, quantize: Quantize) -> str | None:
    if quantize != "none":
        return f"quantize: {quantize} is for the transformers engine"
    if resolved.gguf:
        return "it is a GGUF file"
    if len(resolved.adapters) > 1:
        return "its adapter lies over another one (thinktune merge makes them one model)"
    return None
