"""One end of the conversation: asks, answers, and keeps the shared containers in step.

A line of JSON hands the turn over. It is a question, `{"ask": [what, …]}`, or the answer to one, `{"value"}` or
`{"raised"}`; while a question is open, the other side may ask back, as when a program calls a function of the tests.
Every line also carries the changes of shared containers, and the printed text.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import sys
import threading
import types
from functools import cache

from thinktune.scoring.sandbox.exchange import proxies, values
from thinktune.scoring.sandbox.exchange.crossing import BOUND, Crossing, Undecided, described
from thinktune.scoring.sandbox.exchange.permission import check_permission
from thinktune.scoring.sandbox.exchange.proxies import Meta, Method, is_proxy

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from collections.abc import Callable, Iterator
    from typing import IO, Any, NoReturn

_ENDINGS = (StopIteration, StopAsyncIteration)


class Lost(BaseException):
    """The other side breaks the protocol, or is gone."""


class Peer(Crossing):
    """One end. `guarded` for the tests: the other side may then only use objects that it was handed."""

    def __init__(self, incoming: IO[str], outgoing: IO[str], *, guarded: bool) -> None:
        super().__init__(guarded=guarded)
        self._incoming, self._outgoing = incoming, outgoing
        self._turn = threading.RLock()
        self._loop: Any = None
        self._answering = 0
        self._names: dict[str, Any] = {}
        self._given: dict[str, Any] = {}
        self.lost: str | None = None
        self.printed: list[str] = []
        self.allowed_errors: set[str] = set()
        """Names of errors that are no ordinary ones, and that the tests speak of."""
        self.calls = 0
        self.doubts: dict[str, str] = {}
        """By class: the decision that its object would make in place of a plain value that may be expected."""
        self.objects: set[str] = set()
        """Classes of which the tests clearly expect objects."""
        self.tested: tuple[Any, str] | None = None
        """The object and the name of the method under test, which a value may have too, such as `rotate`."""

    # What is asked

    def ask(self, what: str, *about: Any, named: dict[str, Any] | None = None) -> Any:
        """Ask the other side and return its answer, or raise the error raised there."""
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
        bound = value is BOUND
        if self._guarded and not isinstance(target, Meta) and not name.startswith("__"):
            if name not in _names_of_plain_types():
                self.objects.update({type(target).__name__} if name.lstrip("_") == name else ())
            elif not bound and (isinstance(value, bool) or is_proxy(value)):
                self._doubt(target, f"its own {name}")
        return Method(self, target, name) if bound else value

    def ask_method(self, target: Any, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        value = self.ask("method", target, name, *arguments, named=named)
        tested = self.tested is not None and target is self.tested[0] and name == self.tested[1]
        if self._guarded and not isinstance(target, Meta) and name in _names_of_plain_types() and not tested:
            told = any(not is_proxy(each) for each in arguments)
            if told or isinstance(value, bool) or is_proxy(value):
                self._doubt(target, f"its own {name}()")
        return value

    def _compare(self, target: Any, other: Any) -> Any:
        """Refuse to let an object of the program decide whether it equals a plain value of the tests: it may equal
        all."""
        plain = isinstance(other, values.plain()) or type(other).__module__.partition(".")[0] in ("numpy", "pandas")
        if plain and getattr(type(target), "_thinktune_equal", False):
            self.refuse(f"the program's {type(target).__name__} would decide itself whether it is equal to a value")
        return NotImplemented

    def _doubt(self, target: Any, what: str) -> None:
        self.doubts.setdefault(type(target).__name__, what)

    def refresh(self, names: list[str], namespace: dict[str, Any]) -> None:
        """Bind the program's objects of these names in a namespace, and keep them in step with the program."""
        self._names = namespace
        self._given = {}
        self._take_names(self.ask("names", *names))

    def _take_names(self, found: list[tuple[str, Any]]) -> None:
        for name, value in found:
            if self._names.get(name) is self._given.get(name):  # else the tests have something of their own there
                self._names[name] = self._given[name] = value

    # What is answered

    def offer(self, names: dict[str, Any]) -> None:
        """Let the other side ask for the names of a namespace here."""
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
            return BOUND if bound else value
        return _QUESTIONS[what](self, target, *rest)

    def run_coroutine(self, coroutine: Any) -> Any:
        """Run an awaitable to its end, also if a loop runs already and waits for this answer."""
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
        """Begin a message with the changes, so that the rest of it may refer to them."""
        message: dict[str, Any] = {}
        if changed := self._changes():
            message["changed"] = changed
        if not self._guarded and (renamed := self._renamed()):
            message["names"] = self._encode(renamed)
        return message

    def _renamed(self) -> list[tuple[str, Any]]:
        """Return the new objects of names that the tests use, if the program has bound them anew."""
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
        """Raise `Lost` for any error over a message against the protocol: the other side talks for itself."""
        try:
            yield
        except Exception:  # noqa: BLE001 - whatever a value of no sense leads to
            self._lose("does not answer as agreed")

    def _lose(self, why: str) -> NoReturn:
        self.lost = why
        raise Lost(why)

    def _tamed(self, error: BaseException, what: str) -> BaseException:
        """Turn an error that would end the tests, a loop of theirs, or signal their runner, into an ordinary one. Tests
        that name StopIteration, SystemExit and the like expect them."""
        if isinstance(error, _ENDINGS) and what in ("special", "await"):
            return error
        kinds = type(error).__mro__
        ordinary = isinstance(error, Exception) and not isinstance(error, _ENDINGS)
        of_runners = any(each.__module__.partition(".")[0] in ("unittest", "_pytest", "pytest") for each in kinds)
        if not of_runners and (ordinary or self.allowed_errors & {each.__name__ for each in kinds}):
            error.__dict__["_thinktune_theirs"] = True
            return error
        return RuntimeError(f"the program raised {type(error).__name__}: {error}")


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def _await(peer: Peer, awaitable: Any) -> Any:
    return peer.run_coroutine(awaitable)


def _copied(way: str, target: Any) -> Any:
    import copy

    return getattr(copy, way)(target)


_QUESTIONS: dict[str, Callable[..., Any]] = {
    "set": lambda _, target, name, value: setattr(target, name, value),
    "delete": lambda _, target, name: delattr(target, name),
    "iterate": lambda _, target: list(target),
    "item": lambda _, target, key: target[key],
    "copy": lambda _, target: _copied("copy", target),
    "deepcopy": lambda _, target: _copied("deepcopy", target),
    "await": _await,
    "input": lambda _, prompt: builtins.input(prompt),
    "line": lambda _, size: sys.stdin.readline(size),
    "rest": lambda _, size: sys.stdin.read(size),
    "signature": lambda _, target: proxies.parameters_of(target),
    "seed": lambda _, module, seed: importlib.import_module(module).seed(seed),
}
"""Questions besides calls and attributes."""

_TELLING = {"exists", "is_file", "is_dir", "is_absolute", "empty", "equals", "all", "any"}  # of paths and tables


@cache
def _known_names(_: int) -> frozenset[str]:
    kinds = [
        kind
        for kind in values.plain(all_modules=True)
        if kind.__module__ in ("builtins", "collections", "datetime", "fractions", "decimal")
    ]
    for module, names in (("numpy", ("ndarray",)), ("pandas", ("DataFrame", "Series", "Index"))):
        kinds += [getattr(sys.modules[module], name) for name in names] if module in sys.modules else []
    return frozenset(name for kind in kinds for name in dir(kind)) | _TELLING


def _names_of_plain_types() -> frozenset[str]:
    """List the names that may be asked of plain values: they tell nothing of the tests' expectations."""
    return _known_names(len(sys.modules.keys() & {"numpy", "pandas"}))
