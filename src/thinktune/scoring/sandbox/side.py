"""One side of a trial: a confined process, the pipes to it, and the limits that the system does not keep."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import marshal
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psutil

from thinktune.scoring.sandbox import containment, jail
from thinktune.scoring.sandbox.containment import WAYS, Way

log = logging.getLogger(__name__)

RUNNER = "THINKTUNE_CODE_RUNNER"
"""Environment variable: the command that runs a Python in a container, as `COMMAND -I -c SCRIPT SETTINGS MODULES`."""

Role = Literal["program", "tests"]

_TICK = 0.05  # seconds between two looks at how much a process takes
_LONGEST_LINE = 64 * 2**20
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_PATIENCE = 10  # times `seconds`, after which a machine is too busy to tell
_HOLDS = ("files", "network", "processes")  # what a way of isolation must hold to be taken


@dataclass(frozen=True)
class Limits:
    """Limits of a program and its tests, each; `seconds` for both together, sizes in bytes.

    Processor time decides, so that a busy machine changes no verdict; `seconds` is for code that waits, and the time
    does not count in which its processes waited for a processor (Linux tells how long).
    """

    cpu_seconds: float = 10.0
    seconds: float = 30.0
    memory: int = 2**30
    disk: int = 64 * 2**20
    processes: int = 8


class Stopped(Exception):
    """The reason why a side will not answer any more. `unsaid`: the program could have been right."""

    def __init__(self, why: str, *, unsaid: bool = False) -> None:
        super().__init__(why)
        self.unsaid = unsaid


class Side:
    """One of the two processes, and the pipes to it, which never block.

    Args:
        modules: names and texts of modules that the process loads in this order; it runs `main()` of the last.
        deadline: of `time.monotonic`.
        beside: another side whose limits are seen to while this one is waited for.
        way: how the process is confined; the best that works here if None.
    """

    def __init__(
        self,
        role: Role,
        modules: dict[str, str],
        limits: Limits,
        deadline: float,
        *,
        beside: Side | None = None,
        way: Way | None = None,
    ) -> None:
        self._role, self._limits, self._deadline = role, limits, deadline
        self._watched = [self] if beside is None else [self, beside]
        self._looked = time.monotonic()
        self._queued = 0.0
        self._buffer = bytearray()
        self._held: dict[str, bool] | None = None
        runner = shlex.split(os.environ.get(RUNNER, "")) if role == "program" else []
        self._way: Way = "limits" if runner else way or best_way()  # a container has its own way
        if runner:  # it may have another Python
            command, sent = [*runner, "-I", "-c", _jail_source()], json.dumps({"texts": modules})
        else:
            command = [*containment.begin(self._way), sys.executable, "-I", "-c", _START, _compiled_jail()]
            sent = _compiled(tuple(modules.items()))
        self._scratch = tempfile.mkdtemp(prefix="thinktune-trial-")
        os.chmod(self._scratch, 0o777)  # the name is not to be guessed, and the owner another user
        settings = asdict(limits) | {"role": role, "scratch": self._scratch} | containment.settings(self._way, role)
        if runner:
            settings["mounts"] = []  # the container's own files are what a program may see
        settings["seconds"] = _PATIENCE * limits.seconds + 1  # the outer process ends it where nobody else does
        home = self._scratch if self._way == "limits" else "/tmp"
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": home, "USER": "nobody"}
        self._process = subprocess.Popen(
            [*command, json.dumps(settings), sent],
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

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and all its descendants, and take the scratch folder away."""
        self._process.terminate()  # the outer process then ends the inner one, which ends everything in it
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
        """Send a message, or a line of the other side as it came. Raises Stopped."""
        data = memoryview((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n")
        while data:
            self._wait(writing=True)
            try:
                data = data[os.write(self._in, data[:65536]) :]
            except BlockingIOError:
                continue
            except OSError:
                self.held()
                raise self._ended() from None

    def receive(self) -> bytes:
        """Receive a line, without its end. Raises Stopped."""
        self.held()
        return self._line()

    def held(self) -> dict[str, bool]:
        """Return the protections that the process found in force before it got any code, or raise Stopped."""
        if self._held is None:
            try:
                line = self._line()
                self._held = {str(name): bool(value) for name, value in json.loads(line).items()}
            except (ValueError, AttributeError):
                raise Stopped(f"the {self._role} could not be confined: {line[:200]!r}", unsaid=True) from None
        return self._held

    def _line(self) -> bytes:
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            self._wait(writing=False)
            try:
                data = os.read(self._out, 65536)
            except BlockingIOError:
                continue
            if not data:
                raise self._ended()
            self._buffer += data
            if len(self._buffer) > _LONGEST_LINE:
                raise Stopped(f"the {self._role} returned more than {_LONGEST_LINE // 2**20} MB", unsaid=True)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _ended(self) -> Stopped:
        if self._held is None:  # no fault of the program, which it was not told yet
            return Stopped(f"the process of the {self._role} could not be started or confined", unsaid=True)
        return Stopped(f"the {self._role} ended before an answer")

    def _wait(self, *, writing: bool) -> None:
        """Wait until the pipe is ready, and meanwhile enforce the limits that the system does not keep."""
        while True:
            queued = sum(side._queued for side in self._watched)
            if (late := time.monotonic() - self._deadline) > queued:
                raise Stopped(f"did not end within {self._limits.seconds:g} s", unsaid=self._held is None)
            if late > (_PATIENCE - 1) * self._limits.seconds:
                raise Stopped(f"waited for a processor for most of {_PATIENCE * self._limits.seconds:g} s", unsaid=True)
            readable, writable = ([], [self._in]) if writing else ([self._out], [])
            ready = any(select.select(readable, writable, [], _TICK))
            if time.monotonic() - self._looked > _TICK * 0.9:
                for side in self._watched:
                    side._check_limits()
                self._looked = time.monotonic()
            if ready:
                return

    def _check_limits(self) -> None:
        processes = self._descendants()
        if len(processes) > self._limits.processes + 1 + (self._way == "bubblewrap"):
            raise Stopped(f"started more than {self._limits.processes} processes")
        memory, seconds = 0, 0.0
        self._queued = max(self._queued, sum(map(_queued, processes)))
        for process in processes:
            with contextlib.suppress(psutil.Error):
                seconds += sum(process.cpu_times()[:4])  # its own, and of its children that ended
                memory += process.memory_info().rss
        if seconds > self._limits.cpu_seconds:
            raise Stopped(f"took more than {self._limits.cpu_seconds:g} s of processor time")
        if memory > self._limits.memory and _proportional(processes) > self._limits.memory:
            raise Stopped(f"took more than {self._limits.memory // 2**20} MB of memory")
        if sum(file.stat().st_size for file in Path(self._scratch).iterdir() if file.is_file()) > self._limits.disk:
            raise Stopped(f"wrote more than {self._limits.disk // 2**20} MB")

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return []


def _queued(process: psutil.Process) -> float:
    """Return the seconds in which a process was ready to run and others had the processors; 0 where no system tells."""
    total = 0
    with contextlib.suppress(OSError):  # it ended, or there is no such folder
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                total += int(Path(f"/proc/{process.pid}/task/{thread}/schedstat").read_text().split()[1])
    return total / 1e9


def _proportional(processes: list[psutil.Process]) -> int:
    """Sum the bytes that processes hold together, each page once; processes that cannot be inspected count whole."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.AccessDenied, AttributeError):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        except psutil.Error:  # it ended
            continue
    return total


def protections(way: Way | None = None) -> dict[str, bool]:
    """Try a way of confinement and return the protections in force; none if it is unavailable.

    Keys: files (sees none of the user's), network (none), processes (sees no others), calls (dangerous system calls
    are refused), capabilities (has none), user (is another one).
    """
    limits = Limits(seconds=10.0)
    packages = sysconfig.get_path("purelib")
    look = f"import colorsys, os\n\ndef main():\n    os.listdir({packages!r})\n    print('{{}}', flush=True)\n"
    try:
        with Side("tests", {"look": look}, limits, time.monotonic() + limits.seconds, way=way) as side:
            side.receive()  # Python finds its modules
            return side.held()
    except (Stopped, OSError):
        return {}


@cache
def best_way() -> Way:
    """Return the first way of confinement that was tried here and holds."""
    for way in WAYS[:-1]:
        if sys.platform == "linux" and all(protections(way).get(name) for name in _HOLDS):
            return way
    missing = [name for name in _HOLDS if not protections(WAYS[-1]).get(name)]
    log.warning(
        "Programs of models are run with limits, but not wholly apart: this system permits no namespaces, so that "
        "nothing keeps them from your %s. Install bubblewrap, or name a container command in %s.",
        " and ".join(missing),
        RUNNER,
    )
    return WAYS[-1]


@cache
def _jail_source() -> str:
    return Path(jail.__file__).read_text(encoding="utf-8")


_START = (
    "import binascii, marshal, sys, zlib; exec(marshal.loads(zlib.decompress(binascii.a2b_base64(sys.argv.pop(1)))))"
)
"""Runs `jail` as it was compiled here: a trial is short, and to compile it anew took a good part of its time."""


@cache
def _compiled_jail() -> str:
    return _as_text(compile(_jail_source(), "jail", "exec", dont_inherit=True))


@lru_cache(maxsize=16)
def _compiled(modules: tuple[tuple[str, str], ...]) -> str:
    code = {name: compile(text, name, "exec", dont_inherit=True) for name, text in modules}
    return json.dumps({"version": sys.version, "compiled": _as_text(code)})


def _as_text(compiled: Any) -> str:
    """Compress to text: Linux takes no argument of 128 KB."""
    return base64.b64encode(zlib.compress(marshal.dumps(compiled))).decode()
