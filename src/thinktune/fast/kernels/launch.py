"""What all kernels share: block shapes, quantised rows, the product of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


@triton.jit
def dot(a, b):  # type: ignore[no-untyped-def]
    return tl.dot(a, b, input_precision="ieee")  # says nothing for bf16; without it, float32 would be cut to tf32


def blocks(tokens: int, size: int) -> tuple[int, ...]:
    return (triton.cdiv(tokens, size),)


def power_of_two(number: int) -> int:
    return int(triton.next_power_of_2(number))


@triton.jit(do_not_specialize=["tokens"])
def _quantise_kernel(x, weight_scale, scale, out, tokens, WIDTH: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    columns = tl.program_id(0) * BC + tl.arange(0, BC)
    mask = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    place = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    step = tl.load(scale + rows, mask=rows < tokens, other=1.0)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32) / step[:, None]
    value *= tl.load(weight_scale + columns, mask=columns < WIDTH, other=0.0)[None, :]
    value = tl.minimum(tl.maximum(value, -FP8_MAX), FP8_MAX)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def quantise(x: torch.Tensor, weight_scale: torch.Tensor, peaks: torch.Tensor) -> Quantised:
    """Rows [tokens, width] times `weight_scale` [width] in fp8, where `peaks` [tokens, 1] are the largest of each row."""
    tokens, width = x.shape
    result = Quantised(torch.empty_like(x, dtype=FP8), to_scale(peaks))
    grid = (triton.cdiv(width, 256), triton.cdiv(tokens, 16))
    _quantise_kernel[grid](x, weight_scale, result.scale, result.rows, tokens, WIDTH=width, BM=16, BC=256, num_warps=4)
    return result


def to_scale(peaks: torch.Tensor) -> torch.Tensor:
    """Scales that bring rows of these peaks into the range of fp8, in place of the peaks."""
    return peaks.mul_(1 / 448.0).clamp_(min=1e-30)
