"""One side's end of the conversation: asks, answers, and keeps what both sides share alike.

A line of JSON hands the turn over. It is a question, `{"ask": [what, …]}`, or the answer to one, `{"value"}` or
`{"raised"}`; while a question is open, the other side may ask back, as where a program calls a function of the tests.
Every line tells besides which shared containers were changed, and what was printed.
"""

import builtins
import contextlib
import copy
import importlib
import json
import sys
import threading
import types
from collections.abc import Callable, Iterator
from functools import cache
from typing import IO, Any, NoReturn

from thinktune.tasks.exchange import proxies, values
from thinktune.tasks.exchange.proxies import Meta, Method, is_proxy, number_of

_UNUSED = 3  # references to a container that only the table of shared ones still has, while it is looked at
_ENDINGS = (StopIteration, StopAsyncIteration)


class Undecided(BaseException):
    """The trial cannot be decided. No Exception: tests catch those."""


class Lost(BaseException):
    """The other side does not keep to what was agreed, or is gone."""


class Peer:
    """One end. `guarded` for the tests: the other side may then only use what it was handed."""

    def __init__(self, incoming: IO[str], outgoing: IO[str], *, guarded: bool) -> None:
        self._incoming, self._outgoing, self._guarded = incoming, outgoing, guarded
        self._turn = threading.RLock()
        self._mine: dict[int, Any] = {}
        self._mine_of: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._theirs_of: dict[int, int] = {}
        self._shared: dict[int, list[Any]] = {}  # number: the container, and what it looked like when last told of
        self._shared_of: dict[int, int] = {}
        self._next = int(guarded)  # both sides number what they share: one oddly, one evenly
        self._loop: Any = None
        self._answering = 0
        self._names: dict[str, Any] = {}
        self._given: dict[str, Any] = {}
        self._unused: list[int] = []
        self.lost: str | None = None
        self.printed: list[str] = []
        self.allowed_errors: set[str] = set()
        """Names of errors that are no ordinary ones, and that the tests speak of."""
        self.calls = 0
        self.undecided: list[str] = []
        self.doubts: dict[str, str] = {}
        """By class: what would be decided by an object where a plain value may be expected."""
        self.objects: set[str] = set()
        """Classes of which the tests clearly expect objects."""

    # What is asked

    def ask(self, what: str, *about: Any, named: dict[str, Any] | None = None) -> Any:
        """Ask the other side and return its answer, or raise what was raised there."""
        if not (self._guarded or self._answering):
            raise RuntimeError("nobody listens: the call is over")
        with self._turn:
            self.calls += what in ("call", "method")
            message = self._begin()
            message["ask"] = [what, [self._encode(each) for each in about], self._encode_names(named or {})]
            self._send(message)
            while "ask" in (message := self.receive()):
                self.answer(message)
            return self._outcome(message, what)

    def ask_special(self, target: Any, name: str, arguments: tuple[Any, ...]) -> Any:
        if self._guarded and arguments and not is_proxy(arguments[0]):
            if name in proxies.EQUALITY:
                return self._compare(target, arguments[0])
            if name == "__contains__" and any("__iter__" in vars(each) for each in type(target).__mro__):
                return any(each is arguments[0] or each == arguments[0] for each in target)
            if name in proxies.OPERATORS or name == "__contains__":
                self._doubt(target, f"its own {name}")
        self.calls += name == "__call__"
        return self.ask("special", target, name, *arguments)

    def ask_attribute(self, target: Any, name: str) -> Any:
        value = self.ask("get", target, name)
        bound = value is _BOUND
        if self._guarded and not isinstance(target, Meta) and not name.startswith("__"):
            if name not in _names_of_plain_types():
                self.objects.update({type(target).__name__} if name.lstrip("_") == name else ())
            elif not bound and (isinstance(value, bool) or is_proxy(value)):
                self._doubt(target, f"its own {name}")
        return Method(self, target, name) if bound else value

    def ask_method(self, target: Any, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        value = self.ask("method", target, name, *arguments, named=named)
        if self._guarded and not isinstance(target, Meta) and name in _names_of_plain_types():
            told = any(not is_proxy(each) for each in arguments)
            if told or isinstance(value, bool) or is_proxy(value):
                self._doubt(target, f"its own {name}()")
        return value

    def refuse(self, why: str) -> Any:
        self.undecided.append(why)
        raise Undecided(why)

    def _compare(self, target: Any, other: Any) -> Any:
        """Never ask an object whether it is equal to a value of the tests: it may say yes to all of them."""
        plain = isinstance(other, values.PLAIN) or type(other).__module__.partition(".")[0] in ("numpy", "pandas")
        if plain and getattr(type(target), "_thinktune_equal", False):
            self.refuse(f"the program's {type(target).__name__} would decide itself whether it is equal to a value")
        return NotImplemented

    def _doubt(self, target: Any, what: str) -> None:
        self.doubts.setdefault(type(target).__name__, what)

    def refresh(self, names: list[str], namespace: dict[str, Any]) -> None:
        """Put what the program has under these names into a namespace, and keep it there as it is in the program."""
        self._names = namespace
        self._given = {}
        self._take_names(self.ask("names", *names))

    def _take_names(self, found: list[tuple[str, Any]]) -> None:
        for name, value in found:
            if self._names.get(name) is self._given.get(name):  # else the tests have something of their own there
                self._names[name] = self._given[name] = value

    # What is answered

    def offer(self, names: dict[str, Any]) -> None:
        """Let the other side ask for what has a name here."""
        self._names = names

    def serve(self) -> None:
        """Answer until the other side has no more to ask."""
        while message := self.receive(end=True):
            self.answer(message)

    def answer(self, message: dict[str, Any]) -> None:
        self._answering += 1
        raised: BaseException | None = None
        value = None
        try:
            value = self._do(*self._question(message))
        except (Lost, Undecided):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the code raises, SystemExit too, is its answer
            raised = error
        self._answering -= 1
        with self._turn:
            message = self._begin()
            try:
                message |= {"value": self._encode(value)} if raised is None else {"raised": self._encode_error(raised)}
            except Exception as error:  # noqa: BLE001 - it nests too deeply, or its own code fails
                message["stays"] = f"a {type(value).__name__} cannot be carried over: {described(error)}"
            value = raised = None
            self._send(message)

    def _question(self, message: dict[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
        with self._as_agreed():
            what, about, named = message["ask"]
            question = str(what), [self._decode(each) for each in about], dict(named)
            named = {str(name): self._decode(each) for name, each in question[2].items()}
            self._drop_unused()
            return question[0], question[1], named

    def _do(self, what: str, about: list[Any], named: dict[str, Any]) -> Any:
        if what == "names":
            self._given = {name: self._names.get(name) for name in about}
            return list(self._given.items())
        target, *rest = about
        if self._guarded:
            check_permission(what, target, rest)
        if what == "call":
            return target(*rest, **named)
        if what == "method":
            return getattr(target, rest[0])(*rest[1:], **named)
        if what == "special":
            special = getattr(type(target), rest[0], None)
            if special is None:
                raise TypeError(f"{type(target).__name__} has no {rest[0]}")
            return special(target, *rest[1:])
        if what == "get":
            value = getattr(target, rest[0])
            bound = isinstance(value, types.MethodType | types.BuiltinMethodType) and value.__self__ is target
            return _BOUND if bound else value
        return _QUESTIONS[what](self, target, *rest)

    def run_coroutine(self, coroutine: Any) -> Any:
        """Run to its end what is to be awaited, also where a loop runs already and waits for this answer."""
        import asyncio  # here: it takes as long to import as all the rest

        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            if self._loop is None or self._loop.is_running():
                loop = asyncio.new_event_loop()
                self._loop = self._loop or loop
            else:
                loop = self._loop
            return loop.run_until_complete(_wait(coroutine))
        finally:
            asyncio._set_running_loop(running)

    # Lines

    def _begin(self) -> dict[str, Any]:
        """A message that tells what has changed. First, so that what comes after may name what it makes known."""
        message: dict[str, Any] = {}
        if changed := self._changes():
            message["changed"] = changed
        if not self._guarded and (renamed := self._renamed()):
            message["names"] = self._encode(renamed)
        return message

    def _renamed(self) -> list[tuple[str, Any]]:
        """What the names that the tests use mean by now, where it is something else than before."""
        found = [
            (name, self._names.get(name)) for name, before in self._given.items() if self._names.get(name) is not before
        ]
        self._given.update(found)
        return found

    def _send(self, message: dict[str, Any]) -> None:
        if unused := self._forget():
            message["forget"] = unused
        if self.printed:
            message["printed"] = "".join(self.printed)
            self.printed.clear()
        self._outgoing.write(json.dumps(message) + "\n")
        self._outgoing.flush()

    def receive(self, *, end: bool = False) -> dict[str, Any]:
        line = self._incoming.readline()
        if not line:
            if end:
                return {}
            self._lose("ended before an answer")
        with self._as_agreed():
            message: dict[str, Any] = dict(json.loads(line))
            for number, content in message.get("changed", []):
                container = self._shared[number]
                values.fill(container[0], content, self._decode)
                container[1] = values.look(container[0])
            self._unused = list(message.get("forget", []))
            if self._guarded and "names" in message:
                self._take_names(self._decode(message["names"]))
            if self._guarded and "printed" in message:
                sys.stdout.write(str(message["printed"]))
        return message

    def _outcome(self, message: dict[str, Any], what: str) -> Any:
        with self._as_agreed():
            if "stays" in message:
                self.refuse(str(message["stays"]))
            value = self._decode(message["value" if "value" in message else "raised"])
            self._drop_unused()
            if "value" in message:
                return value
            if not isinstance(value, BaseException):
                raise TypeError("no error")
        raise self._tamed(value, what) if self._guarded else value

    @contextlib.contextmanager
    def _as_agreed(self) -> Iterator[None]:
        """Take what cannot be understood for what it is: the other side talks for itself."""
        try:
            yield
        except Exception:  # noqa: BLE001 - whatever a value of no sense leads to
            self._lose("does not answer as agreed")

    def _lose(self, why: str) -> NoReturn:
        self.lost = why
        raise Lost(why)

    def _tamed(self, error: BaseException, what: str) -> BaseException:
        """An error that would end the tests, a loop of theirs, or tell their runner something, as an ordinary one.
        Where the tests speak of StopIteration, SystemExit and the like, they expect them."""
        if isinstance(error, _ENDINGS) and what in ("special", "await"):
            return error
        kinds = type(error).__mro__
        ordinary = isinstance(error, Exception) and not isinstance(error, _ENDINGS)
        of_runners = any(each.__module__.partition(".")[0] in ("unittest", "_pytest", "pytest") for each in kinds)
        if not of_runners and (ordinary or self.allowed_errors & {each.__name__ for each in kinds}):
            error.__dict__["_thinktune_theirs"] = True
            return error
        return RuntimeError(f"the program raised {type(error).__name__}: {error}")

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
        """Numbers of containers that nobody here has any more."""
        unused = [number for number, entry in self._shared.items() if sys.getrefcount(entry[0]) < _UNUSED]
        self._drop(unused)
        return unused

    def _drop_unused(self) -> None:
        """Drop what nobody has on the other side, once the values that came along are read."""
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
        if value is _BOUND:
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
            self._theirs[number] = proxies.make_class(self, number, name, about, extended)
        return self._theirs[number]

    def _decode_theirs(self, number: int, kind: Any, content: Any) -> Any:
        if number not in self._theirs:
            made = proxies.make_instance(self._decode(kind), number, self._decode(content))
            self._theirs[number] = made
        return self._theirs[number]

    def _decode_coroutine(self, number: int) -> Any:
        kind = proxies.make_class(self, -1, "coroutine", {"base": None, "specials": [], "module": "", "equal": False})
        stand_in = proxies.make_instance(kind, number)

        async def wait() -> Any:
            return self.ask("await", stand_in)

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
        """What both sides have. The program may name types only: what it calls, it calls itself."""
        found: Any = None
        if not self._guarded:
            found = importlib.import_module(module)
            for each in name.split(".") if name else []:
                found = getattr(found, each)
        elif module == "builtins":
            found = getattr(builtins, name)
        else:
            found = next(each for each in values.PLAIN if (each.__module__, each.__qualname__) == (module, name))
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
    """Says that an attribute is a method of the object it was asked of."""


_BOUND = _Bound()


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def _differ(now: Any, before: Any) -> bool:
    if isinstance(now, list) and isinstance(before, list):
        return len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True))
    return bool(now != before)


def described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300].rstrip(": ")
    except BaseException:  # noqa: BLE001 - its text is the program's own code
        return type(error).__name__


def check_permission(what: str, target: Any, rest: list[Any]) -> None:
    """Let the program use what the tests handed it, and look no further: a function's globals are the tests' own.

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
    types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.TracebackType, Peer, Meta,
)  # fmt: skip


def _await(peer: Peer, awaitable: Any) -> Any:
    return peer.run_coroutine(awaitable)


_QUESTIONS: dict[str, Callable[..., Any]] = {
    "set": lambda _, target, name, value: setattr(target, name, value),
    "delete": lambda _, target, name: delattr(target, name),
    "iterate": lambda _, target: list(target),
    "item": lambda _, target, key: target[key],
    "copy": lambda _, target: copy.copy(target),
    "deepcopy": lambda _, target: copy.deepcopy(target),
    "await": _await,
    "input": lambda _, prompt: builtins.input(prompt),
    "line": lambda _, size: sys.stdin.readline(size),
    "rest": lambda _, size: sys.stdin.read(size),
    "signature": lambda _, target: proxies.parameters_of(target),
    "seed": lambda _, module, seed: importlib.import_module(module).seed(seed),
}
"""What can be asked besides calls and attributes."""

_DECODERS: dict[str, Callable[..., Any]] = {
    "shared": lambda peer, number: peer._shared[number][0],
    "yours": lambda peer, number: peer._mine[number],
    "bound": lambda _: _BOUND,
    "container": Peer._decode_container,
    "method": Peer._decode_method,
    "name": Peer._decode_name,
    "class": Peer._decode_class,
    "object": Peer._decode_theirs,
    "coroutine": Peer._decode_coroutine,
    "error class": Peer._decode_error_class,
    "error": Peer._decode_error,
}


_NAMED = (
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType,
    types.WrapperDescriptorType,
)  # fmt: skip


def _name_of(value: Any, *, everything: bool) -> tuple[str, str] | None:
    """Module and name of what the other side has as well: types whose values cross, or `everything` there is a name
    for in a library."""
    if not isinstance(value, _NAMED):
        return None
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    name = getattr(value, "__qualname__", None)
    if isinstance(value, type) and (getattr(builtins, str(name), None) is value or value in values.PLAIN):
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
    """The class of an error of a library, or of the interpreter."""
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
    """The value of a plain type that a value of a class of its own is."""
    return str.__str__(value) if base is str else base.__new__(base, value)


def _text_of_error(self: BaseException) -> str:
    return str(self.__dict__.get("_thinktune_text", ""))


_TELLING = {"exists", "is_file", "is_dir", "is_absolute", "empty", "equals", "all", "any"}  # of paths and tables


@cache
def _known_names(_: int) -> frozenset[str]:
    kinds = [
        kind
        for kind in values.PLAIN
        if kind.__module__ in ("builtins", "collections", "datetime", "fractions", "decimal")
    ]
    for module, names in (("numpy", ("ndarray",)), ("pandas", ("DataFrame", "Series", "Index"))):
        kinds += [getattr(sys.modules[module], name) for name in names] if module in sys.modules else []
    return frozenset(name for kind in kinds for name in dir(kind)) | _TELLING


def _names_of_plain_types() -> frozenset[str]:
    """What can be asked of values that cross by value, so that it tells nothing of what the tests expect."""
    return _known_names(len(sys.modules.keys() & {"numpy", "pandas"}))
