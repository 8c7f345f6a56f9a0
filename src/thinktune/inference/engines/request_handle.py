"""The handle by which a caller of a shared model cancels its requests. Imports nothing heavy."""

from __future__ import annotations


class RequestHandle:
    """A caller's handle on its requests."""

    def __init__(self) -> None:
        self.waiting = 0
        """How many streams are to begin before and including this one; 0 while it runs."""
        self.stopped = False
        self.tokens = 0
        """How many the last stream has written, its end of turn included; known when it has ended."""
        self.reason: str | None = None
        """Why the last stream has ended: stop, length or error."""

    def stop(self) -> None:
        """End it at the next token, or before it begins. Nobody else's work is touched."""
        self.stopped = True
