"""`thinktune compare RUN…`: runs side by side, and which of their differences are real.

Everything is read from the run folders; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.table import Table

from thinktune.errors import DataError
from thinktune.evaluation.lm_eval import Figure
from thinktune.evaluation.problems import Place, Problem
from thinktune.evaluation.ratings import Conclusions, Judgements, conclude, studio_ratings
from thinktune.evaluation.result_reader import some
from thinktune.report.benchmarks import Benchmarks, compare_benchmarks
from thinktune.report.candidates import Candidate, differing_settings, failures, read_candidates
from thinktune.report.pairs import Pair, Scored, compare_pairs, other_settings


@dataclass(frozen=True)
class Comparison:
    """Candidates, their differing settings, and the differences between each two that were given the same problems."""

    candidates: list[Candidate]
    differing: dict[str, list[Any]]
    pairs: list[Pair]
    notes: list[str]
    judged: Conclusions | None = None
    benchmarks: Benchmarks = field(default_factory=Benchmarks)

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
        differences = [each.as_dict() for each in self.pairs]
        judged = self.judged and self.judged.as_dict()
        return {"candidates": candidates, "differences": differences, "notes": self.notes, "ratings": judged} | {
            "benchmarks": self.benchmarks.as_dict()
        }


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
    candidates = read_candidates(runs, names)
    pairs, notes = _pairs(candidates)
    notes += [f"{each.name} was not scored" for each in candidates if each.summary is None and each.suites is None]
    judged = _judge(candidates, [Path(run) for run in runs], ratings, notes)
    differing = differing_settings([each.settings for each in candidates if each.facts])
    return Comparison(candidates, differing, pairs, notes, judged, compare_benchmarks(candidates))


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
    if len(ordered) > 1:
        tests = " or ".join(dict.fromkeys(each.difference.test for each in ordered))
        yield f"paired by problem, {tests}, p adjusted for {len(ordered)} comparisons (Holm)"
    yield from comparison.benchmarks.sentences()
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
    ("right", _score("accuracy")),
    ("right, leniently", _score("accuracy_lenient")),
    ("well-formed", _score("format_rate")),
    ("of the completed", _completed),
    ("tokens right", _fact("final_token_accuracy", "{:.1%}")),
    ("final loss", _fact("final_loss", "{:.4f}")),
    ("minutes", _fact("train_seconds", "{:.1f}", per=60)),
    ("tokens/s", _fact("tokens_per_second", "{:,.0f}")),
    ("GiB", _fact("peak_memory_gib", "{:.2f}")),
    ("trainable", _fact("trainable_parameters", "{:,}")),
)
"""Headings and cells of the table, here and in the report."""


def _judge(
    candidates: Sequence[Candidate], folders: Sequence[Path], file: Path | None, notes: list[str]
) -> Conclusions | None:
    """Summarise people's ratings of the candidates; None if there is neither a file nor anything in the studio."""
    if file is not None and not file.is_file():
        raise DataError(f"there is no file of ratings {file}")
    judged = Judgements() if file is not None else studio_ratings(folders)
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


def _pairs(candidates: list[Candidate]) -> tuple[list[Pair], list[str]]:
    found: list[tuple[str, Scored, str, Scored]] = []
    notes = [said for each in candidates for said in failures(each.name, each.samples)]
    summaries = {each.name: each.summary or {} for each in candidates}
    scores = {each.name: of_each for each in candidates if (of_each := each.all_scores())}
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
        found.append((first, scores[first], second, scores[second]))
        notes += other_settings(first, second, summaries[first], summaries[second])
        shared = len(scores[first].keys() & scores[second].keys())
        if shared < max(len(scores[first]), len(scores[second])):
            notes.append(f"{first} and {second} are compared on the {shared} problems that both were given")
    return compare_pairs(found), notes


def _changed(ours: Mapping[Place, Problem], theirs: Mapping[Place, Problem]) -> list[str]:
    """Name the places that both have, and at which one has a problem that the other has nowhere."""
    elsewhere = set(ours.values()) & set(theirs.values())
    return [
        f"row {row} of {source}" if source else row
        for (source, row), problem in ours.items()
        if (other := theirs.get((source, row), problem)) != problem and not {problem, other} <= elsewhere
    ]
