"""Frozen weights in 8 bits: transposed for a backward product, or made whole again in the model's dtype."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import blocks


@triton.jit
def _transpose_kernel(weight, out, N, K, BN: tl.constexpr, BK: tl.constexpr):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    mask = (n < N)[:, None] & (k < K)[None, :]
    tile = tl.load(weight + n.to(tl.int64)[:, None] * K + k[None, :], mask=mask)
    tl.store(out + k.to(tl.int64)[:, None] * N + n[None, :], tl.trans(tile), mask=tl.trans(mask))


def transpose(weight: torch.Tensor) -> torch.Tensor:
    """Make a contiguous copy [in, out] of one-byte weights [out, in]."""
    rows, columns = weight.shape
    out = weight.new_empty(columns, rows)
    grid = (blocks(rows, 128), blocks(columns, 64))
    _transpose_kernel[grid](weight.view(torch.uint8), out.view(torch.uint8), rows, columns, BN=128, BK=64, num_warps=8)
    return out


@triton.jit
def _restore_kernel(weight, scale, out, WIDTH, E4M3: tl.constexpr, BC: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    value = tl.load(weight + row * WIDTH + columns, mask=columns < WIDTH)
    if E4M3:  # by hand, for GPUs that have no such numbers: exponent and fraction at float32's places, then its bias
        bits = value.to(tl.int32)
        bits = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
        number = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 ** 120
    else:
        number = value.to(tl.float32)
    number *= tl.load(scale + row)
    tl.store(out + row * WIDTH + columns, number.to(out.dtype.element_ty), mask=columns < WIDTH)


def restore(weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write `weight * scale` into `out` [out, in]: weights in int8, or e4m3 as uint8, with a float32 scale a row."""
    rows, columns = weight.shape
    grid = (rows, blocks(columns, 2048))
    _restore_kernel[grid](weight, scale, out, columns, E4M3=weight.dtype == torch.uint8, BC=2048, num_warps=8)
    return out
