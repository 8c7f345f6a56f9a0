"""An engine that loads its model when the first completion is asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

from thinktune.inference.engines.base import Completion, Engine, Likelihood, Pair, Request


class EngineOnDemand(Engine):
    """Starts the real engine at its first use."""

    def __init__(
        self,
        make: Callable[[], Engine],
        unsupported: frozenset[str] = Engine.unsupported,
        context_setting: int | None = None,
    ) -> None:
        self._make = make
        self.unsupported = unsupported
        self.context_setting = context_setting
        self._engine: Engine | None = None

    @property
    def context_length(self) -> int:  # type: ignore[override]
        return self._started().context_length

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self._started().slots

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        yield from self._started().generate(requests)

    def stream(self, request: Request) -> Iterator[str]:
        yield from self._started().stream(request)

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return self._started().logprobs(prompt_ids, continuation_ids)

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[Likelihood]:
        yield from self._started().likelihoods(pairs)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None  # lets go of the model, so that the next one has its memory

    def start(self) -> None:
        self._started()

    def _started(self) -> Engine:
        if self._engine is None:
            self._engine = self._make()
        return self._engine
