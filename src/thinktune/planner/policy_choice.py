"""The choice of a recompute policy: the fastest of those whose memory fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from thinktune.planner.cost_model import CostModel
from thinktune.planner.memory_model import Batch
from thinktune.planner.recompute_policy import Level, RecomputePolicy

Checkpointing = bool | Literal["auto"]
MOST_CHUNKS = 8
_SMALLEST_CHUNK = 512
"""Tokens of an MLP chunk; below, products lose their speed."""
_EXTREMES: tuple[Level, Level] = ("none", "full")


def choose(cost: CostModel, batch: Batch, *, checkpointing: Checkpointing, offload: bool = False) -> RecomputePolicy:
    """Choose the recompute policy for a batch: the fastest that fits, else the one of least memory.

    The layers of level "full" come first and those of "none" last: the backward pass begins with the last layer, while
    everything is still held, and a layer that is recomputed needs room for that.
    """
    layers = cost.shape.layers
    most, least = (RecomputePolicy(_levels({level: layers})) for level in _EXTREMES)
    if not cost.fused:
        if checkpointing == "auto":
            checkpointing = cost.kind == "cuda" and not cost.fits(batch, most)
        return least if checkpointing else most
    if checkpointing is False:
        return most
    chunks = [count for count in (1, 2, 4, MOST_CHUNKS) if count == 1 or batch.tokens / count >= _SMALLEST_CHUNK]
    if checkpointing == "auto":
        found = [each for count in chunks for each in _fewest_mlps(cost, batch, count, offload)]
    else:
        every = [replace(least, mlp_chunks=count, offload=offload) for count in chunks]
        found = [memory for memory in every if cost.fits(batch, memory)]
    smallest = replace(least, mlp_chunks=chunks[-1], offload=offload)
    return min(found, key=lambda memory: cost.seconds(batch, memory), default=smallest)


def _fewest_mlps(cost: CostModel, batch: Batch, chunks: int, offload: bool) -> Iterator[RecomputePolicy]:
    """Yield, for each number of layers recomputed as a whole, the policy with the fewest MLPs beside them that fits.

    An MLP that takes its tokens in chunks is always recomputed: gate and up are never there as a whole.
    """
    layers = cost.shape.layers

    def make(full: int, mlp: int) -> RecomputePolicy:
        counts: dict[Level, int] = {"full": full, "mlp": mlp, "none": layers - full - mlp}
        return RecomputePolicy(_levels(counts), chunks, offload and full > 0)

    for full in range(layers + 1):
        low, high = 0 if chunks == 1 else layers - full, layers - full
        if not cost.fits(batch, make(full, high)):
            continue
        while low < high:
            middle = (low + high) // 2
            if cost.fits(batch, make(full, middle)):
                high = middle
            else:
                low = middle + 1
        yield make(full, high)
        if high == 0:
            return


def _levels(counts: dict[Level, int]) -> tuple[Level, ...]:
    return tuple(level for level, count in counts.items() for _ in range(count))
