"""The import of heavy libraries, which is most of the time that a verb takes to start."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_unused: set[str] = set()


def leave_out(*packages: str) -> None:
    """Keep optional packages from being imported by the libraries that `importing` is yet to import.

    Only a verb knows that nothing else in its process will want them.
    """
    _unused.update(packages)


@contextmanager
def importing(*unused: str) -> Iterator[None]:
    """Import faster within the block: collect no garbage, and leave out the optional packages `unused`, too.

    Imports make next to no garbage, and looking for it takes a fifth of their time. transformers and PEFT import every
    optional package that is installed; None in sys.modules is Python's own way to say that one is not, here for the
    time of the block. What these libraries ask then, they remember.
    """
    blocked = [name for name in {*unused, *_unused} if name not in sys.modules]
    collects = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in blocked:
            sys.modules.pop(name, None)
        if collects:
            gc.enable()
