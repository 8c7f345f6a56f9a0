"""The number of further samples that would settle a comparison of two models.

For a two-sided test at 5% that finds a difference d of two models on the same problems with 80% power,

    problems = (z(0.975) + z(0.8))² · (ω² + σ₁²/k₁ + σ₂²/k₂) / d²

are needed, with k completions a problem (Miller 2024, https://arxiv.org/abs/2411.00640, section 5): ω² is the variance,
over problems, of the difference of the two models' chances to be right, σ² the mean variance of a single completion.
Solved for k, it gives the completions that would do on the problems there are. d is the difference that was seen, so
that the number holds if it is as large as it looks now. One of several comparisons is tested at a part of the 5%.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.05
_POWER = 0.8
SMALLEST = 0.01
"""The smallest difference that is planned for: one point. Nobody acts on less."""
_MOST = 100_000  # problems or completions beyond which no number is worth naming


@dataclass(frozen=True)
class Needed:
    """What would settle a comparison.

    Attributes:
        difference: that it is planned for, a share.
        problems: further ones of the same kind, with as many completions each; 0: the present ones would have shown it;
            None: more than anybody would ask.
        completions: of each of the present problems, in place of the present ones; None: more of them cannot do it, or
            with one a problem it is not known.
    """

    difference: float
    problems: int | None
    completions: int | None

    def __str__(self) -> str:
        size = f"a difference of {100 * self.difference:.1f} points"
        if self.problems is None:
            return f"no number of samples that one would draw would show {size}"
        if not self.problems:
            return f"so many would have shown {size}, four times in five"
        more = f"{self.problems:,} more problem{'' if self.problems == 1 else 's'}"
        if self.completions is not None:
            return f"{self.completions:,} completions of each of these problems, or {more}, would show {size}"
        return f"{more} would show {size}"


def needed(
    first: Mapping[Key, Sequence[float]], second: Mapping[Key, Sequence[float]], *, level: float = LEVEL
) -> Needed | None:
    """Compute the samples that would settle a comparison; None if there are fewer than two shared problems.

    Args:
        first, second: scores of all completions, 0 to 1, by problem.
        level: below which a p-value counts.
    """
    shared = [key for key in first if key in second]
    if len(shared) < 2:
        return None
    differences = [fmean(second[key]) - fmean(first[key]) for key in shared]
    difference = max(abs(fmean(differences)), SMALLEST)
    spread = variance(differences)
    if spread == 0:  # all came out alike: as if one problem more had come out otherwise
        spread = 1 / (len(shared) + 1)
    quantiles = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(_POWER)
    fewest = math.floor(2 - math.log2(level))  # problems that differ, all one way, before an exact test is sure
    total = max(math.ceil(quantiles**2 * spread / difference**2), math.ceil(fewest / difference))
    more = max(0, total - len(shared))
    return Needed(
        difference, more if more <= _MOST else None, _completions(first, second, shared, spread, difference / quantiles)
    )


def _completions(
    first: Mapping[Key, Sequence[float]],
    second: Mapping[Key, Sequence[float]],
    shared: Sequence[Key],
    spread: float,
    error: float,
) -> int | None:
    """Return the completions of each problem that bring the standard error down to `error`, as many for both models;
    None: no number does, or it is not known."""
    models = [[scores[key] for key in shared] for scores in (first, second)]
    if any(len(each) < 2 for model in models for each in model):
        return None
    within = [fmean(variance(each) for each in model) for model in models]
    present = [fmean(len(each) for each in model) for model in models]
    between = max(0.0, spread - sum(each / count for each, count in zip(within, present, strict=True)))
    room = len(shared) * error**2 - between
    if room <= 0:
        return None
    count = math.ceil(sum(within) / room)
    return count if max(present) < count <= _MOST / len(shared) else None
