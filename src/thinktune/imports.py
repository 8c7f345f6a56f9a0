"""The import of heavy libraries, which is most of the time that a verb takes to start."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

BYTECODE = "python-bytecode"
"""Name of a folder in the user's cache: see `keep_bytecode`."""
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
def importing(*unused: str) -> Iterator[None]:
    """Import faster within the block: collect no garbage, and leave out the optional packages `unused`, too.

    Imports make next to no garbage, and looking for it takes a fifth of their time; nor is it looked for later among
    what was imported with torch, a second for every look. transformers and PEFT import every optional package that is
    installed; None in sys.modules is Python's own way to say that one is not, here for the time of the block. What
    these libraries ask then, they remember; one remembered as installed is not left out.
    """
    from importlib import metadata

    blocked = [name for name in {*unused, *_unused} if name not in sys.modules and not _is_remembered(name)]
    collects, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    slow, metadata.packages_distributions = metadata.packages_distributions, _packages
    sys.meta_path.insert(0, _LISTING)
    try:
        yield
    finally:
        sys.meta_path.remove(_LISTING)
        metadata.packages_distributions = slow
        for name in blocked:
            sys.modules.pop(name, None)
        if first and "torch" in sys.modules:  # later, there may be a model among the garbage
            gc.freeze()
        if collects:
            gc.enable()


@functools.cache
def _packages() -> Mapping[str, list[str]]:
    """Return which distributions have each package, as `importlib.metadata.packages_distributions` does.

    transformers asks that at its import. Python makes a path of each file of every distribution for it, and parses all
    that is said of it: ten times as long.
    """
    from importlib.metadata import distributions

    found: dict[str, list[str]] = defaultdict(list)
    for distribution in distributions():
        declared = (distribution.read_text("top_level.txt") or "").split()
        lines = (distribution.read_text("RECORD") or "").splitlines()
        tops = {line.partition(",")[0].partition("/")[0] for line in lines}  # folders, and modules with their suffix
        modules = {top.partition(".")[0] for top in tops if not top.endswith((".dist-info", ".data"))} - {""}
        said = (distribution.read_text("METADATA") or "").splitlines()
        name = next((line[5:].strip() for line in said if line.startswith("Name:")), None)
        for module in declared or modules:
            found[module].append(name or distribution.metadata["Name"])
    return dict(found)


class _QuickListing(MetaPathFinder):
    """Has transformers list what its 1,600 modules export in a quarter of the time, where it is imported next.

    It reads them all at its import, line by line, and again when the first model is asked for: once by the path of the
    folder, once by that of a file in it.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "transformers.utils.import_utils":
            return None
        spec = PathFinder.find_spec(name, path)
        loader = spec.loader if spec is not None else None
        if loader is None:
            return None
        execute = loader.exec_module

        def execute_and_swap(module: ModuleType) -> None:
            execute(module)
            slow = getattr(module, "create_import_structure_from_path", None)
            if slow is not None and hasattr(module, "fetch__all__"):
                module.fetch__all__ = _exported  # type: ignore[attr-defined]
                module.create_import_structure_from_path = _by_folder(slow)  # type: ignore[attr-defined]

        loader.exec_module = execute_and_swap  # type: ignore[method-assign]
        return spec


_LISTING = _QuickListing()


def _by_folder(listed: Callable[[str], dict[Any, Any]]) -> Callable[[str | Path], dict[Any, Any]]:
    """Make a function of a file's path, or its folder's, that asks for each folder by one name alone."""

    def of(path: str | Path) -> dict[Any, Any]:
        return listed(os.path.dirname(path) if os.path.isfile(path) else os.fspath(path))

    return of


def _exported(text: str) -> list[str]:
    """Return the names in the last `__all__ = […]` of a module that begins a line, one line or one name a line."""
    start = text.rfind("\n__all__") + 1
    if not text.startswith("__all__", start):
        return []
    first, *lines = text[start:].splitlines()
    if first.endswith("]"):
        return [name.strip("\"' ") for name in first.split("=")[1].strip(" []").split(",")]
    names = []
    for line in lines:
        if line.strip() == "]":
            break
        names.append(line.strip("\"', "))
    return names


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
