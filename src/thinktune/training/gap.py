"""How far loss and gradients of a training may be from those of the model itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LOSS_BOUNDS = {torch.float32: 1e-4}
"""Largest difference of a document's loss, as a part of it, by the dtype of the training."""
GRADIENT_BOUNDS = {torch.float32: 0.01}
"""The same of the norm of the gradient of all that is trained."""
ROUNDED_LOSS, ROUNDED_GRADIENT = 0.01, 0.1  # in 16 bits
COARSE_LOSS, COARSE_GRADIENT = 0.06, 0.3
"""Over int8, which rounds activations to 8 bits, but for columns with large values somewhere in the batch."""
_NOISE = 3.0
"""In 16 bits, how many times the effect of other rounding, of up to _TRIES tries, a gap may be."""


@dataclass(frozen=True)
class Gap:
    """The distance of loss and gradient as trained from the model's own, and the effect of rounding alone.

    Attributes:
        loss, gradient: the difference as a part of the model's own.
        loss_noise, gradient_noise: the same between the model and itself, rounded otherwise; 0 in float32.
        module: whose gradient differs most.
        coarse: the base is in int8.
    """

    loss: float
    gradient: float
    loss_noise: float
    gradient_noise: float
    module: str
    coarse: bool = False

    def problem(self, dtype: torch.dtype) -> str | None:
        """Say by how much loss or gradient is off; None: neither is."""
        loss, gradient = LOSS_BOUNDS.get(dtype, ROUNDED_LOSS), GRADIENT_BOUNDS.get(dtype, ROUNDED_GRADIENT)
        if self.coarse:
            loss, gradient = COARSE_LOSS, COARSE_GRADIENT
        loss, gradient = max(loss, _NOISE * self.loss_noise), max(gradient, _NOISE * self.gradient_noise)
        found = []
        if not self.loss <= loss:
            found.append(f"the loss is {self.loss:.2%} off")
        if not self.gradient <= gradient:
            found.append(f"the gradient is {self.gradient:.0%} off, most of all that of {self.module}")
        return " and ".join(found) or None


@dataclass(frozen=True)
class Seen:
    loss: float
    gradients: list[torch.Tensor]

    def loss_gap(self, other: Seen) -> float:
        return abs(other.loss - self.loss) / max(abs(self.loss), 1e-3)

    def gradient_gap(self, other: Seen) -> float:
        total = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in self.gradients))
        pairs = zip(self.gradients, other.gradients, strict=True)
        apart = math.sqrt(sum(float((one - two).norm()) ** 2 for one, two in pairs))
        return apart / total if total else math.inf if apart else 0.0
