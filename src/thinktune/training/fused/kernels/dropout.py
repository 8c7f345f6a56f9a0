"""Dropout on the inputs of adapters, with masks drawn from counters: the backward pass draws the same ones again.

A mask depends on the training's seed, the optimizer step, the layer, the projection, the token and the column, and on
nothing else: not on how documents are spread over batches and processes, nor on what was drawn before.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import blocks

_RANGE = tl.constexpr(2.0**32)


@dataclass(frozen=True)
class Dropout:
    """Dropout on the input of projections that read the same rows, a mask for each of them.

    Attributes:
        seed: int32 [1], of the training and its optimizer step, on the device of the rows.
        tokens: int32 [tokens], a key of each token that no other token of the step has.
        place: of the first projection in the model; the next one's is one more.
        threshold: drop a number where 32 random bits are below.
    """

    seed: torch.Tensor
    tokens: torch.Tensor
    place: int
    threshold: int

    def __getitem__(self, part: slice) -> Dropout:
        return replace(self, tokens=self.tokens[part])

    def of_slot(self, slot: int) -> Dropout:
        return replace(self, place=self.place + slot)


def drawing(dropout: Dropout | None) -> tuple[torch.Tensor | None, torch.Tensor | None, int, int]:
    """Return the kernels' arguments seed, keys and place, and their THRESHOLD: 0 without dropout."""
    return (None, None, 0, 0) if dropout is None else (dropout.seed, dropout.tokens, dropout.place, dropout.threshold)


def threshold_of(probability: float) -> int:
    return round(probability * 2**32)


@triton.jit
def _mix(x):
    """Mix 32 bits (the finalizer "lowbias32" of C. Wellons' hash prospector, with the constants of its issue 19)."""
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0x735A2D97
    x ^= x >> 15
    return x


@triton.jit
def row_keys(seed, tokens, place, rows, live):
    """Compute the key of each row for the projection at a place, uint32 [rows]."""
    of_place = _mix(tl.load(seed).to(tl.uint32) ^ _mix(place.to(tl.uint32) + 1))
    return _mix(tl.load(tokens + rows, mask=live, other=0).to(tl.uint32) ^ of_place)


@triton.jit
def column_keys(columns):
    return _mix(columns.to(tl.uint32) ^ 0x9E3779B9)


@triton.jit
def drop(value, of_rows, of_columns, THRESHOLD: tl.constexpr):
    """Zero the dropped numbers of a tile and scale the others, so that their expectation stays."""
    bits = of_rows[:, None] ^ of_columns[None, :]
    # The keys are mixed, and the upper bits decide: the finalizer's first and last steps are not needed.
    bits *= 0x21F0AAAD
    bits ^= bits >> 15
    bits *= 0x735A2D97
    return tl.where(bits >= THRESHOLD, value * (_RANGE / (_RANGE - THRESHOLD)), 0.0)


@triton.jit(do_not_specialize=["tokens", "place"])
def _drop_kernel(
    x, out, seed, keys, place, tokens,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, THRESHOLD: tl.constexpr, ADD: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    live = rows < tokens
    mask = live[:, None] & (columns < WIDTH)[None, :]
    at = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    value = tl.load(x + rows.to(tl.int64)[:, None] * STRIDE + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    value = drop(value, row_keys(seed, keys, place, rows, live), column_keys(columns), THRESHOLD)
    if ADD:
        value += tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


def dropped(x: torch.Tensor, dropout: Dropout, *, add_to: torch.Tensor | None = None) -> torch.Tensor:
    """Drop numbers of [tokens, width], rows of any stride, for the projection at `dropout.place`.

    Args:
        add_to: [tokens, width], to which the result is added. None: it is returned in new memory.
    """
    tokens, width = x.shape
    out = x.new_empty(tokens, width) if add_to is None else add_to
    _drop_kernel[(blocks(tokens, 32), blocks(width, 256))](
        x, out, dropout.seed, dropout.tokens, dropout.place, tokens,
        WIDTH=width, STRIDE=x.stride(0), THRESHOLD=dropout.threshold, ADD=add_to is not None,
        BM=32, BC=256, num_warps=4,
    )  # fmt: skip
    return out
