"""The data of a packed batch that fused layers take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thinktune.training.fused.kernels.dropout import Dropout
from thinktune.training.fused.kernels.qkv_rotary import Positions


@dataclass
class Batch:
    """Positions, documents and dropout of the tokens.

    Attributes:
        positions: what turns queries and keys in this layer.
        documents: the keyword arguments of `packed_attention`.
        dropout: of the first projection of the first layer; None: nothing is dropped.
    """

    positions: Positions
    documents: dict[str, Any]
    dropout: Dropout | None = None
