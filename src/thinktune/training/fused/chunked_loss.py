"""Cross-entropy and log-probabilities straight from hidden states, without building the full logits.

Only trained positions reach the head: with a vocabulary of 151,936, the logits of 12,000 tokens would be 7 GB in
float32, more than the model. Each chunk's gradient is computed while its logits are there (a frozen head needs
none itself), so that the backward pass is one multiplication by the incoming gradient of each token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

_CHUNK_BYTES = {"cuda": 512 * 2**20, "cpu": 24 * 2**20}
"""Of logits held at once: enough rows for full-speed products, on a CPU little enough to stay near its caches."""
_ROWS = 8
"""Rows of logits that a CPU takes through the cross-entropy at once."""


@dataclass(frozen=True)
class Head:
    """A frozen head: logits = cap · tanh(multiplier · (hidden W' + bias) / cap).

    Attributes:
        weight: [vocabulary, width].
        bias: [vocabulary]; None: there is none.
        cap: None: logits are not capped.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    multiplier: float = 1.0
    cap: float | None = None

    @property
    def bends(self) -> bool:
        """Whether logits are more than a product and a bias."""
        return self.multiplier != 1.0 or self.cap is not None

    def at(self, temperature: float) -> Head:
        """Return the head whose logits are these divided by a temperature."""
        if temperature == 1:
            return self
        cap = None if self.cap is None else self.cap / temperature
        return replace(self, multiplier=self.multiplier / temperature, cap=cap)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute [tokens, vocabulary] of [tokens, width], in its dtype as the models' own code does."""
        logits = hidden @ self.weight.t()
        if self.bias is not None:
            logits += self.bias
        if self.multiplier != 1.0:
            logits *= self.multiplier
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """The derivative of `logits` by the product with the weight."""
        return self.multiplier if self.cap is None else (1 - (logits / self.cap).square()).mul_(self.multiplier)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Head, targets: torch.Tensor, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        right = torch.empty(len(hidden), dtype=torch.int32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        cross_entropy = _fused_cross_entropy if hidden.is_cuda else _cross_entropy
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            logits = head.logits(hidden[chunk])
            slope = head.slope(logits) if grad is not None and head.bends else 1.0
            losses[chunk], right[chunk], g_logits = cross_entropy(logits, targets[chunk], grad is not None)
            if grad is not None:
                if head.bends:
                    g_logits.mul_(slope)
                torch.mm(g_logits, head.weight, out=grad[chunk])
            del logits, slope, g_logits  # before the next chunk's are made
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    def backward(ctx: Any, grad_losses: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_losses[:, None].to(grad.dtype), None, None, None


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, grad: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the loss of every row, whether its target has the largest logit, of equals the first, and where it is
    wanted the gradient, in the dtype of the logits and in their memory.

    A few rows at a time: what is read again for the next operation is then in the caches still.
    """
    losses, right = [], []
    for part, of_part in zip(logits.split(_ROWS), targets.split(_ROWS), strict=True):
        wide, column = part.to(torch.float32, copy=True), of_part[:, None]
        own, (largest, likeliest) = wide.gather(-1, column), wide.max(-1, keepdim=True)
        total = wide.sub_(largest).exp_().sum(-1, keepdim=True)
        losses.append(total.log().add_(largest).sub_(own).squeeze(-1))
        right.append((likeliest == column).squeeze(-1))
        if grad:
            wide.mul_(total.reciprocal_())
            part.copy_(wide.scatter_add_(-1, column, wide.new_full(column.shape, -1.0)))
    return torch.cat(losses), torch.cat(right), logits


def _fused_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, grad: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the same in one kernel, the gradient in place of the logits."""
    from thinktune.training.fused.kernels.cross_entropy import cross_entropy

    return *cross_entropy(logits, targets, grad=grad), logits


def chunked_loss(
    hidden: torch.Tensor,
    head: torch.Tensor | Head,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    chunk_bytes: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the weighted cross-entropy of all tokens, in nats: Σ wₜ·CEₜ.

    Args:
        hidden: [tokens, width], the hidden states of trained positions only.
        head: a frozen head, or its weight [vocabulary, width] where it is nothing else; it receives no gradient.
        targets: int64 [tokens], the token each position must predict.
        weights: float32 [tokens], of any sign, taken as constants; None: 1 for every token.
        chunk_bytes: most bytes of logits, in the dtype of `hidden`, held at once; None: a good size for the device.

    Returns:
        float32 scalar (0 for no tokens), and how many targets have the largest logit, of equals the first: int64
        scalar. Those of weight 0 are not counted.
    """
    head = head if isinstance(head, Head) else Head(head)
    rows = _rows(hidden, head, chunk_bytes)
    losses, right = _CrossEntropy.apply(hidden, head, targets, rows)
    if weights is not None:
        losses, right = losses * weights.detach(), right * (weights != 0)
    return sum((part.sum() for part in losses.split(rows)), losses.new_zeros(())), right.sum()


def trained_head_loss(
    hidden: torch.Tensor,
    head: Head,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    chunk_bytes: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same as `chunked_loss`, of a head that is trained too; it does not bend.

    The logits of a chunk are computed again in the backward pass, where they and their gradient take several times
    the bytes of a chunk in float32.
    """
    rows = max(1, _rows(hidden, head, chunk_bytes) // 4)
    total, count = hidden.new_zeros((), dtype=torch.float32), targets.new_zeros(())
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        parts = hidden[chunk], head.weight, head.bias, targets[chunk]
        losses, right = checkpoint(_plain_cross_entropy, *parts, use_reentrant=False, preserve_rng_state=False)
        if weights is not None:
            losses, right = losses * weights[chunk].detach(), right & (weights[chunk] != 0)
        total, count = total + losses.sum(), count + right.sum()
    return total, count


def _plain_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = F.linear(hidden, weight, bias).float()
    return F.cross_entropy(logits, targets, reduction="none"), logits.detach().max(-1).indices == targets


def chunked_logprobs(
    hidden: torch.Tensor, head: torch.Tensor | Head, targets: torch.Tensor, *, chunk_bytes: int | None = None
) -> torch.Tensor:
    """Compute the log-probability of every target, in nats, float32 [tokens]; arguments as for `chunked_loss`.

    The gradient with respect to `hidden` is exact where it is wanted, and is not computed where it is not.
    """
    head = head if isinstance(head, Head) else Head(head)
    losses: torch.Tensor = _CrossEntropy.apply(hidden, head, targets, _rows(hidden, head, chunk_bytes))[0]
    return -losses


def _rows(hidden: torch.Tensor, head: Head, chunk_bytes: int | None) -> int:
    """Count the tokens whose logits are held at once: no small rest is left, whose product would be slow."""
    held = chunk_bytes or _CHUNK_BYTES.get(hidden.device.type, 2**27)
    row: int = hidden.element_size() * len(head.weight) * (1 if head.cap is None else 2)
    most = max(1, held // row)
    return -(-len(hidden) // max(1, -(-len(hidden) // most))) or 1
