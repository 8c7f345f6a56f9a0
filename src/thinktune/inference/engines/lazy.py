"""An engine that loads its model when the first completion is asked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from thinktune.config import Sampling
from thinktune.inference.engines.base import Completion, Engine, Likelihood, Pair, Request, unhonoured


@dataclass(frozen=True)
class Candidate:
    """An engine that may be started; `unsupported` and `context_setting` as of `Engine`.

    Attributes:
        cancel: ends what was begun for a start that does not come. Safe to call after one, and twice.
    """

    start: Callable[[], Engine]
    unsupported: frozenset[str] = Engine.unsupported
    context_setting: int | None = None
    cancel: Callable[[], None] = lambda: None


class EngineOnDemand(Engine):
    """Starts the real engine at its first use.

    Args:
        candidates: engines to choose from, the best first. Of several, those fall away that cannot honour a sampling
            which is asked about (`require_supported`) before the start.
    """

    def __init__(self, *candidates: Candidate) -> None:
        self._candidates = candidates
        self._engine: Engine | None = None

    @property
    def unsupported(self) -> frozenset[str]:  # type: ignore[override]
        return (self._engine or self._candidates[0]).unsupported

    @property
    def context_setting(self) -> int | None:  # type: ignore[override]
        return self._candidates[0].context_setting

    @property
    def context_length(self) -> int:  # type: ignore[override]
        return self._started().context_length

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self._started().slots

    def require_supported(self, sampling: Sampling) -> None:
        """See `Engine.require_supported`."""
        if self._engine is None:
            able = tuple(each for each in self._candidates if not unhonoured(sampling, each.unsupported))
            for other in self._candidates if able else ():
                if other not in able:
                    other.cancel()
            self._candidates = able or self._candidates
        super().require_supported(sampling)

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
        for candidate in self._candidates:
            candidate.cancel()

    def start(self) -> None:
        self._started()

    def _started(self) -> Engine:
        if self._engine is None:
            self._engine = self._candidates[0].start()
        return self._engine
