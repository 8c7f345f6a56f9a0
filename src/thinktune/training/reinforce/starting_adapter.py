"""The adapter that a training began with, on the same base model: the reference of KL divergences, no second model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from thinktune.models.untouched import eval_mode
from thinktune.training.model_with_loss import ModelWithLoss


class StartingAdapter:
    """A copy of the trained parameters as they are when it is made; of a new adapter, that is the base model."""

    def __init__(self, model: ModelWithLoss, temperature: float) -> None:
        self._model = model
        self._temperature = temperature
        self._weights = [parameter.detach().clone() for parameter in model.trained]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have these parameters within the block, and its own again afterwards, bit by bit."""
        now = [parameter.detach().clone() for parameter in self._model.trained]
        self._put(self._weights)
        try:
            yield
        finally:
            self._put(now)

    @torch.no_grad()
    def logprobs(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Compute log-probabilities, float32 [trained tokens], of a batch; to be called within `in_place`."""
        with eval_mode(self._model):
            losses: torch.Tensor = self._model(**inputs, reduction="none", temperature=self._temperature)
        return -losses

    @torch.no_grad()
    def _put(self, weights: list[torch.Tensor]) -> None:
        torch._foreach_copy_(self._model.trained, weights)  # hundreds of small ones
