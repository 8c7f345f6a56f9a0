"""Counts of the work a training has done, saved with every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch


@dataclass
class Meter:
    """Counts real work: no padding, and nothing twice after a resume.

    Attributes:
        tokens: all tokens that went through the model, over the whole run.
        trained_tokens: those of them that were predicted.
        seconds: of training, without evaluation and saving.
        loss: summed cross-entropy (nats) since the last line of metrics; of pairs, their summed losses.
        loss_tokens: the trained tokens, or pairs, that it sums over.
    """

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    loss: float | torch.Tensor = 0.0  # a tensor while steps run, so that no step waits for the device
    loss_tokens: int = 0

    def add(self, tokens: int, trained: int, loss: torch.Tensor, summands: int | None = None) -> None:
        """Count a batch; `summands`: of its loss; None: one a trained token."""
        self.tokens += tokens
        self.trained_tokens += trained
        self.loss_tokens += trained if summands is None else summands
        self.loss = loss + self.loss

    def take_loss(self) -> float:
        """Return the mean loss a trained token, or pair, since the last call, in nats; 0 where nothing was trained."""
        mean = float(self.loss) / self.loss_tokens if self.loss_tokens else 0.0
        self.loss, self.loss_tokens = 0.0, 0
        return mean

    def state(self) -> dict[str, float]:
        return {**asdict(self), "loss": float(self.loss)}
