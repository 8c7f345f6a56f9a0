"""The program's side: define it, report which of the tests' names it has, then answer."""

from __future__ import annotations

import builtins
import io
import json
import sys
import types

from thinktune.scoring.sandbox.exchange.crossing import described
from thinktune.scoring.sandbox.exchange.peer import Peer
from thinktune.scoring.sandbox.exchange.pipes import take_over_pipes

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from typing import IO, Any

_PRINTED = 2**20  # characters of output that one answer takes along


def main() -> None:
    incoming, outgoing = take_over_pipes()
    message = json.loads(incoming.readline())
    peer = Peer(incoming, outgoing, guarded=False)
    connect_streams(peer)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        for name in ("given", "source"):
            exec(compile(message[name], "solution.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:  # noqa: BLE001 - whatever the code raises, SystemExit too, is its answer
        if message["enough"] not in module.__dict__:
            tell(outgoing, {"failed": described(error)})
            return
    names = [name for name in list(module.__dict__) if type(name) is str and name.isidentifier()]
    tell(outgoing, {"names": [name for name in names if not name.startswith("__")]})
    peer.printed.clear()
    peer.offer(module.__dict__)
    peer.serve()


def tell(outgoing: IO[str], message: dict[str, Any]) -> None:
    outgoing.write(json.dumps(message) + "\n")
    outgoing.flush()


def connect_streams(peer: Peer) -> None:
    """Connect the program's standard streams with those that the tests have at that time."""
    sys.stdout = _Output(peer)
    sys.stdin = _Input(peer)

    def read_line(prompt: object = "", /) -> Any:
        return peer.ask("input", str(prompt))

    builtins.input = read_line


class _Output(io.TextIOBase):
    def __init__(self, peer: Peer) -> None:
        self._peer, self._length = peer, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._length = self._length + len(text) if self._peer.printed else len(text)
        if self._length <= _PRINTED:
            self._peer.printed.append(str(text))
        return len(text)


class _Input(io.TextIOBase):
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        return str(self._peer.ask("line", size))

    def read(self, size: int | None = -1, /) -> str:
        return str(self._peer.ask("rest", size))
