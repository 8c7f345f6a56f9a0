"""How far a training has come: read from its output and its run folder, so that it is known after a restart, too."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from thinktune.run_folder import RunFolder
from thinktune.studio.batch_jobs import count_lines

Phase = Literal[
    "starting", "preparing", "training", "asking", "merging", "verifying", "answering", "scoring", "scoring_base",
    "sweeping", "swept", "done", "stopped", "failed", "trained",
]  # fmt: skip
_RULE = re.compile(r"^(train|merge|verify|infer|eval tuned|eval base) ─", re.MULTILINE)
_PHASES: dict[str, Phase] = {
    "train": "preparing", "merge": "merging", "verify": "verifying", "infer": "answering", "eval tuned": "scoring",
    "eval base": "scoring_base",
}  # fmt: skip
_MEMBER = re.compile(r"^(\d+) of (\d+): .* ─", re.MULTILINE)
_STEP = re.compile(r"^step (\d+)/(\d+) .*?(\d+) s\s+left", re.MULTILINE | re.DOTALL)
_ERROR = re.compile(r"^thinktune: (.*?)(?=^\S|\Z)|^(\w*Error: .*)$", re.MULTILINE | re.DOTALL)
_STOPPED = "a checkpoint is saved"


@dataclass(frozen=True)
class Progress:
    """A phase with its units done, all units and seconds left, where they are known; the error that ended it."""

    phase: Phase
    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None
    error: str = ""


def read_progress(folder: RunFolder, step: int | None, log: str, logged: float, *, runs: bool) -> Progress:
    """
    Args:
        step: the newest step of the metrics.
        log: the end of the process's output.
        logged: when the output was last written to, as `time.time`.
        runs: the process is there.
    """
    rules = _RULE.findall(log)
    if not runs:
        return _ended(folder, log, finished=bool(rules) and rules[-1] == "eval base")
    phase = _PHASES[rules[-1]] if rules else ("preparing" if log.strip() else "starting")
    if phase == "preparing" and step:
        return Progress("asking") if folder.is_trained else _training(folder, step, log, logged)
    if phase in ("scoring", "scoring_base"):
        model = "tuned" if phase == "scoring" else "base"
        done = sum(count_lines(file) for file in (folder.eval / model).glob("*journal.jsonl"))
        return Progress(phase, done, _problems(folder))
    if phase == "answering":
        return Progress(phase, sum(count_lines(file) for file in folder.infer.glob("*.journal.jsonl")))
    return Progress(phase)


def read_sweep(trained: Sequence[bool], log: str, *, runs: bool) -> Progress:
    """Return how far a sweep has come.

    Args:
        trained: whether each member that was begun is.
        log, runs: as for `read_progress`.
    """
    found = _MEMBER.findall(log)
    at, total = map(int, found[-1]) if found else (None, None)
    if runs:
        return Progress("sweeping", at, total) if at else Progress("preparing" if log.strip() else "starting")
    if _STOPPED not in log and (error := find_error(log)):
        return Progress("failed", error=error)
    whole = bool(trained) and all(trained) and at == total
    return Progress("swept" if whole else "stopped", sum(trained), total)


def _training(folder: RunFolder, step: int, log: str, logged: float) -> Progress:
    total, left = _planned_steps(folder), None
    if found := _STEP.findall(log):
        at, total, seconds = map(int, found[-1])
        rest = max(1, total - at)
        left = max(0.0, seconds * (total - step) / rest - (time.time() - logged if step == at else 0))
    return Progress("training", step, total, left)


def _ended(folder: RunFolder, log: str, *, finished: bool) -> Progress:
    if _STOPPED in log:
        return Progress("stopped")
    if error := find_error(log):
        return Progress("failed", error=error)
    if (folder.eval / "tuned/summary.json").exists() or finished:
        return Progress("done")
    return Progress("trained") if folder.is_trained else Progress("stopped")


def find_error(log: str) -> str:
    """Return the last error that a command has written; "" if there is none."""
    found = _ERROR.findall(log)
    return next(filter(None, found[-1])).strip() if found else ""


def _planned_steps(folder: RunFolder) -> int | None:
    try:
        steps = json.loads(folder.plan.read_text(encoding="utf-8"))["plan"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def _problems(folder: RunFolder) -> int | None:
    """Return the number of problems that a run is scored on, if its config says so."""
    found = re.search(r"^eval:.*?^  sample: (\d+)", folder.config.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return int(found[1]) if found else None
