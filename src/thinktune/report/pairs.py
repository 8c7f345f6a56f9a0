"""Two models on the same problems: better, worse or not known, and the samples that would settle it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from thinktune.evaluation import significance
from thinktune.evaluation.power import LEVEL, Needed, needed
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
        return self.p < LEVEL

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


def compare_pairs(pairs: Sequence[tuple[str, Scored, str, Scored]]) -> list[Pair]:
    """Compare candidates by twos, each two with a problem in common. p-values are adjusted for their number (Holm), and
    what would settle a comparison is reckoned at the level that this leaves for it."""
    differences = [significance.compare(_means(ours), _means(theirs)) for _, ours, _, theirs in pairs]
    adjusted = holm([each.p for each in differences])
    level = LEVEL / max(1, sum(p >= LEVEL for p in adjusted))
    return [
        Pair(first, second, difference, p, None if p < LEVEL else needed(ours, theirs, level=level))
        for (first, ours, second, theirs), difference, p in zip(pairs, differences, adjusted, strict=True)
    ]


def _means(scored: Scored) -> dict[Problem, float]:
    return {key: fmean(scores) for key, scores in scored.items()}


_SETTINGS = ("n", "temperature", "top_p", "max_tokens", "think_budget")


def other_settings(first: str, second: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Say, by the summaries of two models, in which settings they were asked otherwise, and by what other scorers they
    were scored: such a difference is not the models' alone."""
    samplings: list[Mapping[str, Any]] = [each.get("sampling") or {} for each in (ours, theirs)]
    scorers = [each.get("scorer") for each in (ours, theirs)]
    said = []
    if all(samplings) and (named := [key for key in _SETTINGS if len({str(each.get(key)) for each in samplings}) > 1]):
        values = (f"{key} {' and '.join(str(each.get(key)) for each in samplings)}" for key in named)
        said.append(f"{first} and {second} were asked with other settings: {', '.join(values)}")
    if all(scorers) and scorers[0] != scorers[1]:
        said.append(f"{first} and {second} were scored by other scorers: {' and '.join(map(str, scorers))}")
    return said
