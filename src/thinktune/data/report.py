"""The fate of every row in numbers: printed by `thinktune data`, kept in data_report.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

_BINS = 12
TOO_LONG, PROMPT_TOO_LONG = "too long", "prompt alone too long"
LENGTH_FAULTS = (TOO_LONG, PROMPT_TOO_LONG)
"""What rows are dropped for that nothing else is wrong with: known only once they are tokenised."""
FEW_TOKENS, MANY_TOKENS, NOT_SHORTEST = "fewer tokens than wanted", "more tokens than wanted", "not among the shortest"
NOT_RIGHT, NO_GOLD = "answer differs from the gold answer", "no gold answer to compare with"
NOT_COMPARED = "answer cannot be compared with the gold answer"
REFUSED_BY = "refused by"
EXACT_DUPLICATE, NEAR_DUPLICATE = "exact duplicate", "near duplicate"
CONTAMINATED = "in the evaluation data"
_KEPT_BY = {
    **dict.fromkeys(LENGTH_FAULTS, "data.max_length"),
    FEW_TOKENS: "filter.min_tokens",
    MANY_TOKENS: "filter.max_tokens",
    NOT_SHORTEST: "filter.shortest",
    **dict.fromkeys((NOT_RIGHT, NO_GOLD, NOT_COMPARED), "filter.right"),
    **dict.fromkeys((EXACT_DUPLICATE, NEAR_DUPLICATE), "data.deduplicate"),
    CONTAMINATED: "data.decontaminate",
}


def setting_that_keeps(reason: str) -> str | None:
    """Return the setting because of which rows are dropped for a reason; None: they are faulty whatever the settings.

    >>> setting_that_keeps("too long")
    'data.max_length'
    """
    return "filter.function" if reason.startswith(REFUSED_BY) else _KEPT_BY.get(reason)


@dataclass
class SourceReport:
    """The rows of one source.

    Attributes:
        dropped: by reason, the 1-based numbers of the rows.
        unused: by column that their format does not read (`messages[].name` for a field of turns), the number of rows
            that fill it.
        boxes_left_out: numbers of usable rows with a box that is not in the answer.
        repeats: of each dropped duplicate, its number, and `source:row` of the row that is kept.
        problems: of each contaminated row, its number, `source:row` of the problem, the length of the runs of words
            that they share (0: the whole question), and whether the numbers are the same.
        lengths: of the kept examples; None: not tokenised, or there are none.
    """

    source: str
    read: int = 0
    usable: int = 0
    kept: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    unknown_keys: list[str] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    boxes_left_out: list[int] = field(default_factory=list)
    repeats: list[tuple[int, str]] = field(default_factory=list)
    problems: list[tuple[int, str, int, bool]] = field(default_factory=list)
    lengths: Lengths | None = None

    def drop(self, reason: str, row: int) -> None:
        self.dropped.setdefault(reason, []).append(row)

    def leave_unused(self, columns: Sequence[str]) -> None:
        for column in columns:
            self.unused[column] = self.unused.get(column, 0) + 1

    @property
    def dropped_count(self) -> int:
        return sum(map(len, self.dropped.values()))

    @property
    def not_drawn(self) -> int:
        """Usable rows left out by data.sample."""
        return self.read - self.kept - self.dropped_count


@dataclass(frozen=True)
class Lengths:
    """Tokens of the kept examples. `histogram` has `(from, below, examples)`."""

    total: int
    trained: int
    shortest: int
    median: int
    p95: int
    longest: int
    histogram: list[tuple[int, int, int]]

    @classmethod
    def of(cls, lengths: Sequence[int], trained: int) -> Lengths:
        ordered = sorted(lengths)

        def quantile(share: float) -> int:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return cls(sum(ordered), trained, ordered[0], quantile(0.5), quantile(0.95), ordered[-1], _histogram(ordered))


@dataclass(frozen=True)
class Packs:
    """How the training examples fill packs."""

    count: int
    capacity: int
    padding_share: float


@dataclass
class DataReport:
    """The whole report. Counts of tokens are set once examples have been tokenised.

    Attributes:
        multi_turn: kept examples with earlier turns as context.
        cut: kept examples that lost their end (`data.overlong: cut`).
        held_out: kept examples that are only evaluated, not trained.
        fingerprint: SHA-256 over the token ids and labels, in order.
    """

    sources: list[SourceReport]
    multi_turn: int = 0
    cut: int = 0
    held_out: int = 0
    lengths: Lengths | None = None
    packs: Packs | None = None
    fingerprint: str = ""

    @property
    def rows_read(self) -> int:
        return sum(source.read for source in self.sources)

    @property
    def kept(self) -> int:
        return sum(source.kept for source in self.sources)

    @property
    def not_drawn(self) -> int:
        return sum(source.not_drawn for source in self.sources)

    @property
    def dropped(self) -> dict[str, int]:
        """Rows by reason, most frequent first."""
        counts: dict[str, int] = {}
        for source in self.sources:
            for reason, rows in source.dropped.items():
                counts[reason] = counts.get(reason, 0) + len(rows)
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def one_line(self) -> str:
        """Summarise the report in one line, printed as training begins."""
        parts = [f"{self.rows_read:,} rows read, {self.kept:,} kept"]
        if self.not_drawn:
            parts.append(f"{self.not_drawn:,} not drawn")
        if self.dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
            parts.append(f"{sum(self.dropped.values()):,} dropped ({reasons})")
        if left_out := sum(len(source.boxes_left_out) for source in self.sources):
            parts.append(f"{left_out:,} usable with several boxes, of which the last is taken")
        if unused := {column for source in self.sources for column in source.unused}:
            parts.append(f"not used: {', '.join(sorted(unused))}")
        if self.cut:
            parts.append(f"{self.cut:,} CUT")
        if self.held_out:
            parts.append(f"{self.held_out:,} held out")
        if self.lengths:
            parts.append(f"{self.lengths.total:,} tokens, {self.lengths.trained:,} trained")
        if self.packs:
            parts.append(f"{self.packs.count:,} packs, {self.packs.padding_share:.1%} padding")
        return " · ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        totals = {"rows_read": self.rows_read, "kept": self.kept, "not_drawn": self.not_drawn, "dropped": self.dropped}
        return {**totals, **asdict(self)}


def _histogram(ordered: Sequence[int]) -> list[tuple[int, int, int]]:
    """Make equal bins from the shortest to the longest, with round borders."""
    step = _round_up((ordered[-1] - ordered[0]) // _BINS + 1)
    start = ordered[0] // step * step
    borders = list(range(start, ordered[-1] + step + 1, step))
    counts = [0] * (len(borders) - 1)
    for length in ordered:
        counts[(length - start) // step] += 1
    return [(low, high, count) for (low, high), count in zip(pairwise(borders), counts, strict=True)]


def _round_up(number: int) -> int:
    """Round up to the next of 1, 2, 5, 10, 20, 50, …"""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor >= number:
                return step * factor
        step *= 10
