"""The data of a packed batch that fused layers take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from thinktune.training.fused.kernels.dropout import Dropout
from thinktune.training.fused.kernels.qkv_rotary import Positions


@dataclass
class Batch:
    """Positions, documents and dropout of the tokens.

    Attributes:
        positions: what turns queries and keys in this layer.
        documents: the keyword arguments of `packed_attention`.
        dropout: of the first projection of the first layer; None: nothing is dropped.
        attend: computes attention of queries, keys and values, [1, heads, tokens, dim] each, at a scale, in the place
            of `packed_attention`.
    """

    positions: Positions
    documents: dict[str, Any]
    dropout: Dropout | None = None
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor] | None = None
