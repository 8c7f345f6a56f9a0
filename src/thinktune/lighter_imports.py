"""Libraries that import less: what nobody will call is left until somebody does.

Each change is to one module, when Python runs it for the first time. What a release has under another name is left as
it is, and imported as before.
"""

from __future__ import annotations

import functools
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from inspect import isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

Execute = Callable[[ModuleType], None]
_COMPILER = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disallow_in_graph")
_MODES = "torch._dynamo._trace_wrapped_higher_order_op"


@contextmanager
def lighter(*, alone: bool = False) -> Iterator[None]:
    """Let torch, transformers and PEFT import less within the block; `alone`: no other process shares their work."""
    from importlib import metadata

    finder = _Finder({**_CHANGES, **(_ALONE if alone else {})})
    slow, metadata.packages_distributions = metadata.packages_distributions, _packages
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        metadata.packages_distributions = slow


class _Finder(MetaPathFinder):
    """Has the modules named in `changes` run by functions of the module and Python's own way to run it."""

    def __init__(self, changes: Mapping[str, Callable[[ModuleType, Execute], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        change = self._changes.get(name)
        spec = PathFinder.find_spec(name, path) if change is not None else None
        loader = spec.loader if spec is not None else None
        if change is None or loader is None:
            return None
        execute = loader.exec_module
        loader.exec_module = lambda module: change(module, execute)  # type: ignore[method-assign]
        return spec


def _decorate_later(module: ModuleType, execute: Execute) -> None:
    """Keep functions from PyTorch's compiler, or mark them for it, once it is imported: it would be for that alone.

    Optimizers, recomputation, bitsandbytes' operators and a cache in transformers are kept from it.
    """
    execute(module)
    for name in ("disable", "_disable_dynamo"):
        if (at_once := getattr(module, name, None)) is not None:
            setattr(module, name, _disabling_later(at_once))
    for name in _MARKS:
        if (at_once := getattr(module, name, None)) is not None:
            setattr(module, name, _marking_later(name, at_once))


def _disabling_later(at_once: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(at_once)
    def disable(fn: Any = None, recursive: bool = True, **how: Any) -> Any:
        if fn is None:
            return functools.partial(disable, recursive=recursive, **how)
        if _has_compiler() or not isfunction(fn):
            return at_once(fn, recursive, **how)
        disabled = functools.cache(lambda: at_once(fn, recursive, **how))

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (disabled() if _has_compiler() else fn)(*args, **kwargs)

        return call

    return disable


def _has_compiler() -> bool:
    return hasattr(sys.modules.get(_COMPILER), "disable")


def _without_compiler(module: ModuleType, execute: Execute) -> None:
    """Run a module of transformers that marks functions for PyTorch's compiler, or takes a mode from it that few masks
    need: functions are marked when it is imported, and the mode is imported when it is entered."""
    import torch

    if _COMPILER in sys.modules:
        execute(module)
        return
    modes = ModuleType(_MODES)
    modes.TransformGetItemToIndex = _indexing_mode  # type: ignore[attr-defined]
    before = vars(torch).get("_dynamo")  # of a module that imports this one
    sys.modules[_MODES], torch._dynamo = modes, _MarkingLater(_COMPILER)
    try:
        execute(module)
    finally:
        if sys.modules.get(_MODES) is modes:
            del sys.modules[_MODES]
        if _COMPILER not in sys.modules and before is None:
            del torch._dynamo
        elif _COMPILER not in sys.modules:
            torch._dynamo = before


def _indexing_mode() -> Any:
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


class _MarkingLater(ModuleType):
    """Stands for PyTorch's compiler: functions are marked for it once it is imported; for all else it is, at once."""

    def __getattr__(self, name: str) -> Any:
        at_once = lambda *args, **how: getattr(import_module(_COMPILER), name)(*args, **how)  # noqa: E731
        return _marking_later(name, at_once) if name in _MARKS else getattr(import_module(_COMPILER), name)


def _marking_later(name: str, at_once: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(at_once)
    def mark(function: Any) -> Any:
        if _has_compiler():
            return at_once(function)
        _to_mark.append((name, function))
        if _MARKING not in sys.meta_path:
            sys.meta_path.insert(0, _MARKING)
        return function

    return mark


def _mark(compiler: ModuleType, execute: Execute) -> None:
    """Import PyTorch's compiler after all, with its own modes, and mark what was to be marked."""
    if _MODES in sys.modules:
        del sys.modules[_MODES]
    execute(compiler)
    if _MARKING in sys.meta_path:
        sys.meta_path.remove(_MARKING)
    for name, function in _to_mark:
        getattr(compiler, name)(function)
    _to_mark.clear()


_to_mark: list[tuple[str, Any]] = []
_MARKING = _Finder({_COMPILER: _mark})


def _step_later(module: ModuleType, execute: Execute) -> None:
    """Let optimizers take a step without PyTorch's compiler, which they import to tell it where its graphs end."""
    execute(module)
    if (at_once := getattr(module, "_use_grad_for_differentiable", None)) is not None:
        module._use_grad_for_differentiable = functools.partial(_stepping_later, at_once)  # type: ignore[attr-defined]


def _stepping_later(at_once: Callable[..., Any], step: Callable[..., Any]) -> Callable[..., Any]:
    ending_graphs = at_once(step)

    @functools.wraps(step)
    def call(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        if _has_compiler():
            return ending_graphs(optimizer, *args, **kwargs)
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            return step(optimizer, *args, **kwargs)

    return call


def _nothing_compiled(module: ModuleType, execute: Execute) -> None:
    """Have accelerate know that nothing is compiled before there is a compiler: it imports that to find out."""
    execute(module)
    for name in ("is_compiled_module", "has_compiled_regions"):
        if (asked := getattr(module, name, None)) is not None:
            setattr(module, name, functools.partial(_asked_of_compiler, asked))


def _asked_of_compiler(asked: Callable[[Any], bool], model: Any) -> bool:
    return _has_compiler() and asked(model)


def _list_quickly(module: ModuleType, execute: Execute) -> None:
    """Have transformers list what its 1,600 modules export in a quarter of the time.

    It reads them all at its import, line by line, and again when the first model is asked for: once by the path of the
    folder, once by that of a file in it.
    """
    execute(module)
    slow = getattr(module, "create_import_structure_from_path", None)
    if slow is not None and hasattr(module, "fetch__all__"):
        module.fetch__all__ = _exported  # type: ignore[attr-defined]
        module.create_import_structure_from_path = _by_folder(slow)  # type: ignore[attr-defined]


def _alone(module: ModuleType, execute: Execute) -> None:
    """Tell transformers, PEFT and accelerate that there are no processes to share their work: they would import tensors
    that are spread over them, and SymPy with these."""
    _CHANGES.get(module.__name__, _as_it_is)(module, execute)
    for name, answer in _ANSWERS.items():
        if hasattr(module, name):
            setattr(module, name, answer)


def _as_it_is(module: ModuleType, execute: Execute) -> None:
    execute(module)


_ASKING = (
    "transformers.masking_utils",
    "torch.nn.attention.varlen",
    "transformers.integrations.deepgemm",
    "transformers.integrations.finegrained_fp8",
    "transformers.integrations.sonicmoe",
)
_LISTING = "transformers.utils.import_utils"
_CHANGES = {
    "torch._compile": _decorate_later,
    "torch.compiler": _decorate_later,
    "torch.optim.optimizer": _step_later,
    "accelerate.utils.other": _nothing_compiled,
    **dict.fromkeys(_ASKING, _without_compiler),
    _LISTING: _list_quickly,
    _COMPILER: _mark,
}
_ALONE = dict.fromkeys(
    (_LISTING, "transformers.trainer_optimizer", "accelerate.utils.other", "peft.tuners.tuners_utils"), _alone
)
_ANSWERS: dict[str, Any] = {
    "is_torch_distributed_available": lambda: False,
    "_torch_supports_distributed": False,
    "has_mixed_dtensor": lambda tensors: False,
}


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
