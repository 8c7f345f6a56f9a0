"""Kernels over rows of the residual stream: addition, RMSNorm, low-rank products, fp8, and their derivatives."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import FP8, FP8_MAX, Quantised, Rows, blocks, dot, quantise, tile_of


@triton.jit(do_not_specialize=["tokens"])
def _rows_kernel(
    x, y, low, b, norm, a, total, out, scale, low_out, tokens, eps,
    WIDTH: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, LOWS: tl.constexpr, L: tl.constexpr,
    ADD: tl.constexpr, NORM: tl.constexpr, LOW: tl.constexpr, WRITE: tl.constexpr, QUANT: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < tokens
    start_of = rows.to(tl.int64)[:, None] * WIDTH
    rank, lows = tl.arange(0, R), tl.arange(0, L)
    if ADD:
        low_mask = live[:, None] & (rank < RANK)[None, :]
        low_tile = tl.load(low + rows[:, None] * RANK + rank[None, :], mask=low_mask, other=0.0).to(b.dtype.element_ty)
    squares = tl.zeros([BM], tl.float32)
    peak = tl.zeros([BM], tl.float32)
    sums = tl.zeros([BM, L], tl.float32)
    for first in tl.range(0, WIDTH, BC, num_stages=STAGES):
        columns = first + tl.arange(0, BC)
        inside = columns < WIDTH
        mask = live[:, None] & inside[None, :]
        place = start_of + columns[None, :]
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        if ADD:
            b_mask = inside[:, None] & (rank < RANK)[None, :]
            b_tile = tl.load(b + columns[:, None] * RANK + rank[None, :], mask=b_mask, other=0.0)
            value += tl.load(y + place, mask=mask, other=0.0).to(tl.float32) + dot(low_tile, tl.trans(b_tile))
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + place, rounded, mask=mask)
            value = rounded.to(tl.float32)
        if NORM:
            squares += tl.sum(value * value, 1)
            value *= tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        if LOW:
            a_mask = (lows < LOWS)[:, None] & inside[None, :]
            a_tile = tl.load(a + lows[:, None] * WIDTH + columns[None, :], mask=a_mask, other=0.0)
            sums += dot(value.to(a.dtype.element_ty), tl.trans(a_tile))
        if QUANT:
            peak = tl.maximum(peak, tl.max(tl.abs(value), 1))
    factor = tl.full([BM], 1.0, tl.float32)
    if NORM:
        factor = tl.rsqrt(squares / WIDTH + eps)
    if LOW:
        low_place = rows[:, None] * LOWS + lows[None, :]
        tl.store(
            low_out + low_place, (sums * factor[:, None]).to(low_out.dtype.element_ty),
            mask=live[:, None] & (lows < LOWS)[None, :],
        )  # fmt: skip
    if WRITE:
        if QUANT:
            step = tl.maximum(peak * factor / FP8_MAX, 1e-12)
            tl.store(scale + rows, step, mask=live)
            factor = factor / step
        if ADD:
            tl.debug_barrier()  # what other threads of this program stored is read below
        for first in tl.range(0, WIDTH, BC, num_stages=STAGES):
            columns = first + tl.arange(0, BC)
            mask = live[:, None] & (columns < WIDTH)[None, :]
            place = start_of + columns[None, :]
            if ADD:
                value = tl.load(total + place, mask=mask, other=0.0).to(tl.float32)
            else:
                value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
            if NORM:
                value *= tl.load(norm + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
            value *= factor[:, None]
            if QUANT:
                value = tl.minimum(tl.maximum(value, -FP8_MAX), FP8_MAX)
            tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


def add_norm_project(
    x: torch.Tensor,
    *,
    update: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    norm: tuple[torch.Tensor, float] | None = None,
    a: torch.Tensor | None = None,
    write: bool = True,
    in_fp8: bool = False,
    into: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Rows | None, torch.Tensor | None]:
    """Compute `x + y + low B'`, its RMSNorm, and the low-rank product of that; each part is optional.

    Args:
        x: [tokens, width].
        update: y [tokens, width], low [tokens, rank], b [width, rank].
        norm: weight [width] and epsilon.
        a: [slots, rank, width], or None for no low-rank product.
        write: whether the (normalised) rows are wanted, and not only their low-rank product.
        in_fp8: write them in fp8.
        into: [tokens, width], memory for the sum. None: new memory.

    Returns:
        the sum (x itself without `update`), the rows written, and low [tokens, slots * rank].
    """
    tokens, width = x.shape
    y, low, b = update or (None, None, None)
    rank = a.shape[1] if a is not None else b.shape[1] if b is not None else 1
    lows = len(a) * rank if a is not None else 1
    total = x if update is None else torch.empty_like(x) if into is None else into
    out: Rows | None = None
    if in_fp8 and write:
        out = Quantised(torch.empty_like(x, dtype=FP8), torch.empty(tokens, 1, dtype=torch.float32, device=x.device))
    elif write:
        out = torch.empty_like(x)
    low_out = x.new_empty(tokens, lows) if a is not None else None
    data, scale = (out.rows, out.scale) if isinstance(out, Quantised) else (out, None)
    weight, eps = norm or (None, 0.0)
    bc = 256 if norm and update is None else 128  # as all sizes here, the fastest on an H100
    _rows_kernel[(blocks(tokens, 32),)](
        x, y, low, b, weight, a, total, data, scale, low_out, tokens, eps,
        WIDTH=width, R=tile_of(rank), RANK=rank, LOWS=lows, L=tile_of(lows),
        ADD=update is not None, NORM=norm is not None, LOW=a is not None, WRITE=write, QUANT=in_fp8,
        BM=32, BC=bc if lows <= 64 else 64, STAGES=2 if norm else 3, num_warps=4,
    )  # fmt: skip
    return total, out, low_out


@triton.jit(do_not_specialize=["tokens"])
def _output_grad_kernel(
    g, low, b, g_low, g_b, tokens, scaling,
    WIDTH: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = columns < WIDTH
    rank = tl.arange(0, R)
    b_place = columns[:, None] * RANK + rank[None, :]
    b_mask = inside[:, None] & (rank < RANK)[None, :]
    b_tile = tl.load(b + b_place, mask=b_mask, other=0.0)
    of_b = tl.zeros([BC, R], tl.float32)
    for step in tl.range(0, STEPS, 1, num_stages=STAGES):
        rows = (tl.program_id(1) * STEPS + step) * BM + tl.arange(0, BM)
        live = rows < tokens
        low_place = rows[:, None] * RANK + rank[None, :]
        low_mask = live[:, None] & (rank < RANK)[None, :]
        low_tile = tl.load(low + low_place, mask=low_mask, other=0.0).to(b.dtype.element_ty)
        place = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        value = tl.load(g + place, mask=live[:, None] & inside[None, :], other=0.0)
        of_b += dot(tl.trans(value), low_tile)
        tl.atomic_add(g_low + low_place, dot(value, b_tile), mask=low_mask, sem="relaxed")
    tl.atomic_add(g_b + b_place, of_b * scaling, mask=b_mask, sem="relaxed")


def output_grad(
    g: torch.Tensor,
    low: torch.Tensor,
    b: torch.Tensor,
    g_low: torch.Tensor,
    g_b: torch.Tensor,
    scaling: float,
    weight_scale: torch.Tensor | None = None,
) -> Rows:
    """Compute the adapter's gradients from that of a projection's output.

    Args:
        g: [tokens, width], the gradient of the output.
        low: [tokens, rank], the low-rank activation; b: [width, rank] with the scaling in it.
        g_low: float32 [tokens, rank], to which g b is added.
        g_b: float32 [width, rank], to which the gradient of B is added.
        weight_scale: float32 [width]; where given, `g` comes back as fp8 with these scales in it.

    Returns:
        `g` as it goes into the product with the frozen weight.
    """
    tokens, width = g.shape
    bm, bc, steps = 64, 128, 8
    grid = (blocks(width, bc), blocks(tokens, bm * steps))
    _output_grad_kernel[grid](
        g, low, b, g_low, g_b, tokens, scaling,
        WIDTH=width, R=tile_of(low.shape[1]), RANK=low.shape[1], BM=bm, BC=bc, STEPS=steps, STAGES=2, num_warps=4,
    )  # fmt: skip
    return g if weight_scale is None else quantise(g, weight_scale)


@triton.jit(do_not_specialize=["tokens"])
def _input_grad_kernel(
    g, g_low, a, x, norm, residual, out, g_a, tokens, eps,
    WIDTH: tl.constexpr, LOWS: tl.constexpr, L: tl.constexpr, NORM: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < tokens
    start_of = rows.to(tl.int64)[:, None] * WIDTH
    lows = tl.arange(0, L)
    low_mask = (lows < LOWS)[:, None]
    low_place = rows[:, None] * LOWS + lows[None, :]
    low_tile = tl.load(g_low + low_place, mask=live[:, None] & (lows < LOWS)[None, :], other=0.0)
    low_tile = low_tile.to(a.dtype.element_ty)
    inverse = tl.full([BM], 1.0, tl.float32)
    mean = tl.zeros([BM], tl.float32)
    if NORM:
        squares = tl.zeros([BM], tl.float32)
        for first in tl.range(0, WIDTH, BC, num_stages=STAGES):
            columns = first + tl.arange(0, BC)
            inside = columns < WIDTH
            mask = live[:, None] & inside[None, :]
            value = tl.load(x + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            a_tile = tl.load(a + lows[:, None] * WIDTH + columns[None, :], mask=low_mask & inside[None, :], other=0.0)
            grad = tl.load(g + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            grad = (grad + dot(low_tile, a_tile)) * tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)[
                None, :
            ]
            squares += tl.sum(value * value, 1)
            mean += tl.sum(value * grad, 1)
        inverse = tl.rsqrt(squares / WIDTH + eps)
        mean = mean * inverse * inverse / WIDTH
    for first in tl.range(0, WIDTH, BC, num_stages=STAGES):
        columns = first + tl.arange(0, BC)
        inside = columns < WIDTH
        mask = live[:, None] & inside[None, :]
        value = tl.load(x + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        a_tile = tl.load(a + lows[:, None] * WIDTH + columns[None, :], mask=low_mask & inside[None, :], other=0.0)
        grad = tl.load(g + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32) + dot(low_tile, a_tile)
        entered = value
        if NORM:
            weight = tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
            entered = value * inverse[:, None] * weight
            grad = inverse[:, None] * (grad * weight - value * mean[:, None])
            grad += tl.load(residual + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(out + start_of + columns[None, :], grad.to(out.dtype.element_ty), mask=mask)
        g_a_tile = dot(tl.trans(low_tile), entered.to(low_tile.dtype))
        tl.atomic_add(
            g_a + lows[:, None] * WIDTH + columns[None, :], g_a_tile, mask=low_mask & inside[None, :], sem="relaxed"
        )


def input_grad(
    g: torch.Tensor,
    g_low: torch.Tensor,
    a: torch.Tensor,
    x: torch.Tensor,
    g_a: torch.Tensor,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Complete the gradient of projections' common input, and pass it on through the RMSNorm before them.

    Args:
        g: [tokens, width], the gradient through the frozen weights; overwritten with the result without `into`.
        g_low: float32 [tokens, slots * rank]; a: [slots, rank, width].
        x: [tokens, width], the input, or with `norm` the rows before normalisation.
        g_a: float32 [slots, rank, width], the gradient of A, added to.
        norm: weight [width] and epsilon of the RMSNorm, if there is one.
        residual: [tokens, width], with `norm`: the gradient that comes past it.
    """
    tokens, width = g.shape
    lows = a.shape[0] * a.shape[1]
    weight, eps = norm or (None, 0.0)
    out = g if into is None else into
    bm, bc = (64, 64) if lows <= 64 else (32, 32)
    _input_grad_kernel[(blocks(tokens, bm),)](
        g, g_low, a, x, weight, residual, out, g_a, tokens, eps,
        WIDTH=width, LOWS=lows, L=tile_of(lows), NORM=norm is not None,
        BM=bm, BC=bc, STAGES=3 if lows <= 64 else 2, num_warps=4,
    )  # fmt: skip
    return out
