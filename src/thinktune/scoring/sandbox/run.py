"""Runs a program that a model wrote: against tests, in two confined processes (see `jail`), and relays between them; or
as a whole on an input, in one.

This is containment, not a sandbox: it holds mistakes and mischief (endless loops, fork bombs, full disks, faked
success), not somebody who attacks the kernel. For programs of models that nobody trusts, name a container command in
THINKTUNE_CODE_RUNNER.
"""

from __future__ import annotations

import base64
import json
import re
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from thinktune.scoring.base import Verdict
from thinktune.scoring.sandbox import exchange
from thinktune.scoring.sandbox.side import RUNNER, Limits, Side, Stopped

__all__ = ["RUNNER", "Limits", "Written", "run_program", "run_trial"]


def run_trial(
    source: str, test: str, entry_point: str, limits: Limits | None = None, *, given: str = "", whole: bool = False
) -> Verdict:
    """Return whether a program passes tests; the verdict's note says why not, and `failed` that it could not be told.

    Args:
        source: code that defines `entry_point`, and all else that the tests use.
        test: asserts, by themselves, in `check(candidate)` as in HumanEval, in classes of unittest or in functions of
            pytest.
        entry_point: name of the tested object, or of a method of it: `Solution().add`.
        given: code that is run before the source, in the same module.
        whole: an error anywhere in the source fails it; else not one below the tested object, as in an example or in a
            test of the model's own, which is not what was asked for.
    """
    limits = limits or Limits()
    first = re.split(r"[.(]", entry_point)[0]
    deadline = time.monotonic() + limits.seconds
    with (
        Side("program", _modules("program"), limits, deadline) as program,
        Side("tests", _modules("tests"), limits, deadline, beside=program) as tests,
    ):
        try:
            program.send({"given": given, "source": source, "enough": "" if whole else first})
            ready = json.loads(program.receive())
            if "failed" in ready:
                return Verdict(False, f"the program fails before it is called: {ready['failed']}")
            names = [name for name in ready["names"] if isinstance(name, str) and name.isidentifier()]
            if first not in names:
                return Verdict(False, f"the program does not define {entry_point}")
            tests.send({"test": test, "entry_point": entry_point, "names": names})
            while not (line := tests.receive()).startswith(b"!"):
                program.send(line)
                tests.send(program.receive())
            verdict = json.loads(line[1:])
            return Verdict(verdict["outcome"] == "passed", verdict["why"], failed=verdict["outcome"] == "error")
        except Stopped as stopped:
            return Verdict(False, str(stopped), failed=stopped.unsaid)
        except (ValueError, KeyError, TypeError, RecursionError):  # the program took the pipe over
            return Verdict(False, "the program does not answer as agreed")


@dataclass(frozen=True)
class Written:
    """The output of a program; or why there is none, and `unsaid` that there could have been one."""

    output: str = ""
    fault: str | None = None
    unsaid: bool = False


def run_program(source: str, given_input: str, limits: Limits | None = None, *, given: str = "") -> Written:
    """Run a program on an input, and return what it writes. Nothing else of a problem is in its process.

    Args:
        given: code that is run before the source, in the same module.
    """
    limits = limits or Limits()
    with Side("program", _modules("whole program"), limits, time.monotonic() + limits.seconds) as side:
        try:
            side.send({"given": given, "source": source, "input": given_input})
            answer = json.loads(side.receive())
            if "failed" in answer:
                return Written(fault=f"the program {answer['failed']}")
            return Written(base64.b64decode(answer["output"]).decode(errors="replace"))
        except Stopped as stopped:
            return Written(fault=str(stopped), unsaid=stopped.unsaid)
        except (ValueError, KeyError, TypeError, RecursionError):  # the program took the pipe over
            return Written(fault="the program does not answer as agreed")


_MODULES: dict[str, tuple[str, ...]] = {
    "program": ("values", "proxies", "permission", "crossing", "peer", "pipes", "program"),
    "tests": ("values", "proxies", "permission", "crossing", "peer", "pipes", "runners", "judge"),
    "whole program": ("pipes", "whole_program"),
}
"""The modules of `exchange` in the process of each side, each after its own imports."""


@cache
def _modules(role: str) -> dict[str, str]:
    folder = Path(str(exchange.__file__)).parent
    texts = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES[role]}
    return {f"thinktune.scoring.sandbox.exchange.{name}": text for name, text in texts.items()}
