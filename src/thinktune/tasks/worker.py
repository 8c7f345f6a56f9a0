"""math-verify in a process of its own, which gives up, or is killed, when it takes too long.

`python -m thinktune.tasks.worker SECONDS` reads `{"reference", "answer"}` lines and writes `{"equal"}` or `{"error"}`
lines. It breaks off by itself after so much processor time; only what does not come back to Python by then (a power of
giant integers) is killed, for a new process costs as much as hundreds of comparisons. It is started when the first
comparison needs it.
"""

from __future__ import annotations

import atexit
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from thinktune.tasks.base import Verdict

_SECONDS = 2.0  # of processor time, so that a busy machine changes no verdict
_CLOCK = 10.0  # by the clock at most, where the process gets hardly any processor time; such a verdict is none
_GRACE = 0.5  # of processor time over the limit, before the process is killed
_START_SECONDS, _START_CLOCK = 30.0, 120.0  # importing sympy
_MEMORY = 2 * 2**30


class Verifier:
    """A conversation with the worker, one comparison at a time.

    Args:
        seconds: of processor time for each comparison.
        clock: seconds by the clock for each.
    """

    def __init__(self, seconds: float = _SECONDS, clock: float = _CLOCK) -> None:
        self._seconds, self._clock = seconds, clock
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()

    def verify(self, reference: str, answer: str) -> Verdict:
        """Whether math-verify finds the two equal. What goes wrong is told in the verdict's note."""
        with self._lock:
            if self._process is None and not self._start():
                return Verdict(False, "math-verify could not be started", failed=True)
            try:
                reply = self._exchange({"reference": reference, "answer": answer}, self._seconds, self._clock)
            except _NoReply as stopped:
                self.close()
                return Verdict(False, f"math-verify {stopped}", failed=stopped.machine)
            if "error" in reply:
                return Verdict(False, f"math-verify: {reply['error']}")
            return Verdict(bool(reply["equal"]))

    def close(self) -> None:
        """End the process, whatever it is doing. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> bool:
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thinktune.tasks.worker", str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        try:
            if self._exchange({"reference": "1", "answer": "1"}, _START_SECONDS, _START_CLOCK) == {"equal": True}:
                return True
        except _NoReply:
            pass
        self.close()
        return False

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _exchange(self, message: dict[str, str], seconds: float, clock: float) -> dict[str, Any]:
        """
        Raises:
            _NoReply: there was none in time, or the process is gone.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise _NoReply("died") from None
        reply: dict[str, Any] = json.loads(self._await(seconds, clock))
        return reply

    def _await(self, seconds: float, clock: float) -> str:
        assert self._process is not None
        process, started = psutil.Process(self._process.pid), time.monotonic()
        before = None
        while time.monotonic() - started < clock:
            try:
                line = self._lines.get(timeout=0.05)
            except queue.Empty:
                used = _processor_time(process)
                before = used if before is None else before
                if used - before > seconds + _GRACE:
                    raise _NoReply(_too_long(seconds)) from None
                continue
            if not line:
                raise _NoReply("died")
            return line
        raise _NoReply(f"got too little processor time to end within {clock:g} s", machine=True)


class _NoReply(Exception):
    """Why there is no verdict. `machine`: the answer is not to blame."""

    def __init__(self, why: str, *, machine: bool = False) -> None:
        super().__init__(why)
        self.machine = machine


def _processor_time(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.Error:  # gone; its last line is there, or the empty one
        return 0.0


def _too_long(seconds: float) -> str:
    return f"did not end within {seconds:g} s of processor time"


_IDLE: queue.LifoQueue[Verifier] = queue.LifoQueue()


def verify(reference: str, answer: str) -> Verdict:
    """Compare in a process that is free, or in a new one: threads that score at once do not wait for each other."""
    try:
        verifier = _IDLE.get_nowait()
    except queue.Empty:
        verifier = Verifier()
        atexit.register(verifier.close)
    try:
        return verifier.verify(reference, answer)
    finally:
        _IDLE.put(verifier)


def main() -> None:
    """The worker's side."""
    seconds = float(sys.argv[1])
    _limit_memory()
    from math_verify import parse, verify  # type: ignore[attr-defined,unused-ignore]

    for line in sys.stdin:
        message = json.loads(line)
        try:
            with _time_limit(seconds):
                # Bare answers parse to nothing; in a box they are taken as one. Gold comes first: the order matters.
                gold, target = (
                    parse(f"\\boxed{{{message[name]}}}", parsing_timeout=None) for name in ("reference", "answer")
                )
                reply: dict[str, Any] = {"equal": bool(gold and target and verify(gold, target, timeout_seconds=None))}
        except _TimeIsUp:
            reply = {"error": _too_long(seconds)}
        except Exception as error:  # noqa: BLE001 - a model may write anything, and sympy may raise anything at it
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(reply), flush=True)


class _TimeIsUp(BaseException):
    """Not an Exception: math-verify and sympy catch those and try the next way."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUp` after so much processor time, as soon as Python runs again."""
    if not hasattr(signal, "setitimer"):  # not on Windows
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeIsUp

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    main()
