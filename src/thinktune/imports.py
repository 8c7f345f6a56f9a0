"""The import of heavy libraries, which is most of the time that a verb takes to start."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_unused: set[str] = set()
_ASKING: dict[str, dict[str, str]] = {
    "transformers.utils.import_utils": {},
    "peft.import_utils": {"bitsandbytes": "bnb"},
}
"""Modules with functions `is_NAME_available`, and the names there that are not the packages'."""


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
    time of the block. What these libraries ask then, they remember; one remembered as installed is not left out.
    """
    blocked = [name for name in {*unused, *_unused} if name not in sys.modules and not _is_remembered(name)]
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


def _is_remembered(package: str) -> bool:
    """Return whether a library that is imported already has found that a package is installed."""
    for module, names in _ASKING.items():
        asked = getattr(sys.modules.get(module), f"is_{names.get(package, package)}_available", None)
        if asked is not None and asked.cache_info().currsize and asked():
            return True
    return False
