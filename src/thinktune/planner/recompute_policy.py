"""Which activations a training keeps and which it computes again: `plan` chooses, the fused layers follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["none", "mlp", "full"]
"""Recomputed in the backward pass of a layer: nothing; gate and up; everything but the last product."""


@dataclass(frozen=True)
class RecomputePolicy:
    """How much of the activations is kept.

    Attributes:
        levels: of each layer, the first layer first; the last one stands for those beyond.
        mlp_chunks: parts of the tokens that the MLP takes one after the other; more parts, a smaller workspace.
        offload: keep the inputs of the layers of level "full" in main memory, copied while the device computes.
    """

    levels: tuple[Level, ...] = ("none",)
    mlp_chunks: int = 1
    offload: bool = False

    def level(self, layer: int) -> Level:
        return self.levels[min(layer, len(self.levels) - 1)]
