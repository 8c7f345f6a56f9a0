"""From the joined query/key/value product to attention's inputs and back: bias, adapters, norms of heads, rotary."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import blocks, dot, tile_of
from thinktune.training.fused.kernels.low_rank import LowRank


@dataclass(frozen=True)
class Heads:
    """The layout of an attention layer's projections: query heads, then key heads, then value heads.

    Attributes:
        bias: [width] of the joined projections, if they have one.
        norms: weights of the RMSNorms over each query head and each key head, [dim] (Qwen3), or over all together,
            [heads * dim] (OLMo 2), and their epsilon.
        turn: whether queries and keys are turned by their positions.
    """

    query: int
    key: int
    dim: int
    bias: torch.Tensor | None = None
    norms: tuple[torch.Tensor, torch.Tensor, float] | None = None
    turn: bool = True

    @property
    def width(self) -> int:
        return (self.query + 2 * self.key) * self.dim

    @property
    def normed_together(self) -> bool:
        return self.norms is not None and len(self.norms[0]) > self.dim


@dataclass(frozen=True)
class Positions:
    """What queries and keys get from their positions.

    Attributes:
        cos, sin: [tokens, turned dims], both halves alike, as transformers' rotary embeddings are; the other dims of a
            head are not turned. None: no model's layer turns.
        query_scale: float32 [tokens], by which queries are multiplied (Ministral 3).
    """

    cos: torch.Tensor | None
    sin: torch.Tensor | None
    query_scale: torch.Tensor | None = None

    def turned(self, heads: Heads) -> int:
        return self.cos.shape[1] if heads.turn and self.cos is not None else 0


@triton.jit
def _projected(
    qkv, bias, low_tile, b, rows, live, columns,
    WIDTH: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, BIAS: tl.constexpr, UPDATE: tl.constexpr,
):  # fmt: skip
    """Compute half a head of the complete projection, float32 [BM, dim / 2]."""
    place = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    value = tl.load(qkv + place, mask=live[:, None], other=0.0).to(tl.float32)
    if UPDATE:
        rank = tl.arange(0, R)
        b_mask = (rank < RANK)[None, :] & (columns >= 0)[:, None]
        b_tile = tl.load(b + columns[:, None] * RANK + rank[None, :], mask=b_mask, other=0.0)
        value += dot(low_tile, tl.trans(b_tile))
    if BIAS:
        value += tl.load(bias + columns).to(tl.float32)[None, :]
    return value


@triton.jit
def _pairs(DIM: tl.constexpr, TURNED: tl.constexpr):
    """Compute the columns of a head that are turned together, [dim / 2] twice: the TURNED ones, then the others."""
    half = tl.arange(0, DIM // 2)
    one, two = half, half + DIM // 2
    if TURNED > 0 and TURNED < DIM:
        turned = half < TURNED // 2
        one, two = tl.where(turned, half, half + TURNED // 2), tl.where(turned, half + TURNED // 2, two)
    return one, two


@triton.jit
def _turn(cos, sin, rows, live, DIM: tl.constexpr, TURNED: tl.constexpr):
    """Load the cosine and sine of each pair, float32 [BM, dim / 2]."""
    half = tl.arange(0, DIM // 2)
    at = rows[:, None] * TURNED + half[None, :]
    mask = live[:, None]
    if TURNED < DIM:
        mask = mask & (half < TURNED // 2)[None, :]
    c = tl.load(cos + at, mask=mask, other=1.0).to(tl.float32)
    return c, tl.load(sin + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _over_all_heads(sums, of_head, live, SUM: tl.constexpr):
    """Add the sums [BM] of a head to those over all heads of its kind; once that is done, return these."""
    if SUM:
        tl.atomic_add(sums, of_head, mask=live, sem="relaxed")
    else:
        of_head = tl.load(sums, mask=live, other=0.0)
    return of_head


@triton.jit(do_not_specialize=["tokens"])
def _rotate_kernel(
    qkv, bias, low, b, cos, sin, query_scale, query_norm, key_norm, sums, out, tokens, eps,
    QUERY: tl.constexpr, KEY: tl.constexpr, DIM: tl.constexpr, TURNED: tl.constexpr,
    R: tl.constexpr, RANK: tl.constexpr, SLOTS: tl.constexpr, BIAS: tl.constexpr, UPDATE: tl.constexpr,
    NORM: tl.constexpr, TOGETHER: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = (QUERY + 2 * KEY) * DIM
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < tokens
    head = tl.program_id(1)
    slot = 0
    if SLOTS == 3:
        slot = (head >= QUERY).to(tl.int32) + (head >= QUERY + KEY).to(tl.int32)
    low_tile = None
    if UPDATE:
        rank = tl.arange(0, R)
        low_place = rows[:, None] * (SLOTS * RANK) + slot * RANK + rank[None, :]
        low_tile = tl.load(low + low_place, mask=live[:, None] & (rank < RANK)[None, :], other=0.0)
    at_one, at_two = _pairs(DIM, TURNED)
    start = head * DIM
    one = _projected(qkv, bias, low_tile, b, rows, live, start + at_one, WIDTH, R, RANK, BIAS, UPDATE)
    two = _projected(qkv, bias, low_tile, b, rows, live, start + at_two, WIDTH, R, RANK, BIAS, UPDATE)
    if head < QUERY + KEY:
        if NORM:
            weight = query_norm if head < QUERY else key_norm
            squares = tl.sum(one * one, 1) + tl.sum(two * two, 1)
            size = DIM
            if TOGETHER:
                weight += (head if head < QUERY else head - QUERY) * DIM
                squares = _over_all_heads(sums + rows * 4 + (head >= QUERY).to(tl.int32), squares, live, SUM)
                size = DIM * (QUERY if head < QUERY else KEY)
            inverse = tl.rsqrt(squares / size + eps)
            one = one * inverse[:, None] * tl.load(weight + at_one).to(tl.float32)[None, :]
            two = two * inverse[:, None] * tl.load(weight + at_two).to(tl.float32)[None, :]
        if TURNED:
            c, s = _turn(cos, sin, rows, live, DIM, TURNED)
            one, two = one * c - two * s, two * c + one * s
        if SCALE:
            factor = tl.where(head < QUERY, tl.load(query_scale + rows, mask=live, other=1.0), 1.0)[:, None]
            one, two = one * factor, two * factor
    if not SUM:
        place = rows.to(tl.int64)[:, None] * WIDTH + start
        tl.store(out + place + at_one[None, :], one.to(out.dtype.element_ty), mask=live[:, None])
        tl.store(out + place + at_two[None, :], two.to(out.dtype.element_ty), mask=live[:, None])


def rotate(qkv: torch.Tensor, lora: LowRank | None, positions: Positions, heads: Heads) -> torch.Tensor:
    """Complete the joined product, norm its heads where the model does, and turn queries and keys by their positions.

    Args:
        qkv: [tokens, width], the frozen product; overwritten unless heads are normed (the gradient needs it then).
        lora: the adapters of the three projections, or of the joined one; None: the product is complete.

    Returns:
        [tokens, width], queries, keys and values beside each other.
    """
    out = torch.empty_like(qkv) if heads.norms else qkv
    query_norm, key_norm, eps = heads.norms or (None, None, 0.0)
    low, b, rank, slots = (lora.low, lora.b, lora.rank, lora.slots) if lora else (None, None, 1, 1)
    sums = _sums_over_heads(qkv, heads)
    for sum_up in (True, False) if heads.normed_together else (False,):
        _rotate_kernel[(blocks(len(qkv), 64), heads.query + (1 if sum_up else 2) * heads.key)](
            qkv, heads.bias, low, b, positions.cos, positions.sin, positions.query_scale, query_norm, key_norm, sums,
            out, len(qkv), eps,
            QUERY=heads.query, KEY=heads.key, DIM=heads.dim, TURNED=positions.turned(heads),
            R=tile_of(rank), RANK=rank, SLOTS=slots, BIAS=heads.bias is not None, UPDATE=b is not None,
            NORM=heads.norms is not None, TOGETHER=heads.normed_together, SUM=sum_up,
            SCALE=positions.query_scale is not None, BM=64, num_warps=4,
        )  # fmt: skip
    return out


def _sums_over_heads(like: torch.Tensor, heads: Heads) -> torch.Tensor | None:
    """Make room for sums over query heads and over key heads: squares, and in the backward pass products too."""
    return like.new_zeros(len(like), 4, dtype=torch.float32) if heads.normed_together else None


@triton.jit(do_not_specialize=["tokens"])
def _rotate_grad_kernel(
    g_query, g_key, g_value, qkv, bias, low, b, cos, sin, query_scale, query_norm, key_norm, sums,
    g_low, g_b, out, tokens, eps, scaling,
    QUERY: tl.constexpr, KEY: tl.constexpr, DIM: tl.constexpr, TURNED: tl.constexpr,
    R: tl.constexpr, RANK: tl.constexpr, SLOTS: tl.constexpr, BIAS: tl.constexpr, UPDATE: tl.constexpr,
    NORM: tl.constexpr, TOGETHER: tl.constexpr, SUM: tl.constexpr, SCALE: tl.constexpr,
    BM: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = (QUERY + 2 * KEY) * DIM
    head = tl.program_id(0)
    at_one, at_two = _pairs(DIM, TURNED)
    rank = tl.arange(0, R)
    g, heads, own = g_query, QUERY, head
    slot = 0
    if head >= QUERY:
        g, heads, own, slot = g_key, KEY, head - QUERY, 1
    if head >= QUERY + KEY:
        g, heads, own, slot = g_value, KEY, head - QUERY - KEY, 2
    if SLOTS == 1:
        slot = 0
    start = head * DIM
    place_one = (start + at_one)[:, None] * RANK + rank[None, :]
    place_two = (start + at_two)[:, None] * RANK + rank[None, :]
    b_mask = (rank < RANK)[None, :] & (at_one >= 0)[:, None]
    if UPDATE:
        b_one = tl.load(b + place_one, mask=b_mask, other=0.0)
        b_two = tl.load(b + place_two, mask=b_mask, other=0.0)
        of_one = tl.zeros([DIM // 2, R], tl.float32)
        of_two = tl.zeros([DIM // 2, R], tl.float32)
    for step in range(STEPS):
        rows = (tl.program_id(1) * STEPS + step) * BM + tl.arange(0, BM)
        live = rows < tokens
        low_place = rows[:, None] * (SLOTS * RANK) + slot * RANK + rank[None, :]
        low_mask = live[:, None] & (rank < RANK)[None, :]
        low_tile = low
        if UPDATE:
            low_tile = tl.load(low + low_place, mask=low_mask, other=0.0)
        g_place = (rows.to(tl.int64)[:, None] * heads + own) * DIM
        one = tl.load(g + g_place + at_one[None, :], mask=live[:, None], other=0.0).to(tl.float32)
        two = tl.load(g + g_place + at_two[None, :], mask=live[:, None], other=0.0).to(tl.float32)
        if head < QUERY + KEY:
            if SCALE:
                factor = tl.where(head < QUERY, tl.load(query_scale + rows, mask=live, other=1.0), 1.0)[:, None]
                one, two = one * factor, two * factor
            if TURNED:
                c, s = _turn(cos, sin, rows, live, DIM, TURNED)
                one, two = one * c + two * s, two * c - one * s
            if NORM:
                raw_one = _projected(qkv, bias, low_tile, b, rows, live, start + at_one, WIDTH, R, RANK, BIAS, UPDATE)
                raw_two = _projected(qkv, bias, low_tile, b, rows, live, start + at_two, WIDTH, R, RANK, BIAS, UPDATE)
                norm = query_norm if head < QUERY else key_norm
                size = DIM
                if TOGETHER:
                    norm += own * DIM
                    size = DIM * heads
                one *= tl.load(norm + at_one).to(tl.float32)[None, :]
                two *= tl.load(norm + at_two).to(tl.float32)[None, :]
                squares = tl.sum(raw_one * raw_one, 1) + tl.sum(raw_two * raw_two, 1)
                products = tl.sum(one * raw_one, 1) + tl.sum(two * raw_two, 1)
                if TOGETHER:
                    at_sums = sums + rows * 4 + (head >= QUERY).to(tl.int32)
                    squares = _over_all_heads(at_sums, squares, live, SUM)
                    products = _over_all_heads(at_sums + 2, products, live, SUM)
                inverse = tl.rsqrt(squares / size + eps)
                mean = products * inverse * inverse / size
                one = inverse[:, None] * (one - raw_one * mean[:, None])
                two = inverse[:, None] * (two - raw_two * mean[:, None])
        if not SUM:
            first = one.to(out.dtype.element_ty)
            second = two.to(out.dtype.element_ty)
            place = rows.to(tl.int64)[:, None] * WIDTH + start
            tl.store(out + place + at_one[None, :], first, mask=live[:, None])
            tl.store(out + place + at_two[None, :], second, mask=live[:, None])
            if UPDATE:
                of_one += dot(tl.trans(first), low_tile)
                of_two += dot(tl.trans(second), low_tile)
                tl.atomic_add(g_low + low_place, dot(first, b_one) + dot(second, b_two), mask=low_mask, sem="relaxed")
    if UPDATE and not SUM:
        tl.atomic_add(g_b + place_one, of_one * scaling, mask=b_mask, sem="relaxed")
        tl.atomic_add(g_b + place_two, of_two * scaling, mask=b_mask, sem="relaxed")


def rotate_grad(
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    qkv: torch.Tensor | None,
    lora: LowRank | None,
    positions: Positions,
    heads: Heads,
) -> torch.Tensor:
    """Compute the derivative of `rotate`; the gradients of B and of the low-rank activations are added up.

    Args:
        grads: of queries, keys and values, [tokens, heads, dim] each, contiguous.
        qkv: the frozen product if heads are normed, else None.
        lora, positions, heads: as for `rotate`.

    Returns:
        the gradient of the joined product [tokens, width].
    """
    tokens = len(grads[0])
    out = grads[0].new_empty(tokens, heads.width)
    low, b, g_low, g_b = (lora.low, lora.b, lora.g_low, lora.g_b) if lora else (None, None, None, None)
    rank, slots, scaling = (lora.rank, lora.slots, lora.scaling) if lora else (1, 1, 1.0)
    query_norm, key_norm, eps = heads.norms or (None, None, 0.0)
    bm, steps = (64, 4) if heads.dim * tile_of(rank) <= 4096 else (32, 8)  # what an RTX card has room for
    sums = _sums_over_heads(out, heads)
    for sum_up in (True, False) if heads.normed_together else (False,):
        _rotate_grad_kernel[(heads.query + (1 if sum_up else 2) * heads.key, blocks(tokens, bm * steps))](
            *grads, qkv, heads.bias, low, b, positions.cos, positions.sin, positions.query_scale, query_norm, key_norm,
            sums, g_low, g_b, out, tokens, eps, scaling,
            QUERY=heads.query, KEY=heads.key, DIM=heads.dim, TURNED=positions.turned(heads),
            R=tile_of(rank), RANK=rank, SLOTS=slots, BIAS=heads.bias is not None, UPDATE=b is not None,
            NORM=heads.norms is not None, TOGETHER=heads.normed_together, SUM=sum_up,
            SCALE=positions.query_scale is not None, BM=bm, STEPS=steps, num_warps=4,
        )  # fmt: skip
    return out
