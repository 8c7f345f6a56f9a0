"""math-verify in a process of its own, which gives up, or is killed, when it takes too long.

`python -m thinktune.scoring.math_answers.verify_worker SECONDS` reads `{"number", "reference", "answer"}` lines and
writes `{"number", "equal", "note"}` or `{"number", "error"}` lines, after a line `{"child"}` with the id of the
comparing process. It breaks off by itself after so much processor time; a call that does not return to Python by then
is killed. Only the child that compares is killed: its parent, which has imported sympy in seconds, forks another one at
once. All of it is started when the first comparison needs it.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from thinktune.scoring.base import Verdict

_SECONDS = 2.0  # of processor time, so that a busy machine changes no verdict
_CLOCK = 10.0  # by the clock at most, where the process gets hardly any processor time; such a verdict is none
_GRACE = 0.5  # of processor time over the limit, before the process is killed
_START_CLOCK = 120.0  # importing sympy
_MEMORY = 2 * 2**30


class Verifier:
    """A conversation with the worker, one comparison at a time.

    Args:
        seconds: processor time allowed for each comparison.
        clock: wall-clock seconds allowed for each.
    """

    def __init__(self, seconds: float = _SECONDS, clock: float = _CLOCK) -> None:
        self._seconds, self._clock = seconds, clock
        self._process: subprocess.Popen[str] | None = None
        self._child = self._number = 0
        self._lines: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()

    def verify(self, reference: str, answer: str) -> Verdict:
        """Return whether math-verify finds the two equal. Failures are told in the verdict's note."""
        with self._lock:
            if self._process is None and not self._start():
                return Verdict(False, "math-verify could not be started", failed=True)
            try:
                reply = self._exchange(reference, answer)
            except _NoReply as stopped:
                self._replace()
                return Verdict(False, f"math-verify {stopped}", failed=stopped.machine)
            if "error" in reply:
                return Verdict(False, f"math-verify: {reply['error']}")
            return Verdict(bool(reply["equal"]), reply.get("note"))

    def close(self) -> None:
        """End the process at once. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()  # first, so that it has no further child
            self._kill_child()
            process.wait()

    def _replace(self) -> None:
        """Kill the child that does not answer, and wait for the next one."""
        self._kill_child()
        try:
            self._greet(_START_CLOCK)
        except _NoReply:
            self.close()

    def _kill_child(self) -> None:
        child, self._child = self._child, 0
        if child:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def _greet(self, clock: float) -> None:
        """Read the id of the process that will answer next. Pending lines of the one before are skipped."""
        ended = time.monotonic() + clock
        while (left := ended - time.monotonic()) > 0:
            try:
                message = self._receive(left)
            except queue.Empty:
                break
            if "child" in message:
                return
        raise _NoReply("did not start", machine=True)

    def _receive(self, seconds: float) -> dict[str, Any]:
        """Wait for the next message.

        Raises:
            queue.Empty: nothing came.
            _NoReply: nothing will.
        """
        line = self._lines.get(timeout=seconds)
        if not line:
            self._lines.put(line)  # for whoever asks next
            raise _NoReply("died")
        message: dict[str, Any] = json.loads(line)
        self._child = message.get("child", self._child)
        return message

    def _start(self) -> bool:
        self._lines = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thinktune.scoring.math_answers.verify_worker", str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        try:
            self._greet(_START_CLOCK)
        except _NoReply:
            self.close()
            return False
        return True

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _exchange(self, reference: str, answer: str) -> dict[str, Any]:
        """Send a comparison and return its reply.

        Raises:
            _NoReply: there was none in time, or the process is gone.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        self._number += 1
        message = {"number": self._number, "reference": reference, "answer": answer}
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise _NoReply("died") from None
        started, before = time.monotonic(), None
        while time.monotonic() - started < self._clock:
            try:
                reply = self._receive(0.05)
            except queue.Empty:
                used = _processor_time(self._child)
                before = used if before is None else before
                if used - before > self._seconds + _GRACE:
                    raise _NoReply(_too_long(self._seconds)) from None
                continue
            if "child" in reply:  # there is another one already
                raise _NoReply("died")
            if reply["number"] == self._number:  # not what was asked of a child that is gone
                return reply
        raise _NoReply(f"got too little processor time to end within {self._clock:g} s", machine=True)


class _NoReply(Exception):
    """The reason for a missing verdict. `machine`: the answer is not to blame."""

    def __init__(self, why: str, *, machine: bool = False) -> None:
        super().__init__(why)
        self.machine = machine


def _processor_time(child: int) -> float:
    try:
        return float(sum(psutil.Process(child).cpu_times()[:2]))
    except psutil.Error:  # gone; its last line is there, or the next one's
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
    """Run the worker: have a child compare, and fork another one if it was killed."""
    _limit_memory()
    from thinktune.scoring.math_answers import symbolic

    symbolic.equal("x+1", "1+x")  # builds the parsers, once for all children
    while True:
        child = os.fork()
        if not child:
            with suppress(BrokenPipeError):  # nobody listens any more
                _answer(float(sys.argv[1]))
            os._exit(0)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            return


def _answer(seconds: float) -> None:
    from thinktune.scoring.math_answers import symbolic

    print(json.dumps({"child": os.getpid()}), flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        reply: dict[str, Any] = {"number": message["number"]}
        try:
            with _time_limit(seconds):
                reply["equal"] = symbolic.equal(message["reference"], message["answer"])
        except symbolic.Undecided as why:
            reply |= {"equal": False, "note": f"not decided: {why}"}
        except _TimeIsUp:
            reply["error"] = _too_long(seconds)
        except Exception as error:  # noqa: BLE001 - a model may write anything, and sympy may raise anything at it
            reply["error"] = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps(reply), flush=True)


class _TimeIsUp(BaseException):
    """Not an Exception: math-verify and sympy catch those and try the next way."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_TimeIsUp` after so much processor time, as soon as Python runs again."""

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
