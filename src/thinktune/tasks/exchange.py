"""What the two sides of a trial say to each other. Standard library only: its text reaches both processes (see `jail`).

The program that a model wrote and the tests that judge it run in two processes, which exchange one JSON message a line
through the scorer: the program sees the arguments of each call and never the tests, the tests see plain values and
never an object of the program's making. So a program can only answer right or wrong, whatever it patches or reads.
"""

import builtins
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any


def exchange(role: str) -> None:
    """Be one side of a trial, `program` or `tests`, until the scorer closes the pipe."""
    if role == "tests":
        judge(*take_over_pipes())
    else:
        serve(*take_over_pipes())


def take_over_pipes() -> tuple[IO[str], IO[str]]:
    """The pipes to the scorer; what the code prints or reads goes nowhere."""
    sys.stdout.flush()
    incoming, outgoing = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    return incoming, outgoing


def send(outgoing: IO[str], **message: Any) -> None:
    outgoing.write(json.dumps(message) + "\n")
    outgoing.flush()


def serve(incoming: IO[str], outgoing: IO[str]) -> None:
    """The program's side: define its functions, then answer calls."""
    namespace: dict[str, Any] = {"__name__": "solution", "__builtins__": builtins}
    try:
        message = json.loads(incoming.readline())
        for name in ("given", "source"):
            exec(compile(message[name], "solution.py", "exec"), namespace)
    except BaseException as error:  # noqa: BLE001 - whatever the code raises, SystemExit too, is its answer
        send(outgoing, failed=described(error))
        return
    send(outgoing, names=[name for name, value in list(namespace.items()) if callable(value) and type(name) is str])
    for line in incoming:
        message = json.loads(line)
        try:
            arguments = [decode(value) for value in message["arguments"]]
            named = {name: decode(value) for name, value in message["named"].items()}
            reply = {"value": encode(namespace[message["call"]](*arguments, **named))}
        except BaseException as error:  # noqa: BLE001 - as above
            reply = {"raised": type(error).__name__, "why": described(error)}
        send(outgoing, **reply)


def judge(incoming: IO[str], outgoing: IO[str]) -> None:
    """The tests' side: call the program through the scorer, and say whether every assertion held."""
    message = json.loads(incoming.readline())

    def proxy(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            send(
                outgoing,
                call=name,
                arguments=[encode(value) for value in arguments],
                named={key: encode(value) for key, value in named.items()},
            )
            reply = json.loads(incoming.readline())
            if "value" in reply:
                return decode(reply["value"])
            kind = getattr(builtins, reply["raised"], None)
            error = kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError
            raise error(reply["why"])

        return call

    namespace: dict[str, Any] = {"__name__": "tests"}
    namespace.update({name: proxy(name) for name in message["names"]})
    namespace["candidate"] = namespace.get(message["entry_point"])
    try:
        exec(compile(message["test"], "tests.py", "exec"), namespace)
        if "check" in namespace and "check" not in message["names"]:
            namespace["check"](namespace["candidate"])
    except BaseException as error:  # noqa: BLE001 - an assertion, or what the program raised
        send(outgoing, passed=False, why=described(error))
    else:
        send(outgoing, passed=True)


def described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300].rstrip(": ")
    except BaseException:  # noqa: BLE001 - its text is the program's own code
        return type(error).__name__


TAGS: dict[Any, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
KINDS = {name: kind for kind, name in TAGS.items()}


def encode(value: Any) -> Any:
    """A plain value as JSON that keeps its type. Subclasses lose what they add, so that none can redefine equality."""
    if value is None or type(value) is bool:
        return value
    if hasattr(value, "item") and type(value).__module__ == "numpy":
        value = value.item()
    for scalar in (int, float, str):
        if isinstance(value, scalar):
            return scalar(value)
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for kind, name in TAGS.items():
        if isinstance(value, kind):
            return {name: [encode(item) for item in kind.__iter__(value)]}
    raise TypeError(f"{type(value).__name__} is no plain value")


def decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    if name == "dict":
        return {decode(key): decode(item) for key, item in content}
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "complex":
        return complex(*content)
    return KINDS[name](decode(item) for item in content)
