"""Runs a program that a model wrote against tests, in two confined processes (see `jail`), and relays between them.

This is containment, not a sandbox: it holds mistakes and mischief (endless loops, fork bombs, full disks, faked
success), not somebody who attacks the kernel. Where programs come from models nobody trusts, name a container command
in THINKTUNE_CODE_RUNNER.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil

from thinktune.tasks import jail
from thinktune.tasks.base import Verdict

RUNNER = "THINKTUNE_CODE_RUNNER"
"""Environment variable: the command that runs a Python in a container, as `COMMAND -I -c SCRIPT SETTINGS MODULES`."""

_TICK = 0.05  # seconds between two looks at how much a process takes
_LONGEST_LINE = 64 * 2**20
_FIRST_USER = 60_000  # users that own nothing; each process has one of its own


@dataclass(frozen=True)
class Limits:
    """What a program and its tests may take, each; `seconds` for both together, sizes in bytes.

    Processor time decides, so that a busy machine changes no verdict; `seconds` is for what waits.
    """

    cpu_seconds: float = 10.0
    seconds: float = 30.0
    memory: int = 2**30
    disk: int = 64 * 2**20
    processes: int = 8


class _Stopped(Exception):
    """Why a side will not answer any more. `unsaid`: it could have been right."""

    def __init__(self, why: str, *, unsaid: bool = False) -> None:
        super().__init__(why)
        self.unsaid = unsaid


def run_trial(source: str, test: str, entry_point: str, limits: Limits | None = None, *, given: str = "") -> Verdict:
    """Whether a program passes tests; the verdict's note says why not, and `failed` that it could not be told.

    Args:
        source: defines `entry_point`, and whatever else the tests use.
        test: asserts, by themselves, in `check(candidate)` as in HumanEval, in classes of unittest or in functions of
            pytest.
        entry_point: the name of what is tested, or of a method of it: `Solution().add`.
        given: code that is run before the source, in the same module.
    """
    limits = limits or Limits()
    deadline = time.monotonic() + limits.seconds
    with _Side("program", limits, deadline) as program, _Side("tests", limits, deadline) as tests:
        try:
            program.send({"given": given, "source": source})
            ready = json.loads(program.receive())
            if "failed" in ready:
                return Verdict(False, f"the program fails before it is called: {ready['failed']}")
            names = [name for name in ready["names"] if isinstance(name, str) and name.isidentifier()]
            if re.split(r"[.(]", entry_point)[0] not in names:
                return Verdict(False, f"the program does not define {entry_point}")
            tests.send({"test": test, "entry_point": entry_point, "names": names})
            while not (line := tests.receive()).startswith(b"!"):
                program.send(line)
                tests.send(program.receive())
            verdict = json.loads(line[1:])
            return Verdict(verdict["outcome"] == "passed", verdict["why"], failed=verdict["outcome"] == "error")
        except _Stopped as stopped:
            return Verdict(False, str(stopped), failed=stopped.unsaid)
        except (ValueError, KeyError, TypeError, RecursionError):  # the program took the pipe over
            return Verdict(False, "the program does not answer as agreed")


class _Side:
    """One of the two processes, and the pipes to it, which never block."""

    def __init__(self, role: Literal["program", "tests"], limits: Limits, deadline: float) -> None:
        self._role, self._limits, self._deadline = role, limits, deadline
        self._scratch = tempfile.mkdtemp(prefix="thinktune-trial-")
        os.chmod(self._scratch, 0o777)  # the name is not to be guessed, and the owner another user
        self._buffer = bytearray()
        runner = shlex.split(os.environ.get(RUNNER, "")) if role == "program" else []
        settings = asdict(limits) | {"role": role, "scratch": self._scratch, **_user(role)}
        settings["seconds"] = limits.seconds + 1  # the outer process ends it where nobody else does
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": self._scratch}
        self._process = subprocess.Popen(
            [*(runner or [sys.executable]), "-I", "-c", _jail_source(), json.dumps(settings), _modules(role)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._scratch,
            env=dict(os.environ) if runner else environment | _ONE_THREAD,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def __enter__(self) -> _Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and all its descendants, and take the scratch folder away."""
        self._process.terminate()  # the outer process then kills the inner one, which ends everything in it
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        for process in self._descendants():
            with contextlib.suppress(psutil.Error):
                process.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def send(self, message: dict[str, Any] | bytes) -> None:
        """A message, or a line of the other side as it came."""
        data = memoryview((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n")
        while data:
            self._wait(writing=True)
            try:
                data = data[os.write(self._in, data[:65536]) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _Stopped(f"the {self._role} ended before an answer") from None

    def receive(self) -> bytes:
        """A line, without its end."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            self._wait(writing=False)
            try:
                data = os.read(self._out, 65536)
            except BlockingIOError:
                continue
            if not data:
                raise _Stopped(f"the {self._role} ended before an answer")
            self._buffer += data
            if len(self._buffer) > _LONGEST_LINE:
                raise _Stopped(f"the {self._role} returned more than {_LONGEST_LINE // 2**20} MB", unsaid=True)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _wait(self, *, writing: bool) -> None:
        """Until the pipe is ready; meanwhile see to the limits that the system does not keep."""
        while True:
            if time.monotonic() > self._deadline:
                raise _Stopped(f"did not end within {self._limits.seconds:g} s")
            readable, writable = ([], [self._in]) if writing else ([self._out], [])
            if any(select.select(readable, writable, [], _TICK)):
                return
            self._check_limits()

    def _check_limits(self) -> None:
        processes = self._descendants()
        if len(processes) > self._limits.processes + 1:
            raise _Stopped(f"started more than {self._limits.processes} processes")
        memory, seconds = 0, 0.0
        for process in processes:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
                seconds += sum(process.cpu_times()[:2])
        if seconds > self._limits.cpu_seconds:
            raise _Stopped(f"took more than {self._limits.cpu_seconds:g} s of processor time")
        if memory > self._limits.memory:
            raise _Stopped(f"took more than {self._limits.memory // 2**20} MB of memory")
        if sum(file.stat().st_size for file in Path(self._scratch).iterdir() if file.is_file()) > self._limits.disk:
            raise _Stopped(f"wrote more than {self._limits.disk // 2**20} MB")

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return []


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


_MODULES: dict[str, tuple[str, ...]] = {
    "program": ("values", "proxies", "permission", "crossing", "peer", "pipes", "program"),
    "tests": ("values", "proxies", "permission", "crossing", "peer", "pipes", "runners", "judge"),
}
"""Of `exchange`, by side: what its process is made of, each after what it imports."""


@cache
def _jail_source() -> str:
    return Path(jail.__file__).read_text(encoding="utf-8")


@cache
def _modules(role: str) -> str:
    folder = Path(jail.__file__).parent / "exchange"
    texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES[role]}
    return json.dumps({f"thinktune.tasks.exchange.{name}": text for name, text in texts.items()})


def _user(role: str) -> dict[str, Any]:
    """The user that a process of root becomes, and whether it must keep the right to read root's own files."""
    if not hasattr(os, "getuid") or os.getuid() != 0:
        return {"user": None, "read_all": False}
    number = _FIRST_USER + (time.monotonic_ns() // 1000 * 2 + (role == "tests")) % 5000
    return {"user": number, "read_all": not _python_is_public()}


@cache
def _python_is_public() -> bool:
    places = {Path(place).resolve() for place in (sys.prefix, sys.base_prefix, os.__file__, sys.executable)}
    folders = {folder for place in places for folder in place.parents}
    return all(folder.stat().st_mode & 0o001 for folder in folders)
