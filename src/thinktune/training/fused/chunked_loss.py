"""Cross-entropy and log-probabilities straight from hidden states, for a frozen head, without building the full logits.

Only trained positions reach the head: with a vocabulary of 151,936, the logits of 12,000 tokens would be 7 GB in
float32, more than the model. Each chunk's gradient is computed while its logits are there (a frozen head needs
none itself), so that the backward pass is one multiplication by the incoming gradient of each token.
"""

from __future__ import annotations

from typing import Any

import torch

from thinktune.models.untouched import at_rest

_CHUNK_BYTES = {"cuda": 512 * 2**20, "cpu": 24 * 2**20}
"""Of logits held at once: enough rows for full-speed products, on a CPU little enough to stay near its caches."""


_PROBED = 8
"""Tokens on which it is tried what a head computes."""
_ENLARGED = 64.0
"""How many times larger the hidden states are made for that."""


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, rows: int) -> torch.Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        cross_entropy = _fused_cross_entropy if hidden.is_cuda else _cross_entropy
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            losses[chunk], g_logits = cross_entropy(hidden[chunk] @ head.t(), targets[chunk], grad is not None)
            if grad is not None:
                torch.mm(g_logits, head, out=grad[chunk])
            del g_logits  # before the next chunk's are made
        if grad is not None:
            ctx.save_for_backward(grad)
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_losses[:, None].to(grad.dtype), None, None, None


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss of every row, and its gradient in the dtype of the logits where it is wanted."""
    wide, column = logits.float(), targets[:, None]
    log_normalizer = wide.logsumexp(-1, keepdim=True)
    losses = (log_normalizer - wide.gather(-1, column)).squeeze(-1)
    if grad:
        wide = wide.sub_(log_normalizer).exp_()
        wide.scatter_add_(-1, column, wide.new_full(column.shape, -1.0))
    return losses, wide.to(logits.dtype)


def _fused_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same in one kernel, the gradient in place of the logits."""
    from thinktune.training.fused.kernels.cross_entropy import cross_entropy

    return cross_entropy(logits, targets, grad=grad), logits


def chunked_loss(
    hidden: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    chunk_bytes: int | None = None,
) -> torch.Tensor:
    """Sum the weighted cross-entropy of all tokens, in nats: Σ wₜ·CEₜ.

    Args:
        hidden: [tokens, width], the hidden states of trained positions only.
        head: [vocabulary, width], the weight of a frozen, bias-free head; it receives no gradient.
        targets: int64 [tokens], the token each position must predict.
        weights: float32 [tokens], of any sign, taken as constants; None: 1 for every token.
        chunk_bytes: most bytes of logits, in the dtype of `hidden`, held at once; None: a good size for the device.

    Returns:
        float32 scalar (0 for no tokens).
    """
    rows = _rows(hidden, head, chunk_bytes)
    losses: torch.Tensor = _CrossEntropy.apply(hidden, head, targets, rows)
    if weights is not None:
        losses = losses * weights.detach()
    return sum((part.sum() for part in losses.split(rows)), losses.new_zeros(()))


def chunked_logprobs(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, *, chunk_bytes: int | None = None
) -> torch.Tensor:
    """Compute the log-probability of every target, in nats, float32 [tokens]; arguments as for `chunked_loss`.

    The gradient with respect to `hidden` is exact where it is wanted, and is not computed where it is not.
    """
    losses: torch.Tensor = _CrossEntropy.apply(hidden, head, targets, _rows(hidden, head, chunk_bytes))
    return -losses


def _rows(hidden: torch.Tensor, head: torch.Tensor, chunk_bytes: int | None) -> int:
    """Count the tokens whose logits are held at once."""
    held = chunk_bytes or _CHUNK_BYTES.get(hidden.device.type, 2**27)
    row: int = hidden.element_size() * head.shape[0]
    return max(1, held // row)


def has_plain_head(model: Any) -> bool:
    """Whether a causal LM's logits are nothing but `hidden @ head.weight.T` of a frozen head.

    Found by trying, on a few tokens, whatever the config says: no list of its fields (a scale, a soft cap, …) is ever
    complete.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or head.weight.requires_grad:
        return False
    into: list[torch.Tensor] = []
    out: list[torch.Tensor] = []

    def enlarge(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        into.append(inputs[0])
        return (inputs[0] * _ENLARGED,)  # a soft cap changes large logits only

    handles = [
        head.register_forward_pre_hook(enlarge),
        head.register_forward_hook(lambda module, inputs, output: out.append(output)),
    ]
    states = None
    ids = torch.arange(3, 3 + _PROBED, device=head.weight.device)[None] % len(head.weight)
    try:
        with at_rest(model), torch.no_grad():
            states = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
            for seen in (into, out):
                seen.clear()  # of a model that is its own base
            logits = model(input_ids=ids, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - a model may raise anything; what it cannot do is told when it is to be trained
        return False
    finally:
        for handle in handles:
            handle.remove()
    return (
        states is not None
        and len(into) == 1
        and _same(into[0], states[:, -into[0].shape[1] :])
        and _same(out[0], logits)
    )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    width = 0.01 * float(other.nan_to_num(posinf=0.0, neginf=0.0).abs().max())  # that a cap or a scale exceeds by far
    return bool(torch.allclose(one, other, rtol=0.01, atol=width, equal_nan=True))
