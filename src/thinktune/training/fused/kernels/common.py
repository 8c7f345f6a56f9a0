"""Shared parts of all kernels: block shapes, quantised rows, the product of tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

FP8 = torch.float8_e4m3fn
FP8_MAX = tl.constexpr(448.0)  # the largest e4m3 number


@dataclass
class Quantised:
    """fp8 rows [tokens, width] with a float32 scale [tokens, 1] each."""

    rows: torch.Tensor
    scale: torch.Tensor

    def __getitem__(self, part: slice) -> Quantised:
        return Quantised(self.rows[part], self.scale[part])


Rows = torch.Tensor | Quantised

FEW_TOKENS = 4096
"""Up to so many, programs that go through whole rows take fewer of them: there are too few to keep a GPU busy."""


@triton.jit
def dot(a, b):  # type: ignore[no-untyped-def]
    return tl.dot(a, b, input_precision="ieee")  # says nothing for bf16; without it, float32 would be cut to tf32


def blocks(count: int, size: int) -> int:
    """Return the number of blocks of a size that hold so many. (Triton's own function takes microseconds a call.)"""
    return -(-count // size)


def power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def tile_of(rank: int) -> int:
    """Return the columns of a tile for so many low-rank activations: a size that a tensor core takes."""
    return max(16, power_of_two(rank))


@triton.jit
def _quantise_kernel(x, column_scale, scale, out, WIDTH: tl.constexpr, SCALED: tl.constexpr, BC: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BC)
    inside = columns < WIDTH
    value = tl.load(x + row * WIDTH + columns, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(column_scale + columns, mask=inside, other=0.0)
    step = tl.maximum(tl.max(tl.abs(value), 0) / FP8_MAX, 1e-30)
    tl.store(scale + row, step)
    value = tl.minimum(tl.maximum(value / step, -FP8_MAX), FP8_MAX)
    tl.store(out + row * WIDTH + columns, value.to(out.dtype.element_ty), mask=inside)


def quantise(x: torch.Tensor, column_scale: torch.Tensor | None = None) -> Quantised:
    """Quantise rows [tokens, width], times `column_scale` float32 [width], to fp8; each row is held in registers
    meanwhile."""
    tokens, width = x.shape
    out = torch.empty_like(x, dtype=FP8)
    scale = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    size = power_of_two(width)
    _quantise_kernel[(tokens,)](
        x, column_scale, scale, out, WIDTH=width, SCALED=column_scale is not None, BC=size,
        num_warps=min(16, max(1, size // 1024)),
    )  # fmt: skip
    return Quantised(out, scale)
