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
        right: the trained tokens since the last line that were the likeliest.
        right_tokens: those that it was counted of.
    """

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    loss: float | torch.Tensor = 0.0  # tensors while steps run, so that no step waits for the device
    loss_tokens: int = 0
    right: int | torch.Tensor = 0
    right_tokens: int = 0

    def add(
        self,
        tokens: int,
        trained: int,
        loss: torch.Tensor,
        summands: int | None = None,
        right: torch.Tensor | None = None,
    ) -> None:
        """Count a batch; `summands`: of its loss; None: one a trained token; `right`: None: not known."""
        self.tokens += tokens
        self.trained_tokens += trained
        self.loss_tokens += trained if summands is None else summands
        self.loss = loss + self.loss
        if right is not None:
            self.right = right + self.right
            self.right_tokens += trained

    def take(self) -> dict[str, float]:
        """Return the mean `loss` a trained token, or pair, since the last call, in nats; 0 where nothing was trained.
        And `token_accuracy`, where it was counted: the share of trained tokens that were the likeliest."""
        means = {"loss": float(self.loss) / self.loss_tokens if self.loss_tokens else 0.0}
        if self.right_tokens:
            means["token_accuracy"] = float(self.right) / self.right_tokens
        self.loss, self.loss_tokens, self.right, self.right_tokens = 0.0, 0, 0, 0
        return means

    def state(self) -> dict[str, float]:
        return {**asdict(self), "loss": float(self.loss), "right": int(self.right)}
