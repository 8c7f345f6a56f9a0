"""The low-rank products of adapters, as the kernels around frozen products take them and add their gradients up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from thinktune.training.fused.kernels.dropout import Dropout


@dataclass
class LowRank:
    """The adapters of projections that read one input (a slot each), and their activations for some tokens.

    Attributes:
        a: [slots, rank, in]; b: [out, rank], with the scaling in it.
        scaling: of B's gradient.
        in_kernels: whether the kernels around the frozen products compute the low-rank ones.
        dropout: on the input.
        low: [tokens, slots * rank], the input times a.
        g_a, g_b: float32 in the shapes of a and b, and in kernels g_low, float32 [tokens, slots * rank]: to which the
            backward pass adds gradients. Those of a and b are of all tokens.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float = 1.0
    in_kernels: bool = True
    dropout: Dropout | None = None
    low: Any = None
    g_a: Any = None
    g_b: Any = None
    g_low: Any = None

    @property
    def fused(self) -> LowRank | None:
        """Itself where the kernels compute its products; None where they find complete ones."""
        return self if self.in_kernels else None

    @property
    def slots(self) -> int:
        return len(self.a)

    @property
    def rank(self) -> int:
        return len(self.a[0])

    def __getitem__(self, part: slice) -> LowRank:
        g_low = self.g_low[part] if self.in_kernels and self.g_low is not None else None
        dropout = self.dropout and self.dropout[part]
        return replace(self, dropout=dropout, low=self.low[part], g_low=g_low)
