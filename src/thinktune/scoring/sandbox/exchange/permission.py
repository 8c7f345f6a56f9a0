"""The program's rights on objects that the tests hand it."""

from __future__ import annotations

import types

from thinktune.scoring.sandbox.exchange import proxies
from thinktune.scoring.sandbox.exchange.proxies import Meta

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from typing import Any


def check_permission(what: str, target: Any, rest: list[Any]) -> None:
    """Let the program use objects that the tests handed it, and look no further: a function's globals are the tests'
    own.

    Raises:
        AttributeError: it asks for more.
    """
    name = str(rest[0]) if rest else ""
    if what == "get" and name in ("__name__", "__qualname__", "__doc__"):
        return
    if what == "special" and name in proxies.SPECIAL:
        return
    if what in ("method", "get", "set", "delete"):
        public = name.lstrip("_") == name or (isinstance(target, tuple) and name in ("_asdict", "_replace", "_fields"))
        closed = isinstance(target, _CLOSED) or any(each.__module__ == "unittest.case" for each in type(target).__mro__)
        if public and not closed and not (what in ("set", "delete") and isinstance(target, type)):
            return
    elif what in ("call", "iterate", "item", "copy", "deepcopy", "await", "signature", "input", "line", "rest"):
        return
    raise AttributeError(f"{type(target).__name__!r} object has no attribute {name!r}")


_CLOSED = (
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, types.FrameType, types.CodeType,
    types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.TracebackType, Meta,
)  # fmt: skip
