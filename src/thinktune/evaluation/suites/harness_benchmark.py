"""A benchmark that lm-evaluation-harness asks and scores, as a line beside the others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from thinktune.errors import DataError, MissingExtra
from thinktune.evaluation.lm_eval import load_tasks, run_tasks
from thinktune.evaluation.significance import clustered
from thinktune.evaluation.suites.benchmark import HarnessTask
from thinktune.evaluation.suites.results import BenchmarkScores, write_results
from thinktune.inference.engines import Opened
from thinktune.tags import valid_text

if TYPE_CHECKING:
    from thinktune.evaluation.suites.run_suite import Asked

_NLTK_DATA = re.compile(r"Resource (?:'|\x1b\[\d+m)*(\w+)")
_OWN = ("n", "stop", "think_budget")
"""Settings that stay the task's: the harness asks each problem once."""


def load_harness_task(named: HarnessTask) -> tuple[Any, int]:
    """Load a task, and count its problems.

    Raises:
        MissingExtra: lm-evaluation-harness is not installed, or what the task needs.
        UsageError, DataError: see `load_tasks`.
    """
    tasks = load_tasks([named.task], named.path)
    if named.task not in tasks["tasks"]:
        raise DataError(f"{named.task} is no single task of lm-evaluation-harness")
    problems = list(tasks["tasks"][named.task].eval_docs)
    _require_scorable(tasks["tasks"][named.task], problems)
    return tasks, len(problems)


def _require_scorable(task: Any, problems: Sequence[Any]) -> None:
    """Score a reply to each problem that nobody gave, before any is asked: a check may read data only when it comes to
    it, as IFEval's of sentences do.

    Raises:
        MissingExtra: something is missing.
    """
    for problem in problems:
        try:
            task.process_results(problem, ["Yes."])
        except Exception as error:  # noqa: BLE001 - the reply may be one that a task cannot score
            needed, remedy = None, ""
            if isinstance(error, ModuleNotFoundError):
                needed, remedy = error.name, f"pip install {error.name}"
            elif type(error) is LookupError and (found := _NLTK_DATA.search(str(error))):
                needed = f"{found[1]} of NLTK"
                remedy = f"python -m nltk.downloader {found[1]}; NLTK_DATA names the folder where it lies already"
            if needed:
                raise MissingExtra(f"{task.config.task} of lm-evaluation-harness needs {needed}", hint=remedy) from None


def run_harness_task(
    opened: Opened,
    model: str,
    asked: Asked,
    out: Path,
    tell_format: bool | None,
    overwrite: bool,
    console: Console,
) -> BenchmarkScores:
    """Let the harness ask the problems and score the answers without their thoughts; `tell_format` plays no part."""
    named = asked.benchmark.harness
    assert named is not None
    settings = asked.sampling.model_dump(exclude={*_OWN})
    results, replies = run_tasks(
        opened,
        asked.harness,
        out / "journal.jsonl",
        sample=asked.count,
        sampling=settings,
        answers_only=True,
        overwrite=overwrite,
        console=console,
    )
    task = asked.harness["tasks"][named.task]
    lines = [_line(asked.name, named, task, each) for each in results["samples"][named.task]]
    summary = BenchmarkScores(
        **asked.as_dict(model, opened.fingerprint),
        accuracy=clustered([float(line["value"]) for line in lines], len(lines)),
        measures={},
        cut_off=fmean(reply.finish_reason == "length" for reply in replies) if replies else None,
        well_formed=None,
        mean_tokens=fmean(reply.tokens for reply in replies) if replies else None,
        tokens_per_second=None,
        seconds=0.0,
        asked="as published",
        scorer=f"lm-evaluation-harness {task.VERSION}, {named.metric}",
        outcomes=dict(Counter(line["outcome"] for line in lines).most_common()),
    )
    write_results(out, summary, lines)
    return summary


def _line(name: str, named: HarnessTask, task: Any, sample: dict[str, Any]) -> dict[str, Any]:
    """Make a line of samples.jsonl of a sample of the harness."""
    value = float(sample[named.metric])
    right = value == 1
    return {
        "id": f"{name}:{sample['doc_id']}",
        "type": "harness",
        "prompt": valid_text(str(task.doc_to_text(sample["doc"]))),
        "sample": 0,
        "completion": valid_text(str(sample["filtered_resps"][0])),
        "reference": str(sample["target"]),
        "value": value,
        "correct": right,
        "outcome": "right" if right else "wrong",
    }
