"""Questions that were sent while an answer was being written: they wait, a line for each page."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

Line = deque[tuple[str, int, tuple[Any, ...]]]
"""Questions with their attempt and the settings they were sent with."""


class WaitingQuestions:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, Line] = {}

    def add(self, session: str, question: str, attempt: int, settings: tuple[Any, ...]) -> Line | None:
        """Add a question. Return the line if nobody answers it yet: the caller does, and calls `end`."""
        with self._lock:
            line = self._lines.get(session)
            if line is not None:
                line.append((question, attempt, settings))
                return None
            line = self._lines[session] = deque([(question, attempt, settings)])
            return line

    def is_busy(self, session: str) -> bool:
        with self._lock:
            return session in self._lines

    def take(self, session: str, line: Line) -> tuple[str, int, tuple[Any, ...]] | None:
        """Return the next question of a line; None ends the line if there is none."""
        with self._lock:
            if line and self._lines.get(session) is line:
                return line.popleft()
            self._end(session, line)
            return None

    def end(self, session: str, line: Line | None = None) -> list[str]:
        """End a line (None: the present one), and return the questions that waited in it."""
        with self._lock:
            line = self._lines.get(session) if line is None else line
            return [] if line is None else self._end(session, line)

    def _end(self, session: str, line: Line) -> list[str]:
        if self._lines.get(session) is line:
            del self._lines[session]
        rest = [question for question, *_ in line]
        line.clear()
        return rest
