"""A user's reward: a function, named `module:function`, that says how much a completion is worth.

def brief(prompt: str, completion: str, gold: dict) -> float:
    return -len(completion) / 1000

`python -m thinktune.scoring.own_reward module:function` is the process that calls it: it reads a line of JSON a call,
`{"prompt", "completion", "gold"}`, and writes `{"value"}`, `{"error"}` (the function raised) or `{"fault"}` (it cannot
be used), after a first line that says whether there is such a function.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from thinktune.errors import ConfigError
from thinktune.plugins import load_function

logger = logging.getLogger(__name__)

_SECONDS = 60.0
_START_SECONDS = 300.0  # importing, which may load a model that judges


class OwnReward:
    """Calls a user's function in processes that are killed if it does not return in time.

    Args:
        seconds: wall-clock seconds allowed for a call.

    Raises:
        ConfigError: there is no such function.
    """

    def __init__(self, reference: str, seconds: float = _SECONDS) -> None:
        self._reference, self._seconds = reference, seconds
        self._failures = itertools.count()  # of all threads
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        self._all: list[_Process] = []
        self._idle.put(self._start())

    def __call__(self, prompt: str, completion: str, gold: Mapping[str, Any]) -> float | None:
        """Return the function's value; None: it raised or did not return, which the first time is logged.

        Raises:
            ConfigError: it returned no finite number.
        """
        process = self._take()
        message = {"prompt": prompt, "completion": completion, "gold": dict(gold)}
        reply = process.ask(message, self._seconds)
        if reply is None:
            reply = {"error": f"did not return within {self._seconds:g} s, or ended its process"}
        else:
            self._idle.put(process)
        if "fault" in reply:
            raise ConfigError(f"{self._reference} {reply['fault']}", hint="a reward is a finite number")
        if "error" in reply and next(self._failures) == 0:
            logger.warning(f"{self._reference} failed on a completion, which is left out: {reply['error']}")
        return reply.get("value")

    def close(self) -> None:
        """End the processes at once. Safe to call twice."""
        for process in self._all:
            process.kill()

    def _take(self) -> _Process:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return self._start()

    def _start(self) -> _Process:
        process = _Process(self._reference)
        self._all.append(process)
        reply = process.receive(_START_SECONDS)
        if reply is None or "fault" in reply:
            process.kill()
            raise ConfigError(reply["fault"] if reply else f"{self._reference}: its module cannot be imported")
        return process


class _Process:
    def __init__(self, reference: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thinktune.scoring.own_reward", reference],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that its own children are killed with it, and Ctrl-C does not reach it first
        )

    def ask(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """Send a message and return the reply; None: there was none in time, and the process is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message, default=str) + "\n")
            self._process.stdin.flush()
        except OSError:
            return None
        return self.receive(seconds)

    def receive(self, seconds: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        timer = threading.Timer(seconds, self.kill)
        timer.daemon = True
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line.endswith("\n"):
            self.kill()
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def main() -> None:
    """Call the function for every line of stdin. What it prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    reference = sys.argv[1]
    try:
        function = load_function(reference, "rl.rewards")
    except ConfigError as error:
        print(json.dumps({"fault": error.message}), file=replies, flush=True)
        return
    print("{}", file=replies, flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            reply = _reply(function(message["prompt"], message["completion"], message["gold"]))
        except Exception as error:  # noqa: BLE001 - a user's code on a model's text: the others are rewarded
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), file=replies, flush=True)


def _reply(value: Any) -> dict[str, Any]:
    try:
        number = float(value) if not isinstance(value, str) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    return {"value": number} if math.isfinite(number) else {"fault": f"returned {value!r}"[:200]}


if __name__ == "__main__":
    main()
