"""`thinktune compare RUN…`: runs side by side, and which of their differences are real.

Everything is read from the run folders; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from rich.table import Table

from thinktune.config import read_values
from thinktune.errors import ConfigError, DataError, RunFolderError
from thinktune.evaluation import significance
from thinktune.evaluation.lm_eval import Figure, read_figures
from thinktune.evaluation.problems import Place, Problem, place_of, problem_of
from thinktune.evaluation.ratings import Conclusions, Judgements, conclude, studio_ratings
from thinktune.evaluation.result_reader import some
from thinktune.evaluation.significance import Difference, holm, sentence
from thinktune.records import EvalSummary, MetricsLine, RunRecord, SampleLine, read_record, read_records
from thinktune.run_folder import RunFolder

_FACTS = (
    "trainable_parameters",
    "tokens_per_second",
    "peak_memory_gib",
    "train_seconds",
    "final_loss",
    "final_token_accuracy",
    "steps",
    "tokens",
)
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Candidate:
    """A tuned model, or the base model that tuned ones began with (then without `facts` and `metrics`).

    Attributes:
        facts: entries of run.json, by name.
        settings: the whole config by dotted key.
        summary: summary.json of its scores; None if it was not scored.
        samples: the lines of its samples.jsonl.
        metrics: the lines of its metrics.jsonl.
        figures: results of lm-evaluation-harness.
        also_called: other names of it, such as those in ratings.
    """

    name: str
    facts: dict[str, Any]
    settings: dict[str, Any]
    summary: dict[str, Any] | None
    samples: list[dict[str, Any]]
    metrics: list[dict[str, Any]]
    figures: list[Figure] = field(default_factory=list)
    also_called: frozenset[str] = frozenset()

    def scores(self) -> dict[Problem, float]:
        """Return the score of each problem: 1 for right, strictly; of several samples their mean. A problem that stands
        in several places is one: its answers say no more of a model than several samples do."""
        return self._means(problem_of)

    def scores_by_place(self) -> dict[Place, float]:
        """Return the same scores by the problems' places."""
        return self._means(place_of)

    def places(self) -> dict[Place, Problem]:
        """Map places to the scored problems that stand there."""
        return {place_of(line): problem_of(line) for line in self.samples if line["correct"] is not None}

    def _means(self, key_of: Callable[[Mapping[str, Any]], Key]) -> dict[Key, float]:
        scores: dict[Key, list[bool]] = {}
        for line in self.samples:
            if line["correct"] is not None:
                scores.setdefault(key_of(line), []).append(line["correct"])
        return {key: fmean(each) for key, each in scores.items()}


@dataclass(frozen=True)
class Pair:
    """Two candidates on the problems both were given; `p` is adjusted for the number of comparisons (None: no test,
    as problems with several samples have more outcomes than right and wrong)."""

    first: str
    second: str
    difference: Difference
    p: float | None

    @property
    def real(self) -> bool:
        return self.difference.real if self.p is None else self.p < 0.05

    def __str__(self) -> str:
        return sentence(self.difference, self.first, self.second, p=self.p)


@dataclass(frozen=True)
class Comparison:
    """Candidates, their differing settings, and the differences between each two that were given the same problems."""

    candidates: list[Candidate]
    differing: dict[str, list[Any]]
    pairs: list[Pair]
    notes: list[str]
    judged: Conclusions | None = None

    def figures(self) -> dict[str, list[Figure | None]]:
        """Return each candidate's figure by lm-evaluation-harness's task, metric and filter."""
        by_name = [{figure.name: figure for figure in each.figures} for each in self.candidates]
        names = dict.fromkeys(name for figures in by_name for name in figures)
        return {name: [figures.get(name) for figures in by_name] for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Return everything but samples and metrics, as plain values for JSON."""
        candidates = [
            {"name": each.name, **each.facts, "scores": each.summary}
            | {"settings": {key: each.settings.get(key) for key in self.differing}}
            | {"harness": [asdict(figure) for figure in each.figures]}
            for each in self.candidates
        ]
        differences = [
            {"first": each.first, "second": each.second, **asdict(each.difference)}
            | {"p_adjusted": each.p, "real": each.real, "in_words": str(each)}
            for each in self.pairs
        ]
        judged = self.judged and self.judged.as_dict()
        return {"candidates": candidates, "differences": differences, "notes": self.notes, "ratings": judged}


def compare(
    runs: Sequence[str | Path], names: Sequence[str] | None = None, *, ratings: Path | None = None
) -> Comparison:
    """Read trained runs and compare them, and the base model where it was scored with them.

    Args:
        names: names of the runs. None: those of their folders.
        ratings: a file of people's ratings; those of other models are left out. None: the studio's file beside the
            runs, if any.

    Raises:
        RunFolderError: a folder is no run, or its training has not ended.
        DataError: the ratings cannot be read.
    """
    folders = [RunFolder(Path(run)) for run in dict.fromkeys(map(Path, runs))]
    for folder in folders:
        _require_trained(folder)
    names = names or _names([folder.path for folder in folders])
    tuned = [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    candidates = [*_base_models(folders, tuned), *_starting_points(folders, tuned), *tuned]
    pairs, notes = _pairs(candidates)
    notes += [f"{each.name} was not scored" for each in candidates if each.summary is None]
    judged = _judge(candidates, folders, ratings, notes)
    return Comparison(candidates, _differing(tuned), pairs, notes, judged)


def table(comparison: Comparison) -> Table:
    """Make a table of one row a candidate."""
    result = Table(title="scores with 95% intervals", title_style="dim")
    result.add_column("")
    for heading, _ in COLUMNS:
        result.add_column(heading, justify="right")
    for each in comparison.candidates:
        result.add_row(each.name, *(cell(each) for _, cell in COLUMNS))
    return result


def sentences(comparison: Comparison, most: int = 12) -> Iterator[str]:
    """Put the differences in words, real and large ones first; if there are many, only the real ones, and a count."""
    ordered = sorted(comparison.pairs, key=lambda each: (not each.real, -abs(each.difference.value)))
    shown = ordered if len(ordered) <= most else [each for each in ordered if each.real][:most]
    yield from map(str, shown)
    if rest := ordered[len(shown) :]:
        yield f"{len(rest)} more comparisons, {sum(each.real for each in rest)} of them of real differences"
    if len(ordered) > 1 and any(each.p is not None for each in ordered):
        yield f"paired by problem, exact McNemar test, p adjusted for {len(ordered)} comparisons (Holm)"
    if comparison.judged is not None:
        yield from comparison.judged.sentences()
    yield from comparison.notes


def harness_table(comparison: Comparison) -> Table | None:
    """Make a table of one row a figure of lm-evaluation-harness, one column a candidate; None if there are none."""
    rows = comparison.figures()
    if not rows:
        return None
    result = Table(title="by lm-evaluation-harness, ± one standard error", title_style="dim")
    result.add_column("")
    for each in comparison.candidates:
        result.add_column(each.name, justify="right")
    for name, figures in rows.items():
        result.add_row(name, *("–" if figure is None else str(figure) for figure in figures))
    return result


NOT_SCORED = "not scored"


def _fact(name: str, form: str, per: int = 1) -> Callable[[Candidate], str]:
    return lambda each: (
        form.format(each.facts[name] / per if per > 1 else each.facts[name]) if name in each.facts else "–"
    )


def _score(name: str) -> Callable[[Candidate], str]:
    def cell(each: Candidate) -> str:
        if each.summary is None:
            return NOT_SCORED
        if name not in each.summary:
            return "–"
        low, high = each.summary[f"{name}_interval"]
        return f"{each.summary[name]:.1%} ({100 * low:.0f}–{100 * high:.0f})"

    return cell


def _completed(each: Candidate) -> str:
    if each.summary is None:
        return NOT_SCORED
    share = (each.summary or {}).get("accuracy_completed")
    return "–" if share is None else f"{share:.1%}"


COLUMNS: tuple[tuple[str, Callable[[Candidate], str]], ...] = (
    ("trainable", _fact("trainable_parameters", "{:,}")),
    ("tokens/s", _fact("tokens_per_second", "{:,.0f}")),
    ("GiB", _fact("peak_memory_gib", "{:.2f}")),
    ("minutes", _fact("train_seconds", "{:.1f}", per=60)),
    ("final loss", _fact("final_loss", "{:.4f}")),
    ("tokens right", _fact("final_token_accuracy", "{:.1%}")),
    ("well-formed", _score("format_rate")),
    ("right", _score("accuracy")),
    ("of the completed", _completed),
    ("right, leniently", _score("accuracy_lenient")),
)
"""Headings and cells of the table, here and in the report."""


def _require_trained(folder: RunFolder) -> None:
    if not folder.config.exists():
        raise RunFolderError(f"{folder.path} is no run folder", hint="name folders that `train`, `run` or `sweep` made")
    if not folder.is_trained:
        raise RunFolderError(f"{folder.path} is not trained to its end", hint="thinktune train … --resume goes on")


def _names(paths: list[Path]) -> list[str]:
    """Return the folders' names, with as many parents as it takes to tell them apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read_run(folder: RunFolder, name: str) -> Candidate:
    record = read_record(folder.record, RunRecord)
    settings = read_settings(folder)
    facts = {fact: record[fact] for fact in _FACTS if fact in record}
    summary, samples = read_scores(folder, "tuned")
    return Candidate(
        name,
        facts,
        settings,
        summary,
        samples,
        read_records(folder.metrics, MetricsLine),
        figures=read_figures(folder.eval / "tuned"),
        also_called=frozenset((str(folder.path), str(folder.path.resolve()), folder.path.name)),
    )


def read_scores(folder: RunFolder, model: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Read summary and samples of the run's `base` or `tuned` model; None and nothing if it was not scored."""
    summary = read_summary(folder, model)
    return summary, read_records(folder.eval / model / "samples.jsonl", SampleLine) if summary is not None else []


def read_summary(folder: RunFolder, model: str) -> dict[str, Any] | None:
    """Read the summary of the run's `base` or `tuned` model; None if it was not scored."""
    file = folder.eval / model / "summary.json"
    summary: dict[str, Any] | None = read_record(file, EvalSummary) if file.exists() else None
    return summary


def _base_models(folders: list[RunFolder], tuned: list[Candidate]) -> list[Candidate]:
    """Return each base model that was scored with a run, once: from the first run that has its scores."""
    found: dict[str, Candidate] = {}
    for folder, run in zip(folders, tuned, strict=True):
        model = str(run.settings["model"])
        summary, samples = read_scores(folder, "base")
        figures = read_figures(folder.eval / "base")
        if (summary is not None or figures) and model not in found:
            runs = [
                each.path.name for each, other in zip(folders, tuned, strict=True) if other.settings["model"] == model
            ]
            called = frozenset((model, *(f"base of {name}" for name in runs)))
            found[model] = Candidate(f"base: {model}", {}, {"model": model}, summary, samples, [], figures, called)
    return [replace(each, name="base") if len(found) == 1 else each for each in found.values()]


def _starting_points(folders: list[RunFolder], tuned: list[Candidate]) -> list[Candidate]:
    """Return each adapter that a run went on from and that was scored with it, once."""
    found: dict[str, Candidate] = {}
    for folder, run in zip(folders, tuned, strict=True):
        init = str(run.settings.get("lora.init"))
        summary, samples = read_scores(folder, "start")
        if summary is not None and init not in found:
            found[init] = Candidate(f"start: {init}", {}, {"lora.init": init}, summary, samples, [])
    return [replace(each, name="start") if len(found) == 1 else each for each in found.values()]


def _judge(
    candidates: Sequence[Candidate], folders: Sequence[RunFolder], file: Path | None, notes: list[str]
) -> Conclusions | None:
    """Summarise people's ratings of the candidates; None if there is neither a file nor anything in the studio."""
    if file is not None and not file.is_file():
        raise DataError(f"there is no file of ratings {file}")
    judged = Judgements() if file is not None else studio_ratings([folder.path for folder in folders])
    if file is not None:
        judged.add_study(file)
    given = judged.ratings
    names = {called: each.name for each in candidates for called in (each.name, *each.also_called)}
    ours = [
        replace(each, first=names[each.first], second=names[each.second])
        for each in given
        if each.first in names and each.second in names
    ]
    if file is None and not ours:
        return None
    if file is not None and len(ours) < len(given):
        notes.append(f"{len(given) - len(ours)} of {len(given)} ratings are of other models")
    scores = {
        each.name: {f"{source}:{row}": score for (source, row), score in each.scores_by_place().items()}
        for each in candidates
    }
    for model, of_items in judged.scores.items():  # of the very answers that people were shown
        if model in names:
            scores[names[model]] |= of_items
    return conclude(ours, scores, judged.problems)


def _differing(runs: list[Candidate]) -> dict[str, list[Any]]:
    return differing_settings([run.settings for run in runs])


def differing_settings(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings (see `read_settings`) in which runs differ, with each run's value."""
    keys: Iterable[str] = dict.fromkeys(key for each in settings for key in each)
    values = {key: [each.get(key) for each in settings] for key in keys if key != "output"}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def read_settings(folder: RunFolder) -> dict[str, Any]:
    """Read the config of a run, with its keys joined by dots, and the learning rate that `auto` stood for.

    Raises:
        ConfigError, RunFolderError: it is damaged.
    """
    settings = _flat(read_values(folder.config))
    if "model" not in settings:
        raise ConfigError(f"{folder.config} is damaged: it names no model")
    if settings.get("train.learning_rate") == "auto" and folder.is_trained:
        settings["train.learning_rate"] = read_record(folder.record, RunRecord).get("learning_rate", "auto")
    return settings


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat


def _pairs(candidates: list[Candidate]) -> tuple[list[Pair], list[str]]:
    found, notes = [], []
    scores = {each.name: of_each for each in candidates if (of_each := each.scores())}
    places = {each.name: each.places() for each in candidates if each.name in scores}
    for name, known in places.items():
        if repeated := len(known) - len(scores[name]):
            notes.append(f"{name} was given {repeated} problems again: each problem counts once, with its mean")
    for first, second in combinations(scores, 2):
        if changed := _changed(places[first], places[second]):
            notes.append(
                f"{first} and {second} were given other questions or references in {len(changed)} places, which are not"
                f" compared: {some(changed, 5)}"
            )
        if not scores[first].keys() & scores[second].keys():
            notes.append(f"{first} and {second} were given different problems: nothing to compare")
            continue
        difference = significance.compare(scores[first], scores[second])
        if difference.n < max(len(scores[first]), len(scores[second])):
            notes.append(f"{first} and {second} are compared on the {difference.n} problems that both were given")
        found.append((first, second, difference))
    adjusted = iter(holm([difference.p for *_, difference in found if difference.p is not None]))
    return [Pair(*each, None if each[2].p is None else next(adjusted)) for each in found], notes


def _changed(ours: Mapping[Place, Problem], theirs: Mapping[Place, Problem]) -> list[str]:
    """Name the places that both have, and at which one has a problem that the other has nowhere."""
    elsewhere = set(ours.values()) & set(theirs.values())
    return [
        f"row {row} of {source}" if source else row
        for (source, row), problem in ours.items()
        if (other := theirs.get((source, row), problem)) != problem and not {problem, other} <= elsewhere
    ]
