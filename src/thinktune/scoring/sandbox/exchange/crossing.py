"""Transfer of values to the other side: by value, as a shared container, as an error, or as a numbered stand-in."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import sys
import types

from thinktune.scoring.sandbox.exchange import proxies, values
from thinktune.scoring.sandbox.exchange.permission import check_permission
from thinktune.scoring.sandbox.exchange.proxies import Meta, Method, is_proxy, number_of

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from collections.abc import Callable
    from typing import Any, NoReturn

    from thinktune.scoring.sandbox.exchange.proxies import Asker

_UNUSED = 3  # references to a container that only the table of shared ones still has, while it is looked at


class Undecided(BaseException):
    """The trial cannot be decided. No Exception: tests catch those."""


class Crossing:
    """Encodes and decodes. `guarded` for the tests: they make only values and stand-ins of incoming messages."""

    def __init__(self, *, guarded: bool) -> None:
        self._guarded = guarded
        self._mine: dict[int, Any] = {}
        self._mine_of: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._theirs_of: dict[int, int] = {}
        self._shared: dict[int, list[Any]] = {}  # number: the container, and what it looked like when last told of
        self._shared_of: dict[int, int] = {}
        self._next = int(guarded)  # both sides number what they share: one oddly, one evenly
        self._unused: list[int] = []
        self.undecided: list[str] = []

    @property
    def _asker(self) -> Asker:
        return self  # type: ignore[return-value]  # it is a Peer

    def refuse(self, why: str) -> NoReturn:
        self.undecided.append(why)
        raise Undecided(why)

    # Shared containers

    def _changes(self) -> list[Any]:
        changed: list[Any] = []
        todo = list(self._shared)
        for number in todo:
            container, before = self._shared[number]
            now = values.look(container)
            if _differ(now, before):
                self._shared[number][1] = now
                changed.append([number, values.encode_content(container, self._encode)])
        return changed

    def _forget(self) -> list[int]:
        """Collect the numbers of containers that nobody here has any more."""
        unused = [number for number, entry in self._shared.items() if sys.getrefcount(entry[0]) < _UNUSED]
        self._drop(unused)
        return unused

    def _drop_unused(self) -> None:
        """Drop containers that the other side no longer has, once the values of the message are read."""
        self._drop(self._unused)
        self._unused = []

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            self._shared_of.pop(id(self._shared.pop(number)[0]), None)

    def _share(self, number: int, container: Any) -> None:
        self._shared[number] = [container, None]
        self._shared_of[id(container)] = number

    # Values

    def _encode_names(self, named: dict[str, Any]) -> dict[str, Any]:
        return {name: self._encode(value) for name, value in named.items()}

    def _encode(self, value: Any) -> Any:
        if value is None or isinstance(value, types.TracebackType):
            return None
        if (plain := values.encode_plain(value, self._encode)) is not None:
            return plain
        if (number := self._theirs_of.get(id(value))) is not None:
            return ["yours", number]
        if is_proxy(value) and values.base_of(value) is None:
            if isinstance(value, Method):
                return ["method", number_of(value.__self__), value.__name__]
            if number_of(value) is None:
                self.refuse(f"{value!r} extends a class of the other process")
            return ["yours", number_of(value)]
        if isinstance(value, BaseException):
            return self._encode_error(value)
        if value is BOUND:
            return ["bound"]
        if name := _name_of(value, everything=self._guarded):
            return ["name", *name]
        return self._encode_shared(value) or self._encode_mine(value)

    def _encode_shared(self, value: Any) -> Any:
        if (number := self._shared_of.get(id(value))) is not None:
            return ["shared", number]
        kind = values.container_kind(value, self._encode)
        if kind is None:
            return None
        own = None
        if kind[0] != "array" and type(value) is not values.base_of(value):
            if is_proxy(value) or proxies.kept_base(type(value)) is None:
                return ["yours", number_of(value)] if is_proxy(value) else None
            own = self._encode_mine(value, kept=True)
        self._next += 2
        number = self._next
        self._share(number, value)
        content = values.encode_content(value, self._encode)
        self._shared[number][1] = values.look(value)
        return ["container", number, kind, content, own]

    def _encode_mine(self, value: Any, *, kept: bool = False) -> Any:
        number = self._mine_of.get(id(value))
        if number is None:
            number = self._mine_of[id(value)] = len(self._mine)
            self._mine[number] = value
        if isinstance(value, type):
            if issubclass(value, BaseException):
                return [
                    "error class",
                    number,
                    value.__name__,
                    value.__module__,
                    [self._encode(each) for each in value.__bases__],
                ]
            base = proxies.kept_base(value)
            about = {
                "base": base and base.__name__,
                "specials": proxies.specials_of(value),
                "module": str(getattr(value, "__module__", "")),
                "equal": proxies.decides_equality(value),
            }
            bases = [each for each in value.__bases__ if not base and each is not object]
            return ["class", number, value.__name__, about, [self._encode_class(each) for each in bases]]
        if hasattr(type(value), "__await__"):
            return ["coroutine", number]
        content = None
        base = proxies.kept_base(type(value))
        if base in (int, str, float, bytes, tuple, frozenset) and not kept:
            content = self._encode(_plain_of(base, value))
        return ["object", number, self._encode_class(type(value)), content]

    def _encode_class(self, kind: type) -> Any:
        return ["yours", number_of(kind)] if isinstance(kind, Meta) else self._encode_mine(kind)

    def _encode_error(self, error: BaseException) -> Any:
        if (number := self._theirs_of.get(id(error))) is not None:
            return ["yours", number]
        number = self._mine_of.setdefault(id(error), len(self._mine))
        self._mine[number] = error
        kept = {name: value for name, value in vars(error).items() if name.lstrip("_") == name}
        try:
            arguments = [self._encode(each) for each in error.args]
            attributes = self._encode_names(kept)
            text = str(error)
        except BaseException:  # noqa: BLE001 - the error's own code, or a value that cannot cross
            arguments, attributes, text = [], {}, described(error)
        kind = (
            type(error)
            if isinstance(error, Exception | GeneratorExit | KeyboardInterrupt | SystemExit)
            else RuntimeError
        )
        return ["error", number, self._encode(kind), arguments, attributes, text]

    def _decode(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        kind, *content = value
        decode = _DECODERS.get(kind)
        return decode(self, *content) if decode else values.decode_plain(kind, content, self._decode)

    def _decode_container(self, number: int, kind: list[Any], content: Any, own: Any) -> Any:
        container = self._decode(own) if own else values.new_container(kind, content, self._decode)
        self._share(number, container)
        if kind[0] != "array":
            values.fill(container, content, self._decode)
        self._shared[number][1] = values.look(container)
        return container

    def _decode_class(self, number: int, name: str, about: dict[str, Any], bases: list[Any]) -> Any:
        if number not in self._theirs:
            extended = [self._decode(each) for each in bases]
            self._theirs[number] = proxies.make_class(self._asker, number, name, about, extended)
        return self._theirs[number]

    def _decode_theirs(self, number: int, kind: Any, content: Any) -> Any:
        if number not in self._theirs:
            made = proxies.make_instance(self._decode(kind), number, self._decode(content))
            self._theirs[number] = made
        return self._theirs[number]

    def _decode_coroutine(self, number: int) -> Any:
        asker = self._asker
        kind = proxies.make_class(asker, -1, "coroutine", {"base": None, "specials": [], "module": "", "equal": False})
        stand_in = proxies.make_instance(kind, number)

        async def wait() -> Any:
            return asker.ask("await", stand_in)

        coroutine = wait()
        self._theirs_of[id(coroutine)] = number
        self._theirs[number] = coroutine
        return coroutine

    def _decode_method(self, number: int, name: str) -> Any:
        target = self._mine[number]
        if self._guarded:
            check_permission("get", target, [name])
        return getattr(target, name)

    def _decode_name(self, module: str, name: str) -> Any:
        """Resolve a name that both sides have. The program may name types only: its calls it makes itself."""
        found: Any = None
        if not self._guarded:
            found = importlib.import_module(module)
            for each in name.split(".") if name else []:
                found = getattr(found, each)
        elif module == "builtins":
            found = getattr(builtins, name)
        else:
            found = next(
                each
                for each in values.plain(all_modules=True)
                if (each.__module__, each.__qualname__) == (module, name)
            )
        if self._guarded and not isinstance(found, type):
            raise TypeError(f"{name} is no type")
        return found

    def _decode_error_class(self, number: int, name: str, module: str, bases: list[Any]) -> Any:
        if number not in self._theirs:
            found = _error_class(module, name)
            parents = tuple(self._decode(each) for each in bases)
            made = found or type(name, parents, {"__str__": _text_of_error, "__module__": "solution"})
            self._theirs[number] = made
            self._theirs_of[id(made)] = number
        return self._theirs[number]

    def _decode_error(self, number: int, kind: Any, arguments: list[Any], attributes: dict[str, Any], text: str) -> Any:
        if number not in self._theirs:
            made = _make_error(self._decode(kind), [self._decode(each) for each in arguments], str(text))
            made.__dict__.update({name: self._decode(each) for name, each in attributes.items()})
            self._theirs[number] = made
            self._theirs_of[id(made)] = number
        return self._theirs[number]


class _Bound:
    """Marks an attribute as a method of its object."""


BOUND = _Bound()


def _differ(now: Any, before: Any) -> bool:
    if isinstance(now, list) and isinstance(before, list):
        return len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True))
    return bool(now != before)


def described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300].rstrip(": ")
    except BaseException:  # noqa: BLE001 - its text is the program's own code
        return type(error).__name__


_DECODERS: dict[str, Callable[..., Any]] = {
    "shared": lambda peer, number: peer._shared[number][0],
    "yours": lambda peer, number: peer._mine[number],
    "bound": lambda _: BOUND,
    "container": Crossing._decode_container,
    "method": Crossing._decode_method,
    "name": Crossing._decode_name,
    "class": Crossing._decode_class,
    "object": Crossing._decode_theirs,
    "coroutine": Crossing._decode_coroutine,
    "error class": Crossing._decode_error_class,
    "error": Crossing._decode_error,
}


_NAMED = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType,
    types.WrapperDescriptorType,
)  # fmt: skip


def _name_of(value: Any, *, everything: bool) -> tuple[str, str] | None:
    """Return module and name of an object that the other side has as well: types whose values cross, or `everything`
    with a name in a library."""
    if not isinstance(value, _NAMED):
        return None
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    name = getattr(value, "__qualname__", None)
    if isinstance(value, type) and (getattr(builtins, str(name), None) is value or value in values.plain()):
        return value.__module__, value.__qualname__
    if not everything:
        return None
    if isinstance(value, types.ModuleType):
        return value.__name__, ""
    if module in (None, "__main__") or not isinstance(name, str) or not callable(value):
        return None
    found: Any = sys.modules.get(str(module))
    for each in name.split("."):
        found = getattr(found, each, None)
    return (str(module), name) if found is value else None


def _error_class(module: str, name: str) -> type[BaseException] | None:
    """Return the class of an error of a library, or of the interpreter."""
    if module.partition(".")[0] in sys.stdlib_module_names and module not in ("__main__", "unittest.case"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    found = getattr(sys.modules.get(module), name, None) if module != "__main__" else None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _make_error(kind: Any, arguments: list[Any], text: str) -> BaseException:
    if not issubclass(kind, BaseException):
        raise TypeError(f"{kind} is no error")
    made: BaseException = kind.__new__(kind, *arguments)
    if kind.__module__ == "builtins":
        made.__init__(*arguments)  # type: ignore[misc]
    made.args = tuple(arguments)
    made.__dict__["_thinktune_text"] = text
    return made


def _plain_of(base: Any, value: Any) -> Any:
    """Return the plain value of an instance of a subclass of a plain type."""
    return str.__str__(value) if base is str else base.__new__(base, value)


def _text_of_error(self: BaseException) -> str:
    return str(self.__dict__.get("_thinktune_text", ""))
