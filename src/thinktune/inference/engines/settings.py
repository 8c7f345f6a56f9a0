"""How a model is run: the settings that travel together from a verb to an engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from thinktune.config import Endpoint, Infer, Load, Quantize, Vllm


@dataclass(frozen=True)
class EngineSettings:
    """
    Attributes:
        engine: a name of `registry.ENGINES`, "auto", or `module:function`.
        load: how the model gets into memory.
        merge: False runs an adapter beside its base.
        vllm: settings of vLLM.
        batch_tokens: tokens the transformers engine holds at once; None: from free memory.
        workers: engines; above 1 each is a process of its own. None: 1, or as many as the cluster has GPUs.
        cluster: address of the Ray cluster that they run on; None: this host.
        endpoint: how a model behind a server is asked.
    """

    engine: str = "auto"
    load: Load = field(default_factory=Load)
    quantize: Quantize = "none"
    merge: bool = True
    vllm: Vllm = field(default_factory=Vllm)
    batch_tokens: int | None = None
    workers: int | None = None
    cluster: str | None = None
    endpoint: Endpoint = field(default_factory=Endpoint)

    @property
    def is_fleet(self) -> bool:
        """Whether engines run in processes of Ray's."""
        return self.cluster is not None or (self.workers or 1) > 1

    @classmethod
    def of(
        cls, infer: Infer, load: Load | None = None, quantize: Quantize = "none", cluster: str | None = None
    ) -> EngineSettings:
        """Take the engine's part of a config's `infer` section."""
        return cls(
            infer.engine,
            load or Load(),
            quantize,
            infer.merge,
            infer.vllm,
            infer.batch_tokens,
            infer.workers,
            cluster,
            infer.endpoint,
        )
