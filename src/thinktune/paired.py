"""Two models on the same problems: is the difference real? Exact McNemar, Newcombe's interval, Holm over several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thinktune.evaluate import wilson


@dataclass(frozen=True)
class Paired:
    """How two models did on the same `n` problems.

    Attributes:
        difference: share that the second has right, less that of the first.
        low, high: its 95% interval.
        p: two-sided probability of a difference at least as lopsided between models that are equally good.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float


def compare_paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two models' right and wrong answers to the same problems, at least one, in the same order.

    The interval is Newcombe's tenth (Statistics in Medicine 17, 1998, p. 2635): from the Wilson intervals of the two
    shares and the correlation between them.
    """
    n = len(first)
    pairs = list(zip(first, second, strict=True))
    both, only_first = pairs.count((True, True)), pairs.count((True, False))
    only_second, neither = pairs.count((False, True)), pairs.count((False, False))
    one, two = wilson(both + only_second, n), wilson(both + only_first, n)
    correlation = _correlation(both, only_first, only_second, neither)
    down = _spread(one.value - one.low, two.high - two.value, correlation)
    up = _spread(one.high - one.value, two.value - two.low, correlation)
    difference = (only_second - only_first) / n
    return Paired(n, difference, difference - down, difference + up, mcnemar(only_first, only_second))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test: how likely is a split of the discordant pairs as uneven as this, by fair coins?

    >>> mcnemar(1, 9)
    0.021484375
    """
    n, smaller = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(smaller + 1))
    return min(1.0, 2 * tail / (1 << n))


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's adjustment (1979): with these, below 0.05 means real, however many comparisons there are.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(probabilities), 0.0
    for rank, at in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        largest = max(largest, min(1.0, (len(probabilities) - rank) * probabilities[at]))
        adjusted[at] = largest
    return adjusted


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    product = math.prod((both + only_first, only_second + neither, both + only_second, only_first + neither))
    if not product:
        return 0.0
    above: float = both * neither - only_first * only_second
    if above > 0:  # the continuity correction of the method
        above = max(0.0, above - (both + only_first + only_second + neither) / 2)
    return float(above / math.sqrt(product))


def _spread(one: float, two: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one**2 - 2 * correlation * one * two + two**2))
