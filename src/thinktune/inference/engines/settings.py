"""How a model is run: the settings that travel together from a verb to an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinktune.config import Infer, Load, Quantize, Vllm


@dataclass(frozen=True)
class EngineSettings:
    """
    Attributes:
        engine: a name of `registry.ENGINES`, "auto", or `module:function`.
        load: how the model gets into memory.
        merge: False runs an adapter beside its base.
        vllm: settings of vLLM.
        batch_tokens: tokens the transformers engine holds at once; None: from free memory.
    """

    engine: str = "auto"
    load: Load = field(default_factory=Load)
    quantize: Quantize = "none"
    merge: bool = True
    vllm: Vllm = field(default_factory=Vllm)
    batch_tokens: int | None = None

    @classmethod
    def of(cls, infer: Infer, load: Load | None = None, quantize: Quantize = "none") -> EngineSettings:
        """Take the engine's part of a config's `infer` section."""
        return cls(infer.engine, load or Load(), quantize, infer.merge, infer.vllm, infer.batch_tokens)
