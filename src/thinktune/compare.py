"""`thinktune compare RUN…`: runs side by side, and which of their differences are real.

Everything is read from the run folders; no model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.table import Table

from thinktune.errors import RunFolderError
from thinktune.paired import Paired, compare_paired, holm
from thinktune.runs import RunFolder

REAL = 0.05
"""A difference counts as real where its adjusted p is below this."""

_FACTS = (
    "trainable_parameters",
    "tokens_per_second",
    "peak_memory_gib",
    "train_seconds",
    "final_loss",
    "steps",
    "tokens",
)
Item = tuple[str, int]


@dataclass(frozen=True)
class Candidate:
    """A tuned model, or the base model that tuned ones began with (then without `facts` and `metrics`).

    Attributes:
        facts: what run.json has of it, by name.
        settings: the whole config by dotted key.
        summary: summary.json of its scores; None where it was not scored.
        samples: the lines of its samples.jsonl.
        metrics: the lines of its metrics.jsonl.
    """

    name: str
    facts: dict[str, Any]
    settings: dict[str, Any]
    summary: dict[str, Any] | None
    samples: list[dict[str, Any]]
    metrics: list[dict[str, Any]]

    def right(self) -> dict[Item, bool]:
        """Whether each problem was answered right, strictly; of several samples, by more than half of them."""
        votes: dict[Item, list[bool]] = {}
        for line in self.samples:
            if line["correct"] is not None:
                votes.setdefault((line["source"], line["row"]), []).append(line["correct"])
        return {item: fmean(each) > 0.5 for item, each in votes.items()}


@dataclass(frozen=True)
class Difference:
    """Two candidates on the problems both were given; `p_adjusted` allows for the number of comparisons."""

    first: str
    second: str
    paired: Paired
    p_adjusted: float

    @property
    def real(self) -> bool:
        return self.p_adjusted < REAL

    def __str__(self) -> str:
        """
        >>> str(Difference("base", "tuned", Paired(100, 0.12, 0.07, 0.17, 0.0001), 0.0003))
        'tuned is better than base by 12.0 points (95% interval 7.0 to 17.0; p = 0.0003)'
        """
        paired = self.paired
        better, worse, sign = (self.second, self.first, 1) if paired.difference >= 0 else (self.first, self.second, -1)
        low, high = sorted((100 * sign * paired.low, 100 * sign * paired.high))
        interval = f"95% interval {low:.1f} to {high:.1f}; p = {self.p_adjusted:.2g}"
        points = abs(100 * paired.difference)
        if self.real:
            return f"{better} is better than {worse} by {points:.1f} points ({interval})"
        return f"{better} and {worse} cannot be told apart: {points:.1f} points ({interval})"


@dataclass(frozen=True)
class Comparison:
    """Candidates, what sets them apart, and the differences between each two that were given the same problems."""

    candidates: list[Candidate]
    differing: dict[str, list[Any]]
    differences: list[Difference]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Everything but samples and metrics, as plain values for JSON."""
        candidates = [
            {"name": each.name, **each.facts, "scores": each.summary}
            | {"settings": {key: each.settings.get(key) for key in self.differing}}
            for each in self.candidates
        ]
        differences = [
            {"first": each.first, "second": each.second, **asdict(each.paired)}
            | {"p_adjusted": each.p_adjusted, "real": each.real, "in_words": str(each)}
            for each in self.differences
        ]
        return {"candidates": candidates, "differences": differences, "notes": self.notes}


def compare(runs: Sequence[str | Path], names: Sequence[str] | None = None) -> Comparison:
    """Read trained runs and compare them, and the base model where it was scored with them.

    Args:
        names: what to call the runs; None: by their folders.

    Raises:
        RunFolderError: a folder is no run, or its training has not ended.
    """
    folders = [RunFolder(Path(run)) for run in dict.fromkeys(map(Path, runs))]
    for folder in folders:
        _require_trained(folder)
    names = names or _names([folder.path for folder in folders])
    tuned = [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    candidates = [*_base_models(folders, tuned), *tuned]
    differences, notes = _differences(candidates)
    notes += [f"{each.name} was not scored" for each in candidates if each.summary is None]
    return Comparison(candidates, _differing(tuned), differences, notes)


def table(comparison: Comparison) -> Table:
    """One row a candidate."""
    result = Table(title="scores with 95% intervals", title_style="dim")
    result.add_column("")
    for heading, _ in COLUMNS:
        result.add_column(heading, justify="right")
    for each in comparison.candidates:
        result.add_row(each.name, *(cell(each) for _, cell in COLUMNS))
    return result


def sentences(comparison: Comparison, most: int = 12) -> Iterator[str]:
    """The differences in words, the surest first; where there are many, only those that are real, and a count."""
    ordered = sorted(comparison.differences, key=lambda each: each.p_adjusted)
    shown = ordered if len(ordered) <= most else [each for each in ordered if each.real][:most]
    yield from map(str, shown)
    if rest := len(ordered) - len(shown):
        yield f"{rest} more comparisons, {sum(each.real for each in ordered) - sum(each.real for each in shown)} real"
    if len(ordered) > 1:
        yield f"paired by problem, exact McNemar test, p adjusted for {len(ordered)} comparisons (Holm)"
    yield from comparison.notes


def _fact(name: str, form: str, per: int = 1) -> Callable[[Candidate], str]:
    return lambda each: (
        form.format(each.facts[name] / per if per > 1 else each.facts[name]) if name in each.facts else "–"
    )


def _score(name: str) -> Callable[[Candidate], str]:
    def cell(each: Candidate) -> str:
        if each.summary is None or name not in each.summary:
            return "–"
        low, high = each.summary[f"{name}_interval"]
        return f"{each.summary[name]:.1%} ({100 * low:.0f}–{100 * high:.0f})"

    return cell


COLUMNS: tuple[tuple[str, Callable[[Candidate], str]], ...] = (
    ("trainable", _fact("trainable_parameters", "{:,}")),
    ("tokens/s", _fact("tokens_per_second", "{:,.0f}")),
    ("GiB", _fact("peak_memory_gib", "{:.2f}")),
    ("minutes", _fact("train_seconds", "{:.1f}", per=60)),
    ("final loss", _fact("final_loss", "{:.4f}")),
    ("well-formed", _score("format_rate")),
    ("right", _score("accuracy")),
    ("right, leniently", _score("accuracy_lenient")),
)
"""Headings and cells of the table, here and in the report."""


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _require_trained(folder: RunFolder) -> None:
    if not folder.config.exists():
        raise RunFolderError(f"{folder.path} is no run folder", hint="name folders that `train`, `run` or `sweep` made")
    if not folder.is_trained:
        raise RunFolderError(f"{folder.path} is not trained to its end", hint="thinktune train … --resume goes on")


def _names(paths: list[Path]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_run(folder: RunFolder, name: str) -> Candidate:
    record = json.loads(folder.record.read_text(encoding="utf-8"))
    settings = _flat(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    facts = {fact: record[fact] for fact in _FACTS if fact in record}
    summary, samples = read_scores(folder, "tuned")
    return Candidate(name, facts, settings, summary, samples, read_lines(folder.metrics))


def read_scores(folder: RunFolder, model: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Summary and samples of the run's `base` or `tuned` model; None and nothing where it was not scored."""
    file = folder.eval / model / "summary.json"
    if not file.exists():
        return None, []
    return json.loads(file.read_text(encoding="utf-8")), read_lines(file.with_name("samples.jsonl"))


def _base_models(folders: list[RunFolder], tuned: list[Candidate]) -> list[Candidate]:
    """Each base model that was scored with a run, once: from the first run that has its scores."""
    found: dict[str, Candidate] = {}
    for folder, run in zip(folders, tuned, strict=True):
        model = str(run.settings["model"])
        summary, samples = read_scores(folder, "base")
        if summary is not None and model not in found:
            found[model] = Candidate(f"base: {model}", {}, {"model": model}, summary, samples, [])
    if len(found) == 1:
        (only,) = found.values()
        return [Candidate("base", {}, only.settings, only.summary, only.samples, [])]
    return list(found.values())


def _differing(runs: list[Candidate]) -> dict[str, list[Any]]:
    """The settings in which runs differ, with each run's value."""
    keys: Iterable[str] = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys if key != "output"}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _differences(candidates: list[Candidate]) -> tuple[list[Difference], list[str]]:
    pairs, notes = [], []
    answers = {each.name: right for each in candidates if (right := each.right())}
    for first, second in combinations(answers, 2):
        common = [item for item in answers[first] if item in answers[second]]
        if not common:
            notes.append(f"{first} and {second} were given different problems: nothing to compare")
            continue
        if len(common) < max(len(answers[first]), len(answers[second])):
            notes.append(f"{first} and {second} are compared on the {len(common)} problems that both were given")
        paired = compare_paired([answers[first][i] for i in common], [answers[second][i] for i in common])
        pairs.append((first, second, paired))
    adjusted = holm([paired.p for *_, paired in pairs])
    return [Difference(*pair, p) for pair, p in zip(pairs, adjusted, strict=True)], notes
