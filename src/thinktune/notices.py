"""Show the log of the modules on stderr. Programs call `show_notices`; a library leaves its log alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_muted = ContextVar("muted", default=False)


class _Handler(logging.Handler):
    """Prints the bare line, through the console of a verb that has one, so that it goes above a progress bar."""

    console: Console | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        return not _muted.get() and bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if self.console is None:
            print(line, file=sys.stderr)
        else:
            style = "yellow" if record.levelno >= logging.WARNING else "dim"
            self.console.print(line, style=style, highlight=False, markup=False, emoji=False)


_handler = _Handler()


def show_notices(console: Console | None = None) -> None:
    """Show the log of thinktune from INFO on, through a console. None: as plain lines on stderr."""
    logger = logging.getLogger("thinktune")
    logger.setLevel(logging.INFO)
    logger.addHandler(_handler)  # once, however often it is called
    _handler.console = console


@contextmanager
def muted() -> Iterator[None]:
    """Hold back the notices of this thread, as for work done a second time."""
    token = _muted.set(True)
    try:
        yield
    finally:
        _muted.reset(token)
