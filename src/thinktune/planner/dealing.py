"""The packs of an optimizer step, dealt to the GPUs of a training."""

from __future__ import annotations

import random
from collections.abc import Sequence

from thinktune.planner.memory_model import Batch

_STEPS = 100
"""Optimizer steps that are drawn to see how evenly packs fall."""


def deal(packs: Sequence[int], costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Deal packs to ranks: the costliest first, each to the rank with the least to do that has room for it.

    No rank gets more than its share of the count, so that its batches are no larger than planned. Everyone who asks
    gets the same answer; the packs of a rank are in the order in which they came.

    Args:
        packs: indexes into `costs`.

    >>> deal([0, 1, 2, 3], [5.0, 1.0, 4.0, 3.0], 2)
    [[0, 1], [2, 3]]
    """
    most = share(len(packs), ranks)
    loads, places = [0.0] * ranks, [list[int]() for _ in range(ranks)]
    for place in sorted(range(len(packs)), key=lambda place: -costs[packs[place]]):
        rank = min((rank for rank in range(ranks) if len(places[rank]) < most), key=loads.__getitem__)
        places[rank].append(place)
        loads[rank] += costs[packs[place]]
    return [[packs[place] for place in sorted(own)] for own in places]


def share(count: int, ranks: int) -> int:
    """Return how many of `count` packs a rank has at most."""
    return -(-count // ranks)


def waiting_seconds(packs: Sequence[Batch], slopes: tuple[float, float], rows: int, ranks: int) -> float:
    """Estimate the mean seconds of a step by which the rank with most to do is behind the mean, over drawn steps.

    Args:
        packs: a sample of those of an epoch.
        slopes: seconds of a token and of a pair of tokens that attend.
        rows: packs of an optimizer step.
    """
    draw, costs = random.Random(0), [slopes[0] * pack.tokens + slopes[1] * pack.attended for pack in packs]
    behind = 0.0
    for _ in range(_STEPS):
        step = draw.sample(range(len(packs)), rows) if rows <= len(packs) else draw.choices(range(len(packs)), k=rows)
        loads = [sum(costs[pack] for pack in own) for own in deal(step, costs, ranks)]
        behind += max(loads) - sum(loads) / ranks
    return behind / _STEPS
