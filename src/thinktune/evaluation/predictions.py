"""Scores of any tool's result file: `thinktune score res.json gold.jsonl`.

Gold is JSON lines `{"id", "type", "reference", …}`; code carries `test` and `entry_point`. `result_reader` lists the
formats of predictions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from thinktune.errors import DataError
from thinktune.evaluation.metrics import Scores, rate_rows, sample_line, score_lines, scores_table
from thinktune.evaluation.result_reader import identity, parse, read_result_file, read_text, some
from thinktune.files import write_json, write_json_lines
from thinktune.inference.engines.base import Completion
from thinktune.inference.result_file import plain_line
from thinktune.scoring import TASKS, Task, tasks_scored_by

_GOLD_LINE = 'a line of gold is {"id": …, "type": …, "reference": …}'


@dataclass(frozen=True)
class PredictionScores:
    """Scores by item type, the ids that only one of the two files has, and notes about the files. Problems are those of
    the gold file: one without a prediction counts as wrong."""

    types: dict[str, Scores]
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

    def table(self) -> Table:
        """Make a table of a column an item type: rates with intervals, error counts, and further measures."""
        types = list(self.types.values())
        rows = {"problems": [str(each.n) for each in types], **rate_rows(types)}
        for outcome in sorted({outcome for each in types for outcome in each.outcomes}):
            rows[outcome] = [str(each.outcomes.get(outcome, "")) for each in types]
        for name in sorted({name for each in types for name in each.measures}):
            rows[name] = [f"{each.measures[name]:.3g}" if name in each.measures else "" for each in types]
        return scores_table(self.types, rows)


def score_predictions(
    predictions: Path,
    gold: Path,
    out: Path | None = None,
    *,
    prompts: Mapping[str, str] | None = None,
    scorer: str | None = None,
) -> PredictionScores:
    """Score a result file, and write summary.json, samples.jsonl and predictions.jsonl to `out`: `thinktune score`.

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
    jobs = [
        (completion, record)
        for name, record in references.items()
        for completion in samples.get(name, [Completion(name, 0, "", (), "error", "no prediction for this id")])
    ]
    # Threads: what takes long are processes of their own, which are waited for.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        lines = list(pool.map(lambda job: _line(job[0], job[1], tasks), jobs))
    result = PredictionScores(
        {
            kind: score_lines(task, [line for line in lines if line["type"] == kind])
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
            completions = (each for group in samples.values() for each in group)
            write_json_lines(out / "predictions.jsonl", (plain_line(each.request_id, each) for each in completions))
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


def _line(completion: Completion, record: Mapping[str, Any], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Score a completion and make its line of samples.jsonl."""
    score = tasks[record["type"]].score(completion.text, record, completion.finish_reason)
    score = replace(score, note=score.note or completion.error)
    reference = record.get("reference", record.get("answer"))
    return {"id": completion.request_id, "type": record["type"], **sample_line(completion, reference, score)}


def _uneven(references: Mapping[str, Any], samples: Mapping[str, Sequence[Completion]]) -> Iterator[str]:
    """List the ids that have more or fewer samples than most of their type, as if a file holds some ids twice."""
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
