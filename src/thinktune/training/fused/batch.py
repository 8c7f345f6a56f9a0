"""The data of a packed batch that all fused layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from thinktune.training.fused.kernels.dropout import Dropout


@dataclass
class Batch:
    """Positions, documents and dropout of the tokens.

    Attributes:
        cos, sin: [tokens, head dim].
        documents: the keyword arguments of `packed_attention`.
        dropout: of the first projection of the first layer; None: nothing is dropped.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    documents: dict[str, Any]
    dropout: Dropout | None = None
