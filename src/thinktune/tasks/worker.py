"""math-verify in a process of its own, which is killed when it takes too long.

`python -m thinktune.tasks.worker` reads `{"reference", "answer"}` lines and writes `{"equal"}` or `{"error"}` lines.
The process is started when the first comparison needs it, and anew after it was killed.
"""

from __future__ import annotations

import atexit
import json
import queue
import subprocess
import sys
import threading
import time
from typing import Any

import psutil

from thinktune.tasks.base import Verdict

_START_SECONDS = 60.0  # importing sympy on a busy machine
_SECONDS = 3.0
_PATIENCE = 12  # times as long by the clock
_MEMORY = 2 * 2**30


class Verifier:
    """A conversation with the worker, one comparison at a time."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._lock = threading.Lock()

    def verify(self, reference: str, answer: str) -> Verdict:
        """Whether math-verify finds the two equal. What goes wrong is told in the verdict's note."""
        with self._lock:
            if self._process is None and not self._start():
                return Verdict(False, "math-verify could not be started", failed=True)
            reply = self._exchange({"reference": reference, "answer": answer}, self._seconds)
            if reply is None:
                self.close()
                return Verdict(False, f"math-verify did not end within {self._seconds:g} s of processor time, or died")
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
            [sys.executable, "-m", "thinktune.tasks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        if self._exchange({"reference": "1", "answer": "1"}, _START_SECONDS) == {"equal": True}:
            return True
        self.close()
        return False

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def _exchange(self, message: dict[str, str], seconds: float) -> dict[str, Any] | None:
        """The reply, or None if there was none in time or the process is gone."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            return None
        line = self._await(seconds)
        reply: dict[str, Any] | None = json.loads(line) if line else None
        return reply

    def _await(self, seconds: float) -> str:
        """The next line, or "" if it would take too long. Processor time decides, so that a busy machine changes no
        verdict; a process that waits for something else is given some more."""
        assert self._process is not None
        process, started = psutil.Process(self._process.pid), time.monotonic()
        before = None
        while time.monotonic() - started < _PATIENCE * seconds:
            try:
                return self._lines.get(timeout=0.1)
            except queue.Empty:
                try:
                    used = sum(process.cpu_times()[:2])
                except psutil.Error:  # gone; its last line is there, or the empty one
                    return self._lines.get(timeout=1.0)
            before = used if before is None else before
            if used - before > seconds:
                break
        return ""


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
    _limit_memory()
    from math_verify import parse, verify  # type: ignore[attr-defined,unused-ignore]

    for line in sys.stdin:
        message = json.loads(line)
        try:
            # Bare answers parse to nothing; in a box they are taken as one. Gold comes first: the order matters.
            gold, target = (
                parse(f"\\boxed{{{message[name]}}}", parsing_timeout=None) for name in ("reference", "answer")
            )
            reply: dict[str, Any] = {"equal": bool(gold and target and verify(gold, target, timeout_seconds=None))}
        except Exception as error:  # noqa: BLE001 - a model may write anything, and sympy may raise anything at it
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(reply), flush=True)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    main()
