"""Cross-entropy and its gradient over logits that are there for a moment only."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import power_of_two


@triton.jit
def _cross_entropy_kernel(
    logits, targets, losses, right, VOCABULARY: tl.constexpr, GRAD: tl.constexpr, BC: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * VOCABULARY
    target = tl.load(targets + row)
    goal = tl.load(start + target).to(tl.float32)
    peaks = tl.full([BC], float("-inf"), tl.float32)
    sums = tl.zeros([BC], tl.float32)
    beaten = tl.zeros([BC], tl.int32)
    for first in range(0, VOCABULARY, BC):
        columns = first + tl.arange(0, BC)
        value = tl.load(start + columns, mask=columns < VOCABULARY, other=float("-inf")).to(tl.float32)
        beaten |= ((value > goal) | ((value == goal) & (columns < target))).to(tl.int32)
        higher = tl.maximum(peaks, value)
        # A lane that has seen nothing but -inf must not compute inf - inf.
        sums = tl.where(higher > float("-inf"), sums * tl.exp(peaks - higher) + tl.exp(value - higher), 0.0)
        peaks = higher
    peak = tl.max(peaks, 0)
    normalizer = peak + tl.log(tl.sum(tl.where(peaks > float("-inf"), sums * tl.exp(peaks - peak), 0.0), 0))
    tl.store(losses + row, normalizer - goal)
    tl.store(right + row, 1 - tl.max(beaten, 0))
    if GRAD:
        tl.debug_barrier()  # the target's logit is read above and overwritten below
        for first in range(0, VOCABULARY, BC):
            columns = first + tl.arange(0, BC)
            mask = columns < VOCABULARY
            value = tl.load(start + columns, mask=mask, other=float("-inf")).to(tl.float32)
            grad = tl.exp(value - normalizer) - (columns == target).to(tl.float32)
            tl.store(start + columns, grad.to(logits.dtype.element_ty), mask=mask)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, *, grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the loss of every row in nats, float32 [rows], and whether its target has the largest logit, of equals
    the first, int32 [rows]; with `grad`, overwrite the logits with the gradient.

    Args:
        logits: [rows, vocabulary], contiguous.
        targets: int64 [rows].
    """
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    right = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
    size = min(4096, power_of_two(logits.shape[1]))
    _cross_entropy_kernel[(len(logits),)](
        logits, targets, losses, right, VOCABULARY=logits.shape[1], GRAD=grad, BC=size, num_warps=8
    )
    return losses, right
