"""Scores of a model on benchmarks: a folder each, read back by `report` and `compare`, and one table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from thinktune.evaluation.significance import Rate
from thinktune.files import telling_full_disk, write_json, write_json_lines
from thinktune.records import BenchmarkRecord, SampleLine, read_record, read_records
from thinktune.tags import answer_part, last_boxed, parse

NOT_RUN = "not run"


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores of one model on one benchmark.

    Attributes:
        benchmark: its name; `title` is for people.
        model: reference of the model.
        problems, of: problems asked, and those that the benchmark has.
        n: completions a problem.
        accuracy: mean over the problems of the share of right completions (avg@n), with the format forgiven; the
            interval has problems as clusters.
        measures: pass@k, maj@n and tied@n, shares.
        cut_off: share of completions that reached the limit of tokens; None: not known.
        well_formed: share of completions in thinktune's format; None: not known.
        mean_tokens: of a completion; None: not known.
        tokens_per_second: of the call that made the last ones; None: all were in the journal.
        seconds: of the same call.
        sampling: the settings; `changed` names those that are not the benchmark's own.
        asked: "alone", "as published", or "with the format explained".
        revision, files: of the hub, with the SHA-256 of each file.
        published: published figures of the same model in percent, by publisher.
        notes: count of each remark of the scorer.
    """

    benchmark: str
    title: str
    model: str
    fingerprint: str
    problems: int
    of: int
    n: int
    accuracy: Rate
    measures: dict[str, float]
    cut_off: float | None
    well_formed: float | None
    mean_tokens: float | None
    tokens_per_second: float | None
    seconds: float
    sampling: dict[str, Any]
    changed: list[str]
    asked: str
    scorer: str
    revision: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the values of summary.json."""
        values = asdict(self)
        rate = values.pop("accuracy")
        return {**values, "accuracy": rate["value"], "accuracy_interval": [rate["low"], rate["high"]]}

    def cells(self) -> list[str]:
        """Return the cells of the table's row, without the title."""
        few = f"{self.problems:,}" if self.problems == self.of else f"{self.problems:,} of {self.of:,}"
        tokens = "–" if self.mean_tokens is None else f"{self.mean_tokens:,.0f}"
        published = ", ".join(f"{value:.1f} {by}" for by, value in self.published.items())
        cut = "–" if self.cut_off is None else f"{self.cut_off:.1%}"
        return [few, str(self.n), str(self.accuracy), self._share("maj"), self._share("pass"), cut, tokens, published]

    def _share(self, name: str) -> str:
        value = self.measures.get(f"{name}@{self.n}")
        return "–" if value is None else f"{value:.1%}"

    def remarks(self) -> Iterable[str]:
        """Say what a reader of the figures has to know, a line each."""
        if self.changed:
            settings = ", ".join(f"{name} {self.sampling[name]}" for name in self.changed)
            yield f"{self.title}: with {settings}, other than its settings: no published figure is a comparison"
        if self.problems < self.of:
            yield f"{self.title}: {self.problems} of {self.of} problems"
        if tied := round(self.measures.get(f"tied@{self.n}", 0) * self.problems):
            yield (
                f"{self.title}: in {tied} of {self.problems} problems a wrong answer had as many votes as the right "
                f"one; maj@{self.n} takes the one given first"
            )
        if failed := self.outcomes.get("error", 0):
            yield f"{self.title}: {failed} completions failed and count as wrong"


@dataclass(frozen=True)
class SuiteScores:
    """Scores on the benchmarks of a suite, why others were not run, by title, and which of those for a fault: their
    problems are not there, or not the pinned ones."""

    scores: list[BenchmarkScores]
    not_run: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        scores = [each.as_dict() for each in self.scores]
        return {"benchmarks": scores, "not_run": self.not_run, "failed": self.failed}

    def table(self) -> Table:
        """Make a table of one row a benchmark."""
        table = Table(title="right, with 95% intervals; problems are the clusters", title_style="dim")
        table.add_column("")
        for heading in HEADINGS:
            table.add_column(heading, justify="right")
        for each in self.scores:
            table.add_row(each.title, *each.cells())
        for title in self.not_run:
            table.add_row(title, NOT_RUN, *[""] * (len(HEADINGS) - 1))
        return table

    def remarks(self) -> list[str]:
        return [*(remark for each in self.scores for remark in each.remarks()), *self.not_run.values()]


HEADINGS = ("problems", "n", "avg@n", "maj@n", "pass@n", "cut off", "tokens", "published")


def write_results(out: Path, summary: BenchmarkScores, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write samples.jsonl and summary.json of a benchmark."""
    with telling_full_disk(out):
        write_json_lines(out / "samples.jsonl", lines)
        write_json(out / "summary.json", summary.as_dict())


def read_benchmarks(folder: Path) -> dict[str, BenchmarkScores]:
    """Read the scores in a folder of suites, by benchmark; none where there is no such folder.

    Raises:
        RunFolderError: a file is damaged.
    """
    return {file.parent.name: _read(file) for file in sorted(folder.glob("*/summary.json"))}


def read_samples(folder: Path, benchmark: str) -> list[dict[str, Any]]:
    """Read the samples of a benchmark.

    Raises:
        RunFolderError: the file is damaged.
    """
    return read_records(folder / benchmark / "samples.jsonl", SampleLine)


def _read(file: Path) -> BenchmarkScores:
    values: dict[str, Any] = read_record(file, BenchmarkRecord, whole=True)
    low, high = values.pop("accuracy_interval")
    known = {name: values[name] for name in BenchmarkScores.__dataclass_fields__ if name in values}
    return BenchmarkScores(**{**known, "accuracy": Rate(values["accuracy"], low, high)})


def published_sample(line: Mapping[str, Any]) -> dict[str, Any]:
    """Score a line of samples.jsonl as benchmarks are: the format is forgiven, and the answer is the one stated.

    A completion that reached its limit counts only by an answer that it states outside of its thought, in tags or in a
    box; the last number of an unfinished thought is none.
    """
    cut = line["finish_reason"] == "length"
    right = bool(line["lenient"]) and (not cut or line["type"] == "code-generate" or states_answer(line["completion"]))
    outcome = line["outcome"]
    if outcome not in ("error", "not scored") or right:
        stated = line["stated"] is not None
        outcome = "right" if right else "cut off" if cut else "wrong" if stated else "no answer"
    return {**line, "strict": line["correct"], "correct": right, "extracted": line["stated"], "outcome": outcome}


def states_answer(text: str) -> bool:
    """Tell whether a completion states an answer behind its thought, in tags or in a box."""
    return parse(text).answer is not None or last_boxed(answer_part(text)) is not None
