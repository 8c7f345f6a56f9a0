"""Scores of a result file, wherever it was made: `thinktune eval --predictions res.json --gold gold.jsonl`.

Gold is JSON lines `{"id", "type", "reference", …}`; code carries `test` and `entry_point`. Predictions are our result
file, a list or JSON lines of `{"id", "content"}`, one object from ids to contents, or the lines of OpenAI's batch API.
A content is a text or a list of several samples; `error` stands in place of one that failed, and `finish_reason:
length` tells one that was cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from thinktune import tags
from thinktune.errors import DataError
from thinktune.files import write_json, write_json_lines
from thinktune.scores import RATES, Line, Problem, Scores, score_problems
from thinktune.statistics import majority, pass_at_k
from thinktune.tasks import TASKS, Score
from thinktune.tasks.choice import letter
from thinktune.tasks.forms import normalise
from thinktune.tasks.generic import similarity

_CONTENT = ("content", "completion", "prediction", "response", "output", "text")
_LISTED = 20
_GOLD_LINE = 'a line of gold is {"id": …, "type": …, "reference": …}'


@dataclass(frozen=True)
class Prediction:
    """One sample for one id."""

    text: str
    finish_reason: str = "stop"
    error: str | None = None


@dataclass(frozen=True)
class TypeScores(Scores):
    """Scores of one item type, over all problems of the gold file: a missing prediction counts as wrong.

    Attributes:
        measures: pass@k and maj@n where there are several samples; bleu and chrf of free text, 0 to 100.
    """

    measures: dict[str, float]


@dataclass(frozen=True)
class PredictionScores:
    """Scores by item type, and the ids that only one of the two files has."""

    types: dict[str, TypeScores]
    without_prediction: list[str]
    without_gold: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def remarks(self) -> list[str]:
        """What a reader has to know about ids that do not match, a line each."""
        lists = (
            ("gold items have no prediction and count as wrong", self.without_prediction),
            ("predictions have no gold and are not scored", self.without_gold),
        )
        return [f"{len(ids)} {text}: {_some(ids)}" for text, ids in lists if ids]


def score_predictions(predictions: Path, gold: Path, out: Path | None = None) -> PredictionScores:
    """`thinktune eval --predictions`: score, and write summary.json, samples.jsonl and predictions.jsonl to `out`.

    Raises:
        DataError: a file is missing, empty or not what it should be; the two share no id.
        MissingExtra: there is free text, and sacrebleu is not installed.
    """
    references, samples = read_gold(gold), read_predictions(predictions)
    if not references.keys() & samples.keys():
        raise DataError(
            f"{predictions} and {gold} share no id",
            hint=f"ids of the first: {_some(list(samples), 3)}; of the second: {_some(list(references), 3)}",
        )
    absent = [Prediction("", "error", "no prediction for this id")]
    jobs = [
        (name, index, sample, record)
        for name, record in references.items()
        for index, sample in enumerate(samples.get(name, absent))
    ]
    # Threads: what takes long are processes of their own, which are waited for.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        scores = list(pool.map(lambda job: _score(job[2], job[3]), jobs))
    lines = [
        _line(name, index, sample, record, score)
        for (name, index, sample, record), score in zip(jobs, scores, strict=True)
    ]
    result = PredictionScores(
        {
            kind: _summarise(kind, [line for line in lines if line["type"] == kind])
            for kind in TASKS
            if kind in {line["type"] for line in lines}
        },
        [name for name in references if name not in samples],
        [name for name in samples if name not in references],
    )
    if out is not None:
        write_json_lines(out / "samples.jsonl", lines)
        if predictions != out / "predictions.jsonl":
            write_json_lines(out / "predictions.jsonl", _plain_lines(samples))
        write_json(out / "summary.json", result.as_dict())
    return result


def read_gold(file: Path) -> dict[str, dict[str, Any]]:
    """Gold records by id (ids are compared as text), in the order of the file.

    Raises:
        DataError: the file cannot be read or is empty; or, listing all faults, lines cannot be used.
    """
    records: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    for number, line in enumerate(_read(file).split("\n"), start=1):
        if not line.strip():
            continue
        record = _parse(line)
        problem = _gold_problem(record, records)
        if problem:
            problems.append(f"line {number}: {problem}")
        elif isinstance(record, dict):
            records[str(record["id"])] = record
    if problems:
        shown = "\n".join(problems[:_LISTED])
        raise DataError(f"{file}: {len(problems)} lines cannot be used:\n{shown}", hint=_GOLD_LINE)
    if not records:
        raise DataError(f"{file} has no gold records", hint=_GOLD_LINE)
    return records


def _gold_problem(record: Any, records: Mapping[str, Any]) -> str | None:
    if not isinstance(record, dict):
        return "is not a JSON object"
    if "id" not in record:
        return "has no id"
    if str(record["id"]) in records:
        return f"id {str(record['id'])!r} is there already"
    if record.get("type") not in tuple(TASKS):  # which, unlike a dictionary, may be asked for a list
        return f"type {record.get('type')!r} is not one of {', '.join(TASKS)}"
    return None if record.keys() & {"reference", "answer", "test"} else "has no reference"


def read_predictions(file: Path) -> dict[str, list[Prediction]]:
    """Samples by id, from any of the forms that the module names.

    Raises:
        DataError: the file cannot be read, is empty, or in another form.
    """
    text = _read(file)
    whole = _parse(text)
    entries: list[Any]
    if isinstance(whole, dict) and isinstance(whole.get("result"), dict):
        whole = whole["result"]
    if isinstance(whole, dict) and isinstance(whole.get("results"), list):
        entries = whole["results"]
    elif isinstance(whole, list):
        entries = whole
    elif isinstance(whole, dict) and not whole.keys() & {"id", "custom_id"}:
        entries = [{"id": name, "content": content} for name, content in whole.items()]
    else:
        entries = [_parse(line) for line in text.split("\n") if line.strip()]
    samples: dict[str, list[Prediction]] = {}
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, dict) and "custom_id" in entry:
            samples.setdefault(str(entry["custom_id"]), []).extend(_samples_of_openai(entry))
            continue
        if not isinstance(entry, dict) or "id" not in entry:
            raise DataError(
                f"{file}: entry {number} is not an object with an id",
                hint='predictions are {"result": {"results": [{"id", "content"}, …]}}, a list of these, or one a line',
            )
        samples.setdefault(str(entry["id"]), []).extend(_samples_of(entry))
    if not samples:
        raise DataError(f"{file} has no predictions")
    return samples


def _samples_of_openai(entry: Mapping[str, Any]) -> list[Prediction]:
    """See `results`, which writes them too."""
    try:
        choices = entry["response"]["body"]["choices"]
        contents = [
            {"content": choice["message"]["content"], "finish_reason": choice.get("finish_reason")}
            for choice in choices
        ]
    except (KeyError, TypeError):  # an error stands in the place of a response
        error = entry.get("error")
        contents = [{"error": error.get("message") if isinstance(error, dict) else error}]
    return [sample for content in contents for sample in _samples_of(content)]


def _samples_of(entry: Mapping[str, Any]) -> list[Prediction]:
    content = next((entry[key] for key in _CONTENT if entry.get(key) is not None), None)
    if content is None:
        return [Prediction("", "error", str(entry.get("error") or "has no content"))]
    reason = str(entry.get("finish_reason") or "stop")
    return [
        Prediction(each, reason) if isinstance(each, str) else Prediction("", "error", "the content is not a text")
        for each in (content if isinstance(content, list) else [content])
    ] or [Prediction("", "error", "the content is empty")]


def _score(sample: Prediction, record: Mapping[str, Any]) -> Score:
    score = TASKS[record["type"]].score(sample.text, record, sample.finish_reason)
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


def _summarise(kind: str, lines: Sequence[Line]) -> TypeScores:
    problems: dict[str, list[Line]] = {}
    for line in lines:
        problems.setdefault(line["id"], []).append(line)
    groups = list(problems.values())
    # Errors are wrong whatever they are errors of, and so do not tell whether there is a right.
    told = [line["correct"] is not None for line in lines if line["outcome"] != "error"]
    decided = any(told) if told else kind != "generic-generate"
    measures = _of_several(groups) if decided else _of_text(lines)
    return TypeScores(**vars(score_problems(groups, decided=decided)), measures=measures)


def _of_several(groups: Sequence[Problem]) -> dict[str, float]:
    """pass@k for every k that each problem has samples for, and what a vote of all samples would get."""
    least = min((len(group) for group in groups if any(line["error"] is None for line in group)), default=1)
    if least < 2:
        return {}
    right = [(max(len(group), least), sum(bool(line["correct"]) for line in group)) for group in groups]
    measures = {f"pass@{k}": fmean(pass_at_k(n, count, k) for n, count in right) for k in range(1, least + 1)}
    if groups[0][0]["type"] != "code-generate":  # programs are rarely the same twice
        measures[f"maj@{least}"] = fmean(map(_vote, groups))
    return measures


def _vote(group: Problem) -> float:
    """1 if the most frequent answer is right, else 0."""
    keys = [_key(line) for line in group]
    winner = majority(keys)
    return float(winner is not None and bool(group[keys.index(winner)]["correct"]))


def _key(line: Line) -> str | None:
    answer = line["extracted"]
    if answer is None:
        return None
    return (letter(answer) if line["type"] == "choice" else normalise(answer[:1000])) or answer


def _of_text(lines: Sequence[Line]) -> dict[str, float]:
    compared = [line for line in lines if line["reference"] is not None and line["type"] == "generic-generate"]
    if not compared:
        return {}
    return similarity([line["extracted"] or "" for line in compared], [str(line["reference"]) for line in compared])


def scores_table(scores: PredictionScores) -> Table:
    """A column an item type: rates with intervals, what went wrong, and further measures."""
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


def _some(ids: Sequence[str], count: int = _LISTED) -> str:
    return ", ".join(ids[:count]) + (f" and {len(ids) - count} more" if len(ids) > count else "")


def _plain_lines(samples: Mapping[str, Sequence[Prediction]]) -> Iterator[dict[str, str]]:
    for name, each in ((name, each) for name, group in samples.items() for each in group):
        if each.error is None:
            yield {"id": name, "content": each.text, "finish_reason": each.finish_reason}
        else:
            yield {"id": name, "error": each.error}


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text") from error
    if not text.strip():
        raise DataError(f"{file} is empty")
    return text


def _parse(text: str) -> Any:
    """The JSON value, None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
