"""The contract between the trainer and a training method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch


class Method(Protocol):
    """Says which batches there are and which weights their tokens get; the trainer does the rest.

    The trainer minimises Σ weightₜ·CEₜ / trained tokens over the batches of an optimizer step. A policy gradient is
    that loss with advantages as weights, and any loss that is a function of log-probabilities has its gradient with
    -∂loss/∂logprobₜ as weights.
    """

    def train_rows(self) -> Sequence[dict[str, Any]]:
        """Give the rows to train, each of which `collate` understands."""

    def held_out_rows(self) -> Sequence[dict[str, Any]] | None:
        """Give the rows of the held-out loss; None: there are none."""

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of rows, with the entries that `PackedCollator` returns."""

    def weights(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """Weigh the trained tokens of a batch: float32 [trained tokens]; None: 1 for every token."""
