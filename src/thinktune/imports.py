"""The import of heavy libraries, which is most of the time that a verb takes to start."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thinktune.lighter_imports import lighter

BYTECODE = "python-bytecode"
"""Name of a folder in the user's cache: see `keep_bytecode`."""
DISTRIBUTED = "torch.distributed"
"""May be left out, too: transformers then does without tensors that are spread over processes. Where there are several
it is not."""
_unused: set[str] = set()
_ASKING: dict[str, dict[str, str]] = {
    "transformers.utils.import_utils": {},
    "peft.import_utils": {"bitsandbytes": "bnb"},
}
"""Modules with functions `is_NAME_available`, and the names there that are not the packages'."""


def keep_bytecode(folder: Path) -> None:
    """Have Python keep in `folder` what it compiles of libraries, where it has nothing of them and would keep nothing.

    So it is in many images: packages that another user has installed, or PYTHONDONTWRITEBYTECODE. Without this, torch
    and all that comes with it would be compiled at each start, which takes half of it. Processes that this one starts
    do the same. Nothing is kept in a folder that others may write to, since Python runs what it finds there.
    """
    spec = PathFinder.find_spec("torch")
    if spec is None or spec.cached is None or sys.pycache_prefix is not None or Path(spec.cached).exists():
        return
    if not sys.dont_write_bytecode and os.access(Path(spec.cached).parents[1], os.W_OK):
        return
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o022:
            sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
            sys.dont_write_bytecode = False
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def leave_out(*packages: str) -> None:
    """Keep optional packages from being imported by the libraries that `importing` is yet to import.

    Only a verb knows that nothing else in its process will want them.
    """
    _unused.update(packages)


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage within the block: making thousands of modules sets off dozens of looks, and leaves none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def importing(*unused: str) -> Iterator[None]:
    """Import faster within the block: collect no garbage, and leave out the optional packages `unused`, too.

    Imports make next to no garbage, and looking for it takes a fifth of their time; nor is it looked for later among
    what was imported with torch, a second for every look. transformers and PEFT import every optional package that is
    installed; None in sys.modules is Python's own way to say that one is not, here for the time of the block. What
    these libraries ask then, they remember; one remembered as installed is not left out.
    """
    absent = {*unused, *_unused}
    alone = DISTRIBUTED in absent and os.environ.get("WORLD_SIZE", "1") == "1"
    blocked = [name for name in absent - {DISTRIBUTED} if name not in sys.modules and not _is_remembered(name)]
    first = "torch" not in sys.modules
    with uncollected():
        sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
        try:
            with lighter(alone=alone):
                yield
        finally:
            for name in blocked:
                sys.modules.pop(name, None)
            if first and "torch" in sys.modules:  # later, there may be a model among the garbage
                gc.freeze()


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
