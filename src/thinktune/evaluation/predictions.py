"""Scores of a result file, wherever it was made: `thinktune score res.json gold.jsonl`.

Gold is JSON lines `{"id", "type", "reference", …}`; code carries `test` and `entry_point`. `result_reader` lists the
formats of predictions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from thinktune import tags
from thinktune.errors import DataError
from thinktune.evaluation.metrics import RATES, Line, Problem, Scores, score_problems
from thinktune.evaluation.result_reader import (
    Prediction,
    identity,
    parse,
    read_predictions,
    read_result_file,
    read_text,
    some,
)
from thinktune.evaluation.significance import majority, pass_at_k
from thinktune.files import write_json, write_json_lines
from thinktune.scoring import TASKS, Score, Task, tasks_scored_by

__all__ = [
    "Prediction",
    "PredictionScores",
    "TypeScores",
    "read_gold",
    "read_predictions",
    "score_predictions",
    "scores_table",
]

_GOLD_LINE = 'a line of gold is {"id": …, "type": …, "reference": …}'


@dataclass(frozen=True)
class TypeScores(Scores):
    """Scores of one item type, over all problems of the gold file: a missing prediction counts as wrong.

    Attributes:
        measures: pass@k and maj@n if there are several samples; bleu and chrf of free text, 0 to 100.
    """

    measures: dict[str, float]


@dataclass(frozen=True)
class PredictionScores:
    """Scores by item type, the ids that only one of the two files has, and notes about the files."""

    types: dict[str, TypeScores]
    without_prediction: list[str]
    without_gold: list[str]
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def remarks(self) -> list[str]:
        """List the ids that do not match and the predictions that cannot be read, a line each."""
        lists = (
            ("gold items have no prediction and count as wrong", self.without_prediction),
            ("predictions have no gold and are not scored", self.without_gold),
        )
        return [*(f"{len(ids)} {text}: {some(ids)}" for text, ids in lists if ids), *self.notes]


def score_predictions(
    predictions: Path,
    gold: Path,
    out: Path | None = None,
    *,
    prompts: Mapping[str, str] | None = None,
    scorer: str | None = None,
) -> PredictionScores:
    """`thinktune score`: score a result file, and write summary.json, samples.jsonl and predictions.jsonl to `out`.

    Args:
        prompts: by id, for gold records without the prompt that scoring needs (see `Task.needs_prompt`).
        scorer: `module:function` of a user's own, in place of those of the item types (see `scoring.own_scorer`).

    Raises:
        ConfigError: the scorer cannot be used.
        DataError: a file is missing, empty or malformed; the two share no id.
        MissingExtra: there is free text, and sacrebleu is not installed.
    """
    tasks = tasks_scored_by(scorer)
    references, found = read_gold(gold, tasks), read_result_file(predictions)
    for name, prompt in (prompts or {}).items():
        if name in references and tasks[references[name]["type"]].needs_prompt:
            references[name].setdefault("prompt", prompt)
    samples = found.samples
    if not references.keys() & samples.keys():
        raise DataError(
            f"{predictions} and {gold} share no id",
            hint=f"ids of the first: {some(list(samples), 3)}; of the second: {some(list(references), 3)}",
        )
    absent = [Prediction("", "error", "no prediction for this id")]
    jobs = [
        (name, index, sample, record)
        for name, record in references.items()
        for index, sample in enumerate(samples.get(name, absent))
    ]
    # Threads: what takes long are processes of their own, which are waited for.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        scores = list(pool.map(lambda job: _score(job[2], job[3], tasks), jobs))
    lines = [
        _line(name, index, sample, record, score)
        for (name, index, sample, record), score in zip(jobs, scores, strict=True)
    ]
    result = PredictionScores(
        {
            kind: _summarise(task, [line for line in lines if line["type"] == kind])
            for kind, task in tasks.items()
            if kind in {line["type"] for line in lines}
        },
        [name for name in references if name not in samples],
        [name for name in samples if name not in references],
        [*found.remarks(), *_uneven(references, samples)],
    )
    if out is not None:
        write_json_lines(out / "samples.jsonl", lines)
        if predictions != out / "predictions.jsonl":
            write_json_lines(out / "predictions.jsonl", _plain_lines(samples))
        write_json(out / "summary.json", result.as_dict())
    return result


def read_gold(file: Path, tasks: Mapping[str, Task] = TASKS) -> dict[str, dict[str, Any]]:
    """Read gold records by id (ids are compared as text), in the order of the file.

    Raises:
        DataError: the file cannot be read or is empty; or, listing all faults, lines cannot be used.
    """
    records: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse(line)
        except ValueError as error:
            problems.append(f"line {number}: {str(error).replace('JSON', 'a JSON object')}")
            continue
        problem = _gold_problem(record, records, tasks)
        if problem:
            problems.append(f"line {number}: {problem}")
        else:
            records[identity(record["id"]) or ""] = record
    if problems:
        raise DataError(f"{file}: {len(problems)} lines cannot be used:\n" + "\n".join(problems), hint=_GOLD_LINE)
    if not records:
        raise DataError(f"{file} has no gold records", hint=_GOLD_LINE)
    return records


def _gold_problem(record: Any, records: Mapping[str, Any], tasks: Mapping[str, Task]) -> str | None:
    if not isinstance(record, dict):
        return "is not a JSON object"
    if "id" not in record:
        return "has no id"
    name = identity(record["id"])
    if name is None:
        return f"the id {record['id']!r} is neither a text nor a whole number"
    if name in records:
        return f"id {name!r} is there already"
    if record.get("type") not in tuple(tasks):  # which, unlike a dictionary, may be asked for a list
        return f"type {record.get('type')!r} is not one of {', '.join(tasks)}"
    return tasks[record["type"]].gold_fault(record)


def _score(sample: Prediction, record: Mapping[str, Any], tasks: Mapping[str, Task]) -> Score:
    score = tasks[record["type"]].score(sample.text, record, sample.finish_reason)
    return replace(score, note=score.note or sample.error)


def _line(name: str, index: int, sample: Prediction, record: Mapping[str, Any], score: Score) -> dict[str, Any]:
    return {
        "id": name,
        "type": record["type"],
        "sample": index,
        "completion": sample.text,
        "reference": record.get("reference", record.get("answer")),
        "finish_reason": sample.finish_reason,
        "error": sample.error,
        "format_problem": tags.parse(sample.text).problem,
        **asdict(score),
    }


def _summarise(task: Task, lines: Sequence[Line]) -> TypeScores:
    problems: dict[str, list[Line]] = {}
    for line in lines:
        problems.setdefault(line["id"], []).append(line)
    groups = list(problems.values())
    # Errors are wrong whatever they are errors of, and so do not tell whether there is a right.
    told = [line["correct"] is not None for line in lines if line["outcome"] != "error"]
    decided = any(told) if told else task.metrics is None
    measures = _of_several(groups, task) if decided else {}
    if task.metrics is not None and not decided:
        measures = task.metrics(lines)
    return TypeScores(**vars(score_problems(groups, decided=decided)), measures=measures)


def _of_several(groups: Sequence[Problem], task: Task) -> dict[str, float]:
    """Compute pass@k for every k that each problem has samples for, and the score of a majority vote."""
    least = min((len(group) for group in groups if any(line["error"] is None for line in group)), default=1)
    if least < 2:
        return {}
    right = [(max(len(group), least), sum(bool(line["correct"]) for line in group)) for group in groups]
    measures = {f"pass@{k}": fmean(pass_at_k(n, count, k) for n, count in right) for k in range(1, least + 1)}
    if task.vote_keys is not None:
        measures[f"maj@{least}"] = fmean(_vote(group, task.vote_keys) for group in groups)
    return measures


def _vote(group: Problem, keys: Callable[[Sequence[str]], list[int]]) -> float:
    """Return 1 if the answer that most samples gave is right, else 0.

    Answers are one where the comparison that scores go by has them equal: all that are right are one, since they are
    equal to the reference, and of the wrong ones each joins the first that it is equal to. Of equally frequent answers
    the one given first is taken. Samples without an answer to compare have no vote.
    """
    voters = [line for line in group if line["extracted"] is not None]
    right = [bool(line["correct"]) for line in voters]
    if not any(right) or 2 * sum(right) > len(voters):
        return float(any(right))  # whatever the others agree in
    wrong = iter(keys([line["extracted"] for line in voters if not line["correct"]]))
    return float(majority([-1 if each else next(wrong) for each in right]) == -1)


def scores_table(scores: PredictionScores) -> Table:
    """Make a table of a column an item type: rates with intervals, error counts, and further measures."""
    table = Table(title="with 95% intervals", title_style="dim")
    for name in ("", *scores.types):
        table.add_column(name, justify="right" if name else "left")
    types = scores.types.values()
    table.add_row("problems", *(str(each.n) for each in types))
    for label, cell in RATES.items():
        table.add_row(label, *map(cell, types))
    for outcome in sorted({outcome for each in types for outcome in each.outcomes}):
        table.add_row(outcome, *(str(each.outcomes.get(outcome, "")) for each in types))
    for name in sorted({name for each in types for name in each.measures}):
        table.add_row(name, *(f"{each.measures[name]:.3g}" if name in each.measures else "" for each in types))
    return table


def _uneven(references: Mapping[str, Any], samples: Mapping[str, Sequence[Prediction]]) -> Iterator[str]:
    """List the ids that have more or fewer samples than most of their type, as where a file holds some ids twice."""
    for kind in TASKS:
        counts = {
            name: len(samples[name])
            for name, record in references.items()
            if record["type"] == kind and name in samples
        }
        if len(set(counts.values())) > 1:
            usual = Counter(counts.values()).most_common(1)[0][0]
            odd = [name for name, count in counts.items() if count != usual]
            yield f"{len(odd)} {kind} items have not {usual} samples as most have: {some(odd)}"


def _plain_lines(samples: Mapping[str, Sequence[Prediction]]) -> Iterator[dict[str, str]]:
    for name, each in ((name, each) for name, group in samples.items() for each in group):
        if each.error is None:
            yield {"id": name, "content": each.text, "finish_reason": each.finish_reason}
        else:
            yield {"id": name, "error": each.error}
