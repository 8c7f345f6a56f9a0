"""The uncertainty of a score: intervals, differences of two models on the same problems, several samples a problem, in
words.

A problem is the unit everywhere: two samples of one problem say less than two problems do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, stdev
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
_Z = 1.959963984540054  # the normal distribution holds 95% within so many standard deviations
_RESAMPLES = 10_000
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's quantiles of 97.5% for one to nine degrees of freedom."""


@dataclass(frozen=True)
class Rate:
    """A share with its 95% Wilson interval."""

    value: float
    low: float
    high: float

    @property
    def opposite(self) -> Rate:
        """The rate of the opposite event."""
        return Rate(1 - self.value, 1 - self.high, 1 - self.low)

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def wilson(successes: float, n: float) -> Rate:
    """Compute the share and 95% Wilson score interval (Wilson 1927) of `successes` in `n` trials, n at least 1.

    >>> str(wilson(8, 10))
    '80.0% (49.0% to 94.3%)'
    """
    share = successes / n
    centre = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    spread = _Z / (1 + _Z * _Z / n) * math.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n))
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    return Rate(share, centre - spread if successes else 0.0, centre + spread if successes < n else 1.0)


def clustered(means: Sequence[float], samples: int) -> Rate:
    """Compute the mean score of at least one problem with its 95% interval, when problems have several samples.

    A problem is a cluster: the variance is that of the problems' means (Miller 2024, https://arxiv.org/abs/2411.00640,
    section 2.2). The interval is Wilson's at the number of independent trials with that variance (the effective sample
    size of Korn and Graubard 1998, with their correction for few clusters), which is at least that of the problems, and
    at most that of all samples. It equals `wilson` where every mean is 0 or 1.

    Args:
        means: each problem's mean, 0 to 1.
        samples: of all problems together.
    """
    n, share = len(means), fmean(means)
    if all(mean in (0, 1) for mean in means):
        return wilson(sum(means), n)
    variance = sum((mean - share) ** 2 for mean in means) / max(1, n - 1)
    if variance == 0:
        return wilson(share * samples, samples)
    t = _Z + (_Z**3 + _Z) / (4 * (n - 1))  # Student's quantile for few problems, to the first order
    trials = min(samples, max(n, n * share * (1 - share) / variance * (_Z / t) ** 2))
    return wilson(share * trials, trials)


def passes_at(n: int, right: int, most: int) -> list[float]:
    """Estimate, without bias, the chance that one of `k` samples is right when `right` of `n` were, for every `k` up to
    `most` (Chen et al. 2021, equation 1). Each chance of none follows from the one before.

    >>> passes_at(4, 1, 4)
    [0.25, 0.5, 0.75, 1.0]

    Raises:
        ValueError: not 1 <= most <= n, or not 0 <= right <= n.
    """
    if not (1 <= most <= n and 0 <= right <= n):
        raise ValueError(f"pass@{most} of {right} right in {n} samples is not defined")
    none = accumulate((max(n - right - drawn, 0) / (n - drawn) for drawn in range(most)), operator.mul)
    return [1.0 - each for each in none]


@dataclass(frozen=True)
class Difference:
    """Two models on the same problems.

    Attributes:
        n: number of problems that both answered.
        value: second minus first, a share: 0.12 is 12 points.
        low, high: 95% interval of it. If every score is 0 or 1, Agresti and Min's (2005); else by paired bootstrap over
            problems, of ten or fewer Student's. If the two differ by as much on every problem, as far as Wilson's
            interval of the outcomes that were not seen.
        p: two-sided, by `test`.
        gained, lost: problems that only the second, or only the first, has right; with a better score, if scores
            are not 0 or 1.
        first_mean, second_mean: of the two, on these problems.
        test: exact McNemar if every score is 0 or 1, else the randomisation test of the mean.
    """

    n: int
    value: float
    low: float
    high: float
    p: float
    gained: int
    lost: int
    first_mean: float = 0.0
    second_mean: float = 0.0
    test: str = "exact McNemar test"

    @property
    def real(self) -> bool:
        """Significance at 5%."""
        return self.p < 0.05


def compare(first: Mapping[Key, float], second: Mapping[Key, float], *, seed: int = 0) -> Difference:
    """Compare two models by their scores on each problem (0 to 1, by the problem's id); only shared ones count.

    Raises:
        ValueError: they share no problem.
    """
    shared = sorted(first.keys() & second.keys(), key=repr)  # in one order, so that the resamples are the same
    if not shared:
        raise ValueError("the two share no problem")
    # Rounded, as 2/3 - 1/3 and 1/3 - 0 are not the same number to a machine, and their tie is one.
    differences = [round(second[key] - first[key], 12) for key in shared]
    gained, lost = sum(each > 0 for each in differences), sum(each < 0 for each in differences)
    binary = all(score in (0, 1) for scores in (first, second) for score in (scores[key] for key in shared))
    value = round(fmean(differences), 12)
    low, high = _interval(differences, value, gained, lost, binary, seed)
    p = mcnemar(gained, lost) if binary else randomisation(differences, seed=seed)
    before, after = (fmean(scores[key] for key in shared) for scores in (first, second))
    test = "exact McNemar test" if binary else "randomisation test"
    return Difference(len(shared), value, low, high, p, gained, lost, before, after, test)


def _interval(
    differences: Sequence[float], value: float, gained: int, lost: int, binary: bool, seed: int
) -> tuple[float, float]:
    count = len(differences)
    if len(set(differences)) == 1:
        # Resamples of equal values are all equal, and would be sure of a few problems what many would have to show.
        unseen = wilson(0, count).high
        return value - unseen * (value + 1), value + unseen * (1 - value)
    if binary:
        # Resamples of a few discordant pairs, all one way, never reach 0: as if half a pair more were in each cell.
        centre, pairs = (gained - lost) / (count + 2), gained + lost + 1
        half = _Z * math.sqrt(pairs - (gained - lost) ** 2 / (count + 2)) / (count + 2)
    elif count <= len(_STUDENT) + 1:  # resamples hold no more than what was seen, which of a few is too little
        centre, half = value, _STUDENT[count - 2] * stdev(differences) / math.sqrt(count)
    else:
        return bootstrap(differences, seed=seed)
    return max(-1.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """Compute the two-sided exact p-value of so many discordant pairs, were both ways equally likely (McNemar 1947).

    >>> mcnemar(8, 2)
    0.109375
    """
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = _RESAMPLES) -> tuple[float, float]:
    """Compute the 95% percentile interval of the mean (Efron 1979), from resamples of the values; paired if they are
    differences of pairs. Deterministic for a seed."""
    import numpy as np

    generator = np.random.default_rng(seed)
    array = np.asarray(values, dtype=np.float64)
    # In portions: a resample of every problem at once would take gigabytes for large benchmarks.
    portion = max(1, 2_000_000 // len(array))
    means = [
        array[generator.integers(len(array), size=(min(portion, resamples - start), len(array)))].mean(axis=1)
        for start in range(0, resamples, portion)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def randomisation(differences: Sequence[float], *, seed: int = 0, draws: int = _RESAMPLES) -> float:
    """Estimate the two-sided p-value of a mean difference, were each problem's difference as likely to have the other
    sign (Fisher 1935). It is never below 1 / (draws + 1). Deterministic for a seed."""
    import numpy as np

    generator = np.random.default_rng(seed)
    array = np.asarray([each for each in differences if each != 0], dtype=np.float64)
    if not len(array):
        return 1.0
    seen = abs(array.sum()) * (1 - 1e-9)  # sums of the same numbers differ by rounding
    portion = max(1, 2_000_000 // len(array))
    extreme = 0
    for start in range(0, draws, portion):
        signs = generator.choice((-1.0, 1.0), size=(min(portion, draws - start), len(array)))
        extreme += int((abs(signs @ array) >= seen).sum())
    return (extreme + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def sentence(difference: Difference, first: str = "base", second: str = "tuned", *, p: float | None = None) -> str:
    """Put a difference in words. That two models are equally good is never said: an interval around 0 only shows that
    these problems cannot tell them apart.

    Args:
        p: the p-value after adjustment for several comparisons, in place of the difference's own.

    >>> sentence(Difference(200, 0.12, 0.07, 0.17, 0.0001, 30, 6))
    'tuned is better than base by 12.0 points (95% interval 7.0 to 17.0; p < 0.001; 200 problems)'
    """
    p = difference.p if p is None else p
    real = p < 0.05
    low, high = difference.low, difference.high
    if difference.value < 0:
        low, high = -high, -low
    chance = "; p < 0.001" if p < 0.001 else f"; p = {p:.3f}"
    low, high = (round(100 * end, 1) + 0.0 for end in (low, high))  # the addition makes -0.0 plain 0
    facts = f"95% interval {low:.1f} to {high:.1f}{chance}; {difference.n:,} problem{'' if difference.n == 1 else 's'}"
    points = f"{100 * abs(difference.value):.1f} points"
    if real:
        return f"{second} is {'better' if difference.value > 0 else 'worse'} than {first} by {points} ({facts})"
    if difference.value == 0:
        return f"{second} and {first} cannot be told apart ({facts})"
    ahead = f"{second} is {points} {'above' if difference.value > 0 else 'below'} {first}"
    return f"{ahead}, which may be luck: they cannot be told apart ({facts})"
