"""The calls in which a process's main thread is seen, part by part."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import FrameType

_EVERY = 0.005  # seconds


class CallTree:
    """Looks at the main thread's calls again and again, from its making to `end`.

    A sample counts for the time since the one before it: code that holds Python's lock lets no sample be taken, and is
    seen when it has ended.
    """

    def __init__(self) -> None:
        self._parts: dict[str, Counter[tuple[str, ...]]] = {}
        self._running: Counter[tuple[str, ...]] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), daemon=True)
        self._thread.start()

    def end_part(self, part: str) -> None:
        """Count the samples since the end of the part before to this part."""
        samples, self._running = self._running, Counter()
        self._parts.setdefault(part, Counter()).update(samples)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def lines(self, part: str, least: float) -> Iterator[str]:
        """Yield the calls of a part that took so many seconds or more, each below its caller; of a chain of calls that
        take the same time the last one."""
        inclusive: Counter[tuple[str, ...]] = Counter()
        for stack, seconds in self._parts.get(part, {}).items():
            for depth in range(1, len(stack) + 1):
                inclusive[stack[:depth]] += seconds
        yield from _lines({stack: seconds for stack, seconds in inclusive.items() if seconds >= least}, (), 0)

    def _watch(self, main: int) -> None:
        last = time.perf_counter()
        while not self._ended.wait(_EVERY):
            frame, now = sys._current_frames()[main], time.perf_counter()
            self._running[_stack(frame)] += now - last
            last = now


def _stack(frame: FrameType | None) -> tuple[str, ...]:
    """Return the calls of a frame, outermost first, but for those of the import machinery."""
    found = []
    while frame is not None:
        module = frame.f_globals.get("__name__") or "?"
        if not module.startswith(("importlib", "typer", "click")):
            found.append(f"{module}:{frame.f_code.co_name}".replace(":<module>", ""))
        frame = frame.f_back
    return tuple(reversed(found))


def _lines(calls: dict[tuple[str, ...], float], above: tuple[str, ...], depth: int) -> Iterator[str]:
    for stack in sorted(_below(calls, above), key=lambda stack: -calls[stack]):
        last, inner = stack, _below(calls, stack)
        while len(inner) == 1 and calls[inner[0]] > 0.9 * calls[stack]:
            last, inner = inner[0], _below(calls, inner[0])
        yield f"{'  ' * depth}{calls[stack]:5.2f} {last[-1]}"
        yield from _lines(calls, last, depth + 1)


def _below(calls: dict[tuple[str, ...], float], above: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [stack for stack in calls if stack[:-1] == above and stack]
