"""Cross-entropy straight from hidden states, for a frozen head, without ever building the full logits.

Only trained positions reach the head: with a vocabulary of 151,936, the logits of 12,000 tokens would be 7 GB in
float32, more than the model. Each chunk's gradient is computed while its logits are there (a frozen head needs
none itself), so that the backward pass is one multiplication by the incoming gradient.
"""

from __future__ import annotations

from typing import Any

import torch

_CHUNK_BYTES = {"cuda": 512 * 2**20, "cpu": 48 * 2**20}
"""float32 logits held at once: enough rows for full-speed products, on a CPU little enough to stay near its caches."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(1, _CHUNK_BYTES.get(hidden.device.type, 2**28) // (4 * weight.shape[0]))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), rows):
            chunk, target = hidden[start : start + rows], targets[start : start + rows, None]
            logits = (chunk @ weight.t()).float()
            log_normalizer = logits.logsumexp(-1, keepdim=True)
            total += (log_normalizer - logits.gather(-1, target)).sum()
            if grad is not None:
                probabilities = logits.sub_(log_normalizer).exp_()
                probabilities.scatter_add_(-1, target, probabilities.new_full(target.shape, -1.0))
                grad[start : start + rows] = probabilities.to(weight.dtype) @ weight
        if grad is not None:
            ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_total.to(grad.dtype), None, None


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Summed cross-entropy in nats.

    Args:
        hidden: [tokens, width], the hidden states of trained positions only.
        weight: [vocabulary, width] of a frozen, bias-free head; it receives no gradient.
        targets: int64 [tokens], the token each position must predict.

    Returns:
        float32 scalar, the sum over tokens (0 for none).
    """
    loss: torch.Tensor = _HeadLoss.apply(hidden, weight, targets)
    return loss


def has_plain_head(model: Any) -> bool:
    """Whether a causal LM's logits are nothing but `hidden @ head.weight.T` of a frozen head."""
    head = model.get_output_embeddings()
    config = model.config.get_text_config()
    return (
        type(head) is torch.nn.Linear
        and head.bias is None
        and not head.weight.requires_grad
        and getattr(config, "final_logit_softcapping", None) is None
        and getattr(config, "logit_scale", None) is None  # Cohere
        and getattr(config, "logits_scaling", 1.0) == 1.0  # Granite
    )
