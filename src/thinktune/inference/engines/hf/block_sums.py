"""A GPU kernel: for every block of a row of logits its maximum, and its sum of exponentials, in one pass over them."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _block_sums_kernel(logits, scale, tops, sums, vocabulary, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    value = tl.load(logits + row * vocabulary + columns, mask=inside, other=-float("inf")).to(tl.float32)
    value = value / tl.load(scale + row)
    top = tl.max(value, 0)
    at = row * tl.num_programs(1) + block
    tl.store(tops + at, top)
    tl.store(sums + at, tl.sum(tl.where(inside, tl.exp(value - top), 0.0), 0))


def block_sums(logits: torch.Tensor, scale: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the greatest of each block of logits / scale, and the sum of exponentials of the distances from it.

    Args:
        logits: contiguous [rows, vocabulary].
        scale: float32 [rows, 1].
        block: columns of a block, a power of two.

    Returns:
        float32 [rows, blocks] twice.
    """
    rows, vocabulary = logits.shape
    shape = rows, -(-vocabulary // block)
    tops, sums = (torch.empty(shape, dtype=torch.float32, device=logits.device) for _ in range(2))
    _block_sums_kernel[shape](logits, scale, tops, sums, vocabulary, BLOCK=block, num_warps=4)
    return tops, sums
