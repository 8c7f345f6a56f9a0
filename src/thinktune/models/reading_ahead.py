"""Weights that are quantised as they are read: the next ones are on their way to the GPU meanwhile.

transformers reads them one after the other then, so that none lie on the GPU as they were; here a few do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from transformers import core_model_loading

_AHEAD = 4


@contextmanager
def reading_ahead() -> Iterator[None]:
    """Let threads read the weights that `from_pretrained` is to ask for next, of one model, within the block."""
    usual = core_model_loading.spawn_materialize
    with ThreadPoolExecutor(_AHEAD) as pool:
        queue = _Queue(pool)

        def spawn(thread_pool: Any, *args: Any, **kwargs: Any) -> Any:
            read = usual(thread_pool, *args, **kwargs)
            return queue.add(read) if thread_pool is None else read

        core_model_loading.spawn_materialize = spawn
        try:
            yield
        finally:
            core_model_loading.spawn_materialize = usual
            pool.shutdown(cancel_futures=True)


class _Queue:
    """Reads in the order in which they were added, as far ahead of the last one that was taken as is allowed."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._reads: list[Callable[[], Any]] = []
        self._begun: dict[int, Future[Any]] = {}
        self._next = 0

    def add(self, read: Callable[[], Any]) -> Callable[[], Any]:
        """Return what waits for this read, once."""
        place = len(self._reads)
        self._reads.append(read)
        return lambda: self._take(place)

    def _take(self, place: int) -> Any:
        while self._next < min(place + _AHEAD, len(self._reads)):
            self._begun[self._next] = self._pool.submit(self._reads[self._next])
            self._next += 1
        begun = self._begun.pop(place, None)
        return self._reads[place]() if begun is None else begun.result()
