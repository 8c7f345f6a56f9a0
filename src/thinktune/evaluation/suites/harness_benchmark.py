"""A benchmark that lm-evaluation-harness asks and scores, as a line beside the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from thinktune.errors import DataError
from thinktune.evaluation.lm_eval import load_tasks, run_tasks
from thinktune.evaluation.significance import clustered
from thinktune.evaluation.suites.benchmark import HarnessTask
from thinktune.evaluation.suites.results import BenchmarkScores, write_results
from thinktune.inference.engines import Opened
from thinktune.tags import valid_text

if TYPE_CHECKING:
    from thinktune.evaluation.suites.run_suite import Asked

_OWN = ("n", "stop", "think_budget")
"""Settings that stay the task's: the harness asks each problem once."""


def load_harness_task(named: HarnessTask) -> tuple[Any, int]:
    """Load a task, and count its problems.

    Raises:
        MissingExtra: lm-evaluation-harness is not installed.
        UsageError, DataError: see `load_tasks`.
    """
    tasks = load_tasks([named.task], named.path)
    if named.task not in tasks["tasks"]:
        raise DataError(f"{named.task} is no single task of lm-evaluation-harness")
    return tasks, len(list(tasks["tasks"][named.task].eval_docs))


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
