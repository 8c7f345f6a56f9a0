"""Scores on benchmarks side by side, each against the first model that has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from thinktune.evaluation.suites.results import NOT_RUN, BenchmarkScores
from thinktune.report.candidates import Candidate, failures, scores_of
from thinktune.report.pairs import Pair, Scored, compare_pairs, other_settings


@dataclass(frozen=True)
class Benchmarks:
    """Benchmarks of several candidates.

    Attributes:
        titles: by benchmark.
        scores: by benchmark, one a candidate; None: it was not asked.
        pairs: by benchmark and candidate, against the first candidate that was asked.
    """

    names: list[str] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    scores: dict[str, list[BenchmarkScores | None]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], Pair] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, list[str]]]:
        """Return the title of each benchmark, and a cell a candidate."""
        return [(self.titles[name], [self._cell(name, at) for at in range(len(self.names))]) for name in self.scores]

    def _cell(self, benchmark: str, at: int) -> str:
        scores = self.scores[benchmark][at]
        if scores is None:
            return NOT_RUN
        rate = scores.accuracy
        cell = f"{rate.value:.1%} ({100 * rate.low:.0f}–{100 * rate.high:.0f})"
        pair = self.pairs.get((benchmark, self.names[at]))
        return f"{cell}, {pair.verdict}" if pair else cell

    def sentences(self) -> Iterator[str]:
        """Put the verdicts in words, the decided ones first."""
        ordered = sorted(self.pairs.items(), key=lambda item: not item[1].real)
        yield from (f"{self.titles[benchmark]}: {pair}" for (benchmark, _), pair in ordered)
        yield from self.notes

    def verdicts(self, candidate: str) -> Counter[str]:
        """Count the verdicts on a candidate."""
        return Counter(pair.verdict for (_, name), pair in self.pairs.items() if name == candidate)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            self.titles[name]: {
                "scores": {who: each and each.as_dict() for who, each in zip(self.names, scores, strict=True)},
                "differences": [pair.as_dict() for (benchmark, _), pair in self.pairs.items() if benchmark == name],
            }
            for name, scores in self.scores.items()
        }


def compare_benchmarks(candidates: Sequence[Candidate]) -> Benchmarks:
    """Compare candidates on the benchmarks that they were scored on.

    Raises:
        RunFolderError: a file of scores is damaged.
    """
    found = [each.benchmarks() for each in candidates]
    titles = {name: scores.title for each in found for name, scores in each.items()}
    scores = {name: [each.get(name) for each in found] for name in titles}
    pairs: dict[tuple[str, str], tuple[str, Scored, str, Scored]] = {}
    notes: list[str] = []
    for name, of_all in scores.items():
        asked = [(candidate, each) for candidate, each in zip(candidates, of_all, strict=True) if each is not None]
        (first, ours), *others = asked
        lines = first.benchmark_samples(name) if others else []
        notes += [f"{titles[name]}: {said}" for said in failures(first.name, lines)]
        samples = scores_of(lines)
        for second, theirs in others:
            lines = second.benchmark_samples(name)
            notes += [f"{titles[name]}: {said}" for said in failures(second.name, lines)]
            given = scores_of(lines)
            if not samples.keys() & given.keys():
                notes.append(f"{titles[name]}: {first.name} and {second.name} have no scored problem in common")
                continue
            pairs[name, second.name] = (first.name, samples, second.name, given)
            other = other_settings(first.name, second.name, vars(ours), vars(theirs))
            notes += [f"{titles[name]}: {said}" for said in other]
    settled = dict(zip(pairs, compare_pairs(list(pairs.values())), strict=True))
    return Benchmarks([each.name for each in candidates], titles, scores, settled, notes)


def benchmark_table(benchmarks: Benchmarks) -> Table | None:
    """Make a table of one row a benchmark, one column a candidate; None if there is no benchmark."""
    if not benchmarks.scores:
        return None
    table = Table(title="benchmarks, with 95% intervals", title_style="dim")
    table.add_column("")
    for name in benchmarks.names:
        table.add_column(name, justify="right")
    for title, cells in benchmarks.rows():
        table.add_row(title, *cells)
    return table
