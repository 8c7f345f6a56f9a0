"""Two models on the same problems: better, worse or not known, and the samples that would settle it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal

from thinktune.evaluation import significance
from thinktune.evaluation.power import Needed, needed
from thinktune.evaluation.problems import Problem
from thinktune.evaluation.significance import Difference, holm, sentence

Verdict = Literal["better", "worse", "not known"]
Scored = dict[Problem, list[float]]
"""The score of each sample, by problem."""


@dataclass(frozen=True)
class Pair:
    """Two candidates on the problems that both were given.

    Attributes:
        p: adjusted for the number of comparisons.
        needed: what would settle it; None if it is settled, or if there are too few problems to tell.
    """

    first: str
    second: str
    difference: Difference
    p: float
    needed: Needed | None = None

    @property
    def real(self) -> bool:
        return self.p < 0.05

    @property
    def verdict(self) -> Verdict:
        """Whether the second is better than the first."""
        if not self.real:
            return "not known"
        return "better" if self.difference.value > 0 else "worse"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {"first": self.first, "second": self.second, **asdict(self.difference), "p_adjusted": self.p}
        needed = self.needed and asdict(self.needed)
        return values | {"real": self.real, "verdict": self.verdict, "needed": needed, "in_words": str(self)}

    def __str__(self) -> str:
        said = sentence(self.difference, self.first, self.second, p=self.p)
        return f"{said}; {self.needed}" if self.needed else said


def pair_of(first: str, second: str, ours: Scored, theirs: Scored) -> Pair:
    """Compare two candidates that share a problem; p is not adjusted yet."""
    means = [{key: fmean(scores) for key, scores in scored.items()} for scored in (ours, theirs)]
    difference = significance.compare(*means)
    return Pair(first, second, difference, difference.p, needed(ours, theirs))


def adjusted(pairs: Sequence[Pair]) -> list[Pair]:
    """Adjust the p-values for the number of comparisons (Holm); what is settled needs nothing more."""
    found = [replace(pair, p=p) for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True)]
    return [replace(pair, needed=None) if pair.real else pair for pair in found]
