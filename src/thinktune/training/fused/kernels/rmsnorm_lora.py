"""Kernels over rows of the residual stream: addition, RMSNorm, low-rank products, fp8, and their derivatives."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import FEW_TOKENS, FP8, FP8_MAX, Quantised, Rows, blocks, dot, tile_of
from thinktune.training.fused.kernels.dropout import column_keys, drawing, drop, row_keys
from thinktune.training.fused.kernels.low_rank import LowRank


@triton.jit
def _low_tile(low, rows, live, slot, SLOTS: tl.constexpr, LOWS: tl.constexpr, L: tl.constexpr):
    """Load the low-rank activations of a slot, [BM, L]; low: [tokens, SLOTS * LOWS]."""
    lows = tl.arange(0, L)
    at = rows[:, None] * (SLOTS * LOWS) + slot * LOWS + lows[None, :]
    return tl.load(low + at, mask=live[:, None] & (lows < LOWS)[None, :], other=0.0)


@triton.jit
def _store_low(low, value, rows, live, slot, SLOTS: tl.constexpr, LOWS: tl.constexpr, L: tl.constexpr):
    lows = tl.arange(0, L)
    at = rows[:, None] * (SLOTS * LOWS) + slot * LOWS + lows[None, :]
    tl.store(low + at, value.to(low.dtype.element_ty), mask=live[:, None] & (lows < LOWS)[None, :])


@triton.jit
def _a_place(columns, slot, WIDTH: tl.constexpr, LOWS: tl.constexpr, L: tl.constexpr):
    """Compute offsets and mask of a tile [L, BC] of a slot's A; a: [SLOTS, LOWS, WIDTH]."""
    lows = tl.arange(0, L)
    at = (slot * LOWS + lows)[:, None] * WIDTH + columns[None, :]
    return at, (lows < LOWS)[:, None] & (columns < WIDTH)[None, :]


@triton.jit
def _low_product(value, a, columns, of_rows, of_columns, slot, WIDTH: tl.constexpr, LOWS: tl.constexpr,
                 L: tl.constexpr, THRESHOLD: tl.constexpr):  # fmt: skip
    """Multiply a tile [BM, BC] of the input, with dropout, by a slot's A: [BM, L]."""
    if THRESHOLD:
        value = drop(value, of_rows, of_columns, THRESHOLD)
    at, mask = _a_place(columns, slot, WIDTH, LOWS, L)
    return dot(value.to(a.dtype.element_ty), tl.trans(tl.load(a + at, mask=mask, other=0.0)))


@triton.jit(do_not_specialize=["tokens", "place"])
def _rows_kernel(
    x, y, low, b, norm, a, total, out, scale, low_out, seed, keys, place, tokens, eps, gain,
    WIDTH: tl.constexpr, OUT_WIDTH: tl.constexpr,
    R: tl.constexpr, RANK: tl.constexpr, SLOTS: tl.constexpr, LOWS: tl.constexpr, L: tl.constexpr,
    ADD: tl.constexpr, UPDATE: tl.constexpr, NORM: tl.constexpr, LOW: tl.constexpr, WRITE: tl.constexpr,
    QUANT: tl.constexpr, THRESHOLD: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < tokens
    start_of = rows.to(tl.int64)[:, None] * WIDTH
    rank = tl.arange(0, R)
    if UPDATE:
        low_mask = live[:, None] & (rank < RANK)[None, :]
        low_tile = tl.load(low + rows[:, None] * RANK + rank[None, :], mask=low_mask, other=0.0).to(b.dtype.element_ty)
    squares = tl.zeros([BM], tl.float32)
    peak = tl.zeros([BM], tl.float32)
    sums = tl.zeros([BM, L], tl.float32)
    sums_1 = tl.zeros([BM, L], tl.float32)  # of the second slot and of the third, where each has a mask of its own
    sums_2 = tl.zeros([BM, L], tl.float32)
    keys_0, keys_1, keys_2 = None, None, None
    if THRESHOLD:
        keys_0 = row_keys(seed, keys, place, rows, live)
        keys_1 = row_keys(seed, keys, place + 1, rows, live)
        keys_2 = row_keys(seed, keys, place + 2, rows, live)
    for first in tl.range(0, WIDTH, BC, num_stages=STAGES):
        columns = first + tl.arange(0, BC)
        inside = columns < WIDTH
        mask = live[:, None] & inside[None, :]
        at = start_of + columns[None, :]
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        if ADD:
            addend = tl.load(y + at, mask=mask, other=0.0).to(tl.float32)
            if UPDATE:
                b_mask = inside[:, None] & (rank < RANK)[None, :]
                b_tile = tl.load(b + columns[:, None] * RANK + rank[None, :], mask=b_mask, other=0.0)
                addend += dot(low_tile, tl.trans(b_tile))
            value += addend * gain
            rounded = value.to(total.dtype.element_ty)
            tl.store(total + at, rounded, mask=mask)
            value = rounded.to(tl.float32)
        if NORM:
            squares += tl.sum(value * value, 1)
            value *= tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
        if LOW:
            of_columns = columns
            if THRESHOLD:
                of_columns = column_keys(columns)
            sums += _low_product(value, a, columns, keys_0, of_columns, 0, WIDTH, LOWS, L, THRESHOLD)
            if SLOTS > 1:
                sums_1 += _low_product(value, a, columns, keys_1, of_columns, 1, WIDTH, LOWS, L, THRESHOLD)
            if SLOTS > 2:
                sums_2 += _low_product(value, a, columns, keys_2, of_columns, 2, WIDTH, LOWS, L, THRESHOLD)
        if QUANT:
            peak = tl.maximum(peak, tl.max(tl.abs(value), 1))
    factor = tl.full([BM], 1.0, tl.float32)
    if NORM:
        factor = tl.rsqrt(squares / WIDTH + eps)
    if LOW:
        _store_low(low_out, sums * factor[:, None], rows, live, 0, SLOTS, LOWS, L)
        if SLOTS > 1:
            _store_low(low_out, sums_1 * factor[:, None], rows, live, 1, SLOTS, LOWS, L)
        if SLOTS > 2:
            _store_low(low_out, sums_2 * factor[:, None], rows, live, 2, SLOTS, LOWS, L)
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
            at = start_of + columns[None, :]
            if ADD:
                value = tl.load(total + at, mask=mask, other=0.0).to(tl.float32)
            else:
                value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
            if NORM:
                value *= tl.load(norm + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]
            value *= factor[:, None]
            if QUANT:
                value = tl.minimum(tl.maximum(value, -FP8_MAX), FP8_MAX)
            at = rows.to(tl.int64)[:, None] * OUT_WIDTH + columns[None, :]
            tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)


def _slots_of(lora: LowRank | None) -> tuple[int, int]:
    """Return the slots and their rows of A that a kernel loops over: all as one, unless each has a mask of its own."""
    if lora is None:
        return 1, 1
    return (1, lora.slots * lora.rank) if lora.dropout is None else (lora.slots, lora.rank)


def add_norm_project(
    x: torch.Tensor,
    *,
    update: tuple[torch.Tensor, LowRank | None, float] | None = None,
    norm: tuple[torch.Tensor, float] | None = None,
    lora: LowRank | None = None,
    write: bool = True,
    in_fp8: bool = False,
    beside: int = 0,
    into: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Rows | None]:
    """Compute `x + gain (y + low B')`, its RMSNorm, and the low-rank product of that; each part is optional.

    Args:
        x: [tokens, width].
        update: y [tokens, width]; the adapter of the projection that it comes from, or None where y is complete; gain.
        norm: weight [width] and epsilon.
        lora: of the projections that follow; its `low` is set.
        write: whether the (normalised) rows are wanted, and not only their low-rank product.
        in_fp8: write them in fp8.
        beside: columns to leave empty at the end of these rows (not in fp8).
        into: [tokens, width], memory for the sum. None: new memory.

    Returns:
        the sum (x itself without `update`), and the rows written.
    """
    tokens, width = x.shape
    y, added, gain = update or (None, None, 1.0)
    low, b = (added.low, added.b) if added else (None, None)
    rank = lora.rank if lora else added.rank if added else 1
    slots, lows = _slots_of(lora)
    total = x if update is None else torch.empty_like(x) if into is None else into
    out: Rows | None = None
    if in_fp8 and write:
        out = Quantised(torch.empty_like(x, dtype=FP8), torch.empty(tokens, 1, dtype=torch.float32, device=x.device))
    elif write:
        out = x.new_empty(tokens, width + beside)
    a, dropout = (lora.a, lora.dropout) if lora else (None, None)
    if lora:
        lora.low = x.new_empty(tokens, slots * lows)
    seed, keys, place, threshold = drawing(dropout)
    data, scale = (out.rows, out.scale) if isinstance(out, Quantised) else (out, None)
    weight, eps = norm or (None, 0.0)
    bc = 256 if norm and update is None else 128  # as all sizes here, the fastest on an H100
    bm = 16 if tokens <= FEW_TOKENS else 32
    _rows_kernel[(blocks(tokens, bm),)](
        x, y, low, b, weight, a, total, data, scale, lora and lora.low, seed, keys, place, tokens, eps, gain,
        WIDTH=width, OUT_WIDTH=width + beside, R=tile_of(rank), RANK=rank, SLOTS=slots, LOWS=lows, L=tile_of(lows),
        ADD=update is not None, UPDATE=b is not None, NORM=norm is not None, LOW=a is not None, WRITE=write,
        QUANT=in_fp8, THRESHOLD=threshold, BM=bm, BC=bc if lows <= 64 else 64, STAGES=2 if norm else 3, num_warps=4,
    )  # fmt: skip
    return total, out


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


def output_grad(g: torch.Tensor, lora: LowRank) -> None:
    """Add up the gradients of B, and of the low-rank activation, of a single projection with the output's gradient
    `g` [tokens, width]."""
    tokens, width = g.shape
    bm, bc, steps = 64, 128, 2 if tokens <= FEW_TOKENS else 8
    grid = (blocks(width, bc), blocks(tokens, bm * steps))
    _output_grad_kernel[grid](
        g, lora.low, lora.b, lora.g_low, lora.g_b, tokens, lora.scaling,
        WIDTH=width, R=tile_of(lora.rank), RANK=lora.rank, BM=bm, BC=bc, STEPS=steps, STAGES=2, num_warps=4,
    )  # fmt: skip


@triton.jit
def _through_slot(grad, low_tile, a, columns, of_rows, of_columns, slot, WIDTH: tl.constexpr, LOWS: tl.constexpr,
                  L: tl.constexpr, THRESHOLD: tl.constexpr):  # fmt: skip
    """Add the gradient that comes through a slot's adapter to a tile [BM, BC]."""
    at, mask = _a_place(columns, slot, WIDTH, LOWS, L)
    part = dot(low_tile, tl.load(a + at, mask=mask, other=0.0))
    if THRESHOLD:
        part = drop(part, of_rows, of_columns, THRESHOLD)
    return grad + part


@triton.jit
def _add_a_grad(g_a, low_tile, entered, columns, of_rows, of_columns, slot, WIDTH: tl.constexpr, LOWS: tl.constexpr,
                L: tl.constexpr, THRESHOLD: tl.constexpr):  # fmt: skip
    """Add a slot's share of the gradient of A."""
    if THRESHOLD:
        entered = drop(entered, of_rows, of_columns, THRESHOLD)
    at, mask = _a_place(columns, slot, WIDTH, LOWS, L)
    tl.atomic_add(g_a + at, dot(tl.trans(low_tile), entered.to(low_tile.dtype)), mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["tokens", "place"])
def _input_grad_kernel(
    g, g_low, a, x, norm, residual, out, g_a, seed, keys, place, tokens, eps,
    WIDTH: tl.constexpr, SLOTS: tl.constexpr, LOWS: tl.constexpr, L: tl.constexpr, LOW: tl.constexpr,
    NORM: tl.constexpr, RESIDUAL: tl.constexpr, THRESHOLD: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < tokens
    start_of = rows.to(tl.int64)[:, None] * WIDTH
    keys_0, keys_1, keys_2 = None, None, None
    low_0, low_1, low_2 = None, None, None
    if LOW:
        low_0 = _low_tile(g_low, rows, live, 0, SLOTS, LOWS, L).to(a.dtype.element_ty)
        if SLOTS > 1:
            low_1 = _low_tile(g_low, rows, live, 1, SLOTS, LOWS, L).to(a.dtype.element_ty)
        if SLOTS > 2:
            low_2 = _low_tile(g_low, rows, live, 2, SLOTS, LOWS, L).to(a.dtype.element_ty)
        if THRESHOLD:
            keys_0 = row_keys(seed, keys, place, rows, live)
            keys_1 = row_keys(seed, keys, place + 1, rows, live)
            keys_2 = row_keys(seed, keys, place + 2, rows, live)
    inverse = tl.full([BM], 1.0, tl.float32)
    mean = tl.zeros([BM], tl.float32)
    if NORM:
        squares = tl.zeros([BM], tl.float32)
        for first in tl.range(0, WIDTH, BC, num_stages=STAGES):
            columns = first + tl.arange(0, BC)
            inside = columns < WIDTH
            mask = live[:, None] & inside[None, :]
            value = tl.load(x + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            grad = tl.load(g + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
            if LOW:
                of_columns = columns
                if THRESHOLD:
                    of_columns = column_keys(columns)
                grad = _through_slot(grad, low_0, a, columns, keys_0, of_columns, 0, WIDTH, LOWS, L, THRESHOLD)
                if SLOTS > 1:
                    grad = _through_slot(grad, low_1, a, columns, keys_1, of_columns, 1, WIDTH, LOWS, L, THRESHOLD)
                if SLOTS > 2:
                    grad = _through_slot(grad, low_2, a, columns, keys_2, of_columns, 2, WIDTH, LOWS, L, THRESHOLD)
                if THRESHOLD:  # masks cost more than the way to memory and back
                    rounded = grad.to(out.dtype.element_ty)
                    tl.store(out + start_of + columns[None, :], rounded, mask=mask)
                    grad = rounded.to(tl.float32)
            grad *= tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
            squares += tl.sum(value * value, 1)
            mean += tl.sum(value * grad, 1)
        inverse = tl.rsqrt(squares / WIDTH + eps)
        mean = mean * inverse * inverse / WIDTH
        if THRESHOLD:
            tl.debug_barrier()  # what other threads of this program stored is read below
    for first in tl.range(0, WIDTH, BC, num_stages=STAGES):
        columns = first + tl.arange(0, BC)
        inside = columns < WIDTH
        mask = live[:, None] & inside[None, :]
        value = tl.load(x + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if NORM and THRESHOLD:
            grad = tl.load(out + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        else:
            grad = tl.load(g + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        of_columns = columns
        if THRESHOLD:
            of_columns = column_keys(columns)
        if LOW and not (NORM and THRESHOLD):
            grad = _through_slot(grad, low_0, a, columns, keys_0, of_columns, 0, WIDTH, LOWS, L, THRESHOLD)
            if SLOTS > 1:
                grad = _through_slot(grad, low_1, a, columns, keys_1, of_columns, 1, WIDTH, LOWS, L, THRESHOLD)
            if SLOTS > 2:
                grad = _through_slot(grad, low_2, a, columns, keys_2, of_columns, 2, WIDTH, LOWS, L, THRESHOLD)
        entered = value
        if NORM:
            weight = tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
            entered = value * inverse[:, None] * weight
            grad = inverse[:, None] * (grad * weight - value * mean[:, None])
        if RESIDUAL:
            grad += tl.load(residual + start_of + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(out + start_of + columns[None, :], grad.to(out.dtype.element_ty), mask=mask)
        if LOW:
            _add_a_grad(g_a, low_0, entered, columns, keys_0, of_columns, 0, WIDTH, LOWS, L, THRESHOLD)
            if SLOTS > 1:
                _add_a_grad(g_a, low_1, entered, columns, keys_1, of_columns, 1, WIDTH, LOWS, L, THRESHOLD)
            if SLOTS > 2:
                _add_a_grad(g_a, low_2, entered, columns, keys_2, of_columns, 2, WIDTH, LOWS, L, THRESHOLD)


def input_grad(
    g: torch.Tensor,
    x: torch.Tensor,
    lora: LowRank | None,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    residual: torch.Tensor | None = None,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Complete the gradient of projections' common input, and pass it on through the RMSNorm before them.

    Args:
        g: [tokens, width], the gradient through the frozen weights; overwritten with the result without `into`.
        x: [tokens, width], the input, or with `norm` the rows before normalisation.
        lora: of the projections; the gradient of A is added up. None: `g` is complete.
        norm: weight [width] and epsilon of the RMSNorm, if there is one.
        residual: [tokens, width], the gradient that comes past the projections and the norm.
    """
    tokens, width = g.shape
    slots, lows = _slots_of(lora)
    weight, eps = norm or (None, 0.0)
    out = g if into is None else into
    g_low, a, g_a, dropout = (lora.g_low, lora.a, lora.g_a, lora.dropout) if lora else (None, None, None, None)
    seed, keys, place, threshold = drawing(dropout)
    bm, bc = (64, 64) if lows <= 64 else (32, 32)
    bm = 16 if tokens <= FEW_TOKENS else bm
    _input_grad_kernel[(blocks(tokens, bm),)](
        g, g_low, a, x, weight, residual, out, g_a, seed, keys, place, tokens, eps,
        WIDTH=width, SLOTS=slots, LOWS=lows, L=tile_of(lows), LOW=a is not None, NORM=norm is not None,
        RESIDUAL=residual is not None, THRESHOLD=threshold, BM=bm, BC=bc, STAGES=3 if lows <= 64 else 2, num_warps=4,
    )  # fmt: skip
    return out
