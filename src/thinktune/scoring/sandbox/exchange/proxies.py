"""Stand-ins for objects of the other side: objects, functions, classes, with the operators of their types."""

from __future__ import annotations

import sys

from thinktune.scoring.sandbox.exchange.values import CONTAINERS, plain

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from collections.abc import Sequence
    from typing import Any, Protocol

    class Asker(Protocol):
        """The part of a peer that a stand-in needs."""

        def ask(self, what: str, *about: Any, named: dict[str, Any] | None = None) -> Any: ...
        def ask_special(self, target: Any, name: str, arguments: tuple[Any, ...]) -> Any: ...
        def ask_attribute(self, target: Any, name: str) -> Any: ...
        def ask_method(self, target: Any, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any: ...
        def refuse(self, why: str) -> Any: ...


_ARITHMETIC = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift")
_LOGIC = ("and", "xor", "or")
EQUALITY = ("__eq__", "__ne__")
OPERATORS = frozenset(
    f"__{prefix}{name}__" for name in (*_ARITHMETIC, *_LOGIC) for prefix in ("", "r", "i")
) | {"__lt__", "__le__", "__gt__", "__ge__"}  # fmt: skip
"""Operators of two operands but `==`: the tests may expect their second operand."""
SPECIAL = OPERATORS | {
    "__len__", "__iter__", "__next__", "__getitem__", "__setitem__", "__delitem__", "__contains__", "__reversed__",
    "__call__", "__bool__", "__enter__", "__exit__", "__aenter__", "__aexit__", "__aiter__", "__anext__", "__neg__",
    "__pos__", "__abs__", "__invert__", "__int__", "__float__", "__complex__", "__index__", "__round__", "__trunc__",
    "__floor__", "__ceil__", "__eq__", "__ne__", "__hash__", "__str__", "__repr__", "__format__", "__missing__",
}  # fmt: skip
_HARMLESS = set(dir(object)) | {"__class_getitem__", "__getnewargs__", "__call__", "__dict__", "__module__"}
_HARMLESS -= {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__getattribute__"}
_KEPT = (int, str, float, bytes, tuple, frozenset)
_PEER, _NUMBER = "_thinktune_peer", "_thinktune_number"


class Meta(type):
    """The metaclass of the other side's classes: instances are made, and attributes looked up, over there."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        if _NUMBER not in vars(cls):
            getattr(cls, _PEER).refuse(f"{cls.__name__} extends a class of the other process")
        return getattr(cls, _PEER).ask("call", cls, *arguments, named=named)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_thinktune") or _NUMBER not in vars(cls):
            raise AttributeError(name)
        return getattr(cls, _PEER).ask_attribute(cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        getattr(cls, _PEER).ask("set", cls, name, value)

    def __iter__(cls) -> Any:
        return iter(getattr(cls, _PEER).ask("iterate", cls))

    def __len__(cls) -> Any:
        return getattr(cls, _PEER).ask("special", cls, "__len__")

    def __bool__(cls) -> bool:
        return True

    def __getitem__(cls, key: Any) -> Any:
        return getattr(cls, _PEER).ask("item", cls, key)

    def __contains__(cls, item: Any) -> bool:
        return any(each is item or each == item for each in cls)


class Method:
    """A bound method of an object of the other side."""

    def __init__(self, peer: Asker, target: Any, name: str) -> None:
        self.__self__, self.__name__, self._peer = target, name, peer

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._peer.ask_method(self.__self__, self.__name__, arguments, named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Method) and (other.__self__, other.__name__) == (self.__self__, self.__name__)

    def __hash__(self) -> int:
        return hash(self.__name__)


def is_proxy(value: Any) -> bool:
    return isinstance(type(value), Meta) or isinstance(value, (Meta, Method))


def number_of(value: Any) -> int | None:
    """Return the number under which the other side knows a value of its own."""
    if isinstance(value, Meta):
        return vars(value).get(_NUMBER)
    return vars(value).get(_NUMBER) if isinstance(type(value), Meta) else None


def specials_of(kind: type) -> list[str]:
    """List the operators that a class defines itself."""
    found = [name for name in sorted(SPECIAL) if getattr(kind, name, None) is not getattr(object, name, None)]
    if "__call__" in found and not any("__call__" in vars(each) for each in kind.__mro__):
        found.remove("__call__")  # of its metaclass
    return found


def decides_equality(kind: type) -> bool:
    """Return whether a class has an `__eq__` of its own; a dataclass's compares its instances only."""
    equal: Any = kind.__eq__
    generated = hasattr(kind, "__dataclass_fields__") and getattr(equal, "__code__", None) is not None
    return equal is not object.__eq__ and not (generated and equal.__code__.co_filename == "<string>")


def kept_base(kind: type) -> type | None:
    """Return the plain type that a class extends, if the class overrides nothing of it."""
    base = next((each for each in kind.__mro__ if each in _KEPT or CONTAINERS.get(each.__name__) is each), None)
    if base is None:
        return None
    own = {
        name for each in kind.__mro__[: kind.__mro__.index(base)] if each.__module__ != "enum" for name in vars(each)
    }
    fields = set(getattr(kind, "_fields", ()))  # of a named tuple, such as count or index
    return None if (own - fields) & (set(dir(base)) | SPECIAL) - _HARMLESS else base


def make_class(peer: Asker, number: int, name: str, described: dict[str, Any], bases: Sequence[type] = ()) -> Meta:
    """Make the stand-in of a class.

    Args:
        described: base, the name of the plain type it extends, or None; specials; module; equal, whether it has an
            equality of its own.
        bases: stand-ins of its base classes.
    """
    base = next((each for each in plain() if each.__name__ == described["base"]), None)
    names: dict[str, Any] = {_PEER: peer, _NUMBER: number, "__module__": str(described["module"])}
    names |= {"__getattr__": _get, "__deepcopy__": _deepcopy, "_thinktune_equal": bool(described["equal"])}
    if base is None:
        names |= {"__setattr__": _set, "__delattr__": _delete, "__copy__": _copy, "__reduce_ex__": _refuse_to_pickle}
        names |= {each: _special(each) for each in described["specials"] if each in SPECIAL}
        if "__eq__" in names and "__hash__" not in names:
            names["__hash__"] = object.__hash__
        names["__doc__"] = property(lambda self: _get(self, "__doc__"))
        if "__call__" in names:
            names["__call__"] = _call
        if (real := _real_class(str(described["module"]), name)) is not None:
            names["__class__"] = property(lambda _: real)
    else:
        names |= {each: _special(each) for each in described["specials"] if each in ("__str__", "__repr__", "__call__")}
        if "__call__" in names:
            names["__call__"] = _call
    try:
        return Meta(name, (base,) if base else tuple(bases), names)
    except TypeError:  # no order of bases without those that have no stand-in
        return Meta(name, (), names)


def make_instance(kind: Meta, number: int, value: Any = None) -> Any:
    new: Any = kind.__new__
    made = new(kind) if value is None else new(kind, value)
    object.__setattr__(made, "__dict__", {_NUMBER: number})
    return made


def _real_class(module: str, name: str) -> type | None:
    """Return the class of a library, or of the interpreter, if this process has it too: `isinstance` then says yes.
    Never one whose values cross by value."""
    import types

    if module == "builtins":
        return {"generator": types.GeneratorType, "async_generator": types.AsyncGeneratorType}.get(name)
    found = getattr(sys.modules.get(module), name, None)
    known = isinstance(found, type) and not issubclass(found, (*plain(), BaseException))
    outside = module.partition(".")[0] in ("numpy", "pandas", "__main__", "thinktune", "unittest", "solution")
    return found if known and not outside else None


def _special(name: str) -> Any:
    def run(self: Any, *arguments: Any) -> Any:
        return getattr(type(self), _PEER).ask_special(self, name, arguments)

    run.__name__ = name
    return run


def _call(self: Any, /, *arguments: Any, **named: Any) -> Any:
    return getattr(type(self), _PEER).ask("call", self, *arguments, named=named)


def _get(self: Any, name: str) -> Any:
    if name.startswith("_thinktune"):
        raise AttributeError(name)
    if name == "__signature__":
        return _signature(getattr(type(self), _PEER).ask("signature", self))
    return getattr(type(self), _PEER).ask_attribute(self, name)


def _signature(parameters: list[tuple[str, int, bool, Any]]) -> Any:
    import inspect

    kinds = list(inspect._ParameterKind)
    return inspect.Signature(
        [
            inspect.Parameter(name, kinds[kind], default=default if given else inspect.Parameter.empty)
            for name, kind, given, default in parameters
        ]
    )


def parameters_of(function: Any) -> list[tuple[str, int, bool, Any]]:
    """Return the parameters of `inspect.signature`, without annotations."""
    import inspect

    found = inspect.signature(function).parameters.values()
    return [(p.name, int(p.kind), p.default is not p.empty, None if p.default is p.empty else p.default) for p in found]


def _set(self: Any, name: str, value: Any) -> None:
    getattr(type(self), _PEER).ask("set", self, name, value)


def _delete(self: Any, name: str) -> None:
    getattr(type(self), _PEER).ask("delete", self, name)


def _copy(self: Any) -> Any:
    return getattr(type(self), _PEER).ask("copy", self)


def _deepcopy(self: Any, _: Any) -> Any:
    return getattr(type(self), _PEER).ask("deepcopy", self)


def _refuse_to_pickle(self: Any, _: Any) -> Any:
    getattr(type(self), _PEER).refuse(f"a {type(self).__name__} of the other process cannot be copied by pickle")
