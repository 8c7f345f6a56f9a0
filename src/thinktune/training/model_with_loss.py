"""A model to train together with its loss, as one module."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch

from thinktune.models.untouched import inner_model
from thinktune.training import ranks
from thinktune.training.fused.chunked_loss import chunked_logprobs, chunked_loss, trained_head_loss
from thinktune.training.fused.head import probe_head


class ModelWithLoss(torch.nn.Module):
    """Computes the summed loss of a causal LM in `forward`, so that wrappers (DDP, FSDP) see one ordinary call.

    Attributes:
        model: the model itself, a PeftModel or one that is trained as a whole, which is saved, asked and evaluated.
        trained: its parameters that are trained.
        right: how many trained tokens of the last summed pass were the likeliest, of equals the first: int64 scalar on
            the device. Those of weight 0 are not counted.
        gradients: theirs as one tensor, after `join_gradients`, or after `add_up_ranks` until they are zeroed.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._head = probe_head(inner_model(model))
        self._products_in: torch.dtype | None = None
        self.right: torch.Tensor | None = None
        self.gradients: torch.Tensor | None = None
        self._joined = False

    def forward(
        self,
        positions: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
        temperature: float = 1.0,
        **inputs: Any,
    ) -> torch.Tensor:
        """Sum the weighted cross-entropy of a batch of `PackedCollator`, in nats.

        Args:
            positions: int64 [trained tokens], the places whose outputs predict.
            targets: int64 [trained tokens], the token each of them must predict.
            weights: float32 [trained tokens]; None: 1 for every token.
            labels: not used; Trainer counts them.
            reduction: none: return the cross-entropy of each token, float32 [trained tokens], without weights: any loss
                that is a function of log-probabilities has its gradient through these.
            temperature: divides the logits.
        """
        with self._rounded_products():
            return self._loss(positions, targets, weights, reduction, temperature, inputs)

    def round_products_to(self, dtype: torch.dtype) -> None:
        """Compute the products of float32 weights in a dtype from now on."""
        self._products_in = dtype if dtype != torch.float32 else None

    def _rounded_products(self) -> AbstractContextManager[Any]:
        if self._products_in is None:
            return nullcontext()
        rounding: AbstractContextManager[Any] = torch.autocast(self.model.device.type, self._products_in)
        return rounding

    def _loss(
        self,
        positions: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor | None,
        reduction: str,
        temperature: float,
        inputs: dict[str, Any],
    ) -> torch.Tensor:
        base = inner_model(self.model)
        if self._head is not None:
            hidden = base.base_model(**inputs, use_cache=False).last_hidden_state[0, positions]
            layer = base.get_output_embeddings()
            head = replace(self._head, weight=layer.weight, bias=layer.bias).at(temperature)
            if reduction == "none":
                return -chunked_logprobs(hidden, head, targets)
            summed = chunked_loss if not layer.weight.requires_grad else trained_head_loss
            loss, self.right = summed(hidden, head, targets, weights)
            return loss
        logits = base(**inputs, use_cache=False).logits[0, positions].float()
        if temperature != 1:
            logits = logits / temperature
        if reduction == "none":
            return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        right = logits.detach().max(-1).indices == targets
        self.right = (right if weights is None else right & (weights != 0)).sum()
        if weights is None:
            return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none") @ weights

    # Trainer calls both in every step. With an adapter, 36 layers have some 1,500 modules, and each walk over them
    # keeps a GPU waiting for milliseconds.

    def train(self, mode: bool = True) -> ModelWithLoss:
        """Set the mode of all modules, unless it is that already."""
        self.training = mode
        if self.model.training is not mode:
            self.model.train(mode)
        return self

    def join_gradients(self) -> torch.Tensor:
        """Let the gradients of the trained parameters be parts of one tensor, float32 [numbers trained]: one kernel
        zeroes, adds or scales them all."""
        self.gradients = torch.zeros(sum(map(torch.numel, self.trained)), device=self.trained[0].device)
        self._joined = True
        self.zero_grad()
        return self.gradients

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the trained parameters, or zero them where they are joined."""
        if self.gradients is None or not self._joined:
            self.gradients = None
            for parameter in self.trained:
                parameter.grad = None
            return
        self.gradients.zero_()
        self._share_out(self.gradients)

    def add_up_ranks(self, *numbers: torch.Tensor) -> list[torch.Tensor]:
        """Replace the gradients by their sums over all ranks, and return the sums of further numbers: one all-reduce.

        A rank that had nothing to do adds zeros.
        """
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.trained]
        sums = torch.cat([gradient.flatten() for gradient in own] + [number.reshape(1) for number in numbers])
        ranks.add_up(sums)
        gradients = sums[: -len(numbers)]
        if self.gradients is not None:
            self.gradients.copy_(gradients)
        else:
            self.gradients = gradients
            self._share_out(gradients)
        return list(sums[-len(numbers) :].unbind())

    def _share_out(self, gradients: torch.Tensor) -> None:
        parts = gradients.split([parameter.numel() for parameter in self.trained])
        for parameter, part in zip(self.trained, parts, strict=True):
            parameter.grad = part.view_as(parameter)
