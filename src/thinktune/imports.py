"""The import of heavy libraries, which is most of the time that a verb takes to start."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

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

    Imports make next to no garbage, and looking for it takes a fifth of their time; nor is it looked for later among
    what was imported with torch, a second for every look. transformers and PEFT import every optional package that is
    installed; None in sys.modules is Python's own way to say that one is not, here for the time of the block. What
    these libraries ask then, they remember; one remembered as installed is not left out.
    """
    blocked = [name for name in {*unused, *_unused} if name not in sys.modules and not _is_remembered(name)]
    collects, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in blocked:
            sys.modules.pop(name, None)
        if first and "torch" in sys.modules:  # later, there may be a model among the garbage
            gc.freeze()
        if collects:
            gc.enable()


def import_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed, without the half of torch's compiler that it asks for at its import.

    It has functions compiled there that few trainings call: now each is when it is called first.
    """
    if "bitsandbytes" in sys.modules or find_spec("bitsandbytes") is None:
        return
    import torch

    compile_now, torch.compile = torch.compile, _compile_later
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now


def _compile_later(function: Callable[..., Any] | None = None, **settings: Any) -> Callable[..., Any]:
    if function is None:
        return functools.partial(_compile_later, **settings)

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import torch

        found: Callable[..., Any] = torch.compile(function, **settings)
        return found

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


def _is_remembered(package: str) -> bool:
    """Return whether a library that is imported already has found that a package is installed."""
    for module, names in _ASKING.items():
        asked = getattr(sys.modules.get(module), f"is_{names.get(package, package)}_available", None)
        if asked is not None and asked.cache_info().currsize and asked():
            return True
    return False
