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
        norms: weights [dim] of the RMSNorms over each query head and each key head (Qwen3), and their epsilon.
    """

    query: int
    key: int
    dim: int
    bias: torch.Tensor | None = None
    norms: tuple[torch.Tensor, torch.Tensor, float] | None = None

    @property
    def width(self) -> int:
        return (self.query + 2 * self.key) * self.dim


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


@triton.jit(do_not_specialize=["tokens"])
def _rotate_kernel(
    qkv, bias, low, b, cos, sin, query_norm, key_norm, out, tokens, eps,
    QUERY: tl.constexpr, KEY: tl.constexpr, DIM: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr,
    BIAS: tl.constexpr, UPDATE: tl.constexpr, NORM: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = (QUERY + 2 * KEY) * DIM
    HALF: tl.constexpr = DIM // 2
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    live = rows < tokens
    head = tl.program_id(1)
    slot = (head >= QUERY).to(tl.int32) + (head >= QUERY + KEY).to(tl.int32)
    low_tile = None
    if UPDATE:
        rank = tl.arange(0, R)
        low_place = rows[:, None] * (3 * RANK) + slot * RANK + rank[None, :]
        low_tile = tl.load(low + low_place, mask=live[:, None] & (rank < RANK)[None, :], other=0.0)
    half = tl.arange(0, HALF)
    columns = head * DIM + half
    one = _projected(qkv, bias, low_tile, b, rows, live, columns, WIDTH, R, RANK, BIAS, UPDATE)
    two = _projected(qkv, bias, low_tile, b, rows, live, columns + HALF, WIDTH, R, RANK, BIAS, UPDATE)
    if head < QUERY + KEY:
        if NORM:
            inverse = tl.rsqrt((tl.sum(one * one, 1) + tl.sum(two * two, 1)) / DIM + eps)
            weight = query_norm if head < QUERY else key_norm
            one = one * inverse[:, None] * tl.load(weight + half).to(tl.float32)[None, :]
            two = two * inverse[:, None] * tl.load(weight + HALF + half).to(tl.float32)[None, :]
        turn = rows[:, None] * DIM + half[None, :]
        c = tl.load(cos + turn, mask=live[:, None], other=0.0).to(tl.float32)
        s = tl.load(sin + turn, mask=live[:, None], other=0.0).to(tl.float32)
        one, two = one * c - two * s, two * c + one * s
    place = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(out + place, one.to(out.dtype.element_ty), mask=live[:, None])
    tl.store(out + place + HALF, two.to(out.dtype.element_ty), mask=live[:, None])


def rotate(qkv: torch.Tensor, lora: LowRank | None, cos: torch.Tensor, sin: torch.Tensor, heads: Heads) -> torch.Tensor:
    """Complete the joined product, norm its heads where the model does, and turn queries and keys by their positions.

    Args:
        qkv: [tokens, width], the frozen product; overwritten unless heads are normed (the gradient needs it then).
        lora: the adapters of the three projections; None: the product is complete.
        cos, sin: [tokens, dim], both halves alike, as transformers' rotary embeddings are.

    Returns:
        [tokens, width], queries, keys and values beside each other.
    """
    out = torch.empty_like(qkv) if heads.norms else qkv
    query_norm, key_norm, eps = heads.norms or (None, None, 0.0)
    low, b, rank = (lora.low, lora.b, lora.rank) if lora else (None, None, 1)
    grid = (blocks(len(qkv), 64), heads.query + 2 * heads.key)
    _rotate_kernel[grid](
        qkv, heads.bias, low, b, cos, sin, query_norm, key_norm, out, len(qkv), eps,
        QUERY=heads.query, KEY=heads.key, DIM=heads.dim, R=tile_of(rank), RANK=rank,
        BIAS=heads.bias is not None, UPDATE=b is not None, NORM=heads.norms is not None, BM=64, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens"])
def _rotate_grad_kernel(
    g_query, g_key, g_value, qkv, bias, low, b, cos, sin, query_norm, key_norm,
    g_low, g_b, out, tokens, eps, scaling,
    QUERY: tl.constexpr, KEY: tl.constexpr, DIM: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr,
    BIAS: tl.constexpr, UPDATE: tl.constexpr, NORM: tl.constexpr, BM: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    WIDTH: tl.constexpr = (QUERY + 2 * KEY) * DIM
    HALF: tl.constexpr = DIM // 2
    head = tl.program_id(0)
    half = tl.arange(0, HALF)
    rank = tl.arange(0, R)
    g, heads, own = g_query, QUERY, head
    slot = 0
    if head >= QUERY:
        g, heads, own, slot = g_key, KEY, head - QUERY, 1
    if head >= QUERY + KEY:
        g, heads, own, slot = g_value, KEY, head - QUERY - KEY, 2
    columns = head * DIM + half
    b_place = columns[:, None] * RANK + rank[None, :]
    b_mask = (rank < RANK)[None, :] & (columns >= 0)[:, None]
    if UPDATE:
        b_one = tl.load(b + b_place, mask=b_mask, other=0.0)
        b_two = tl.load(b + HALF * RANK + b_place, mask=b_mask, other=0.0)
        of_one = tl.zeros([HALF, R], tl.float32)
        of_two = tl.zeros([HALF, R], tl.float32)
    for step in range(STEPS):
        rows = (tl.program_id(1) * STEPS + step) * BM + tl.arange(0, BM)
        live = rows < tokens
        low_place = rows[:, None] * (3 * RANK) + slot * RANK + rank[None, :]
        low_mask = live[:, None] & (rank < RANK)[None, :]
        low_tile = low
        if UPDATE:
            low_tile = tl.load(low + low_place, mask=low_mask, other=0.0)
        g_place = (rows.to(tl.int64)[:, None] * heads + own) * DIM + half[None, :]
        one = tl.load(g + g_place, mask=live[:, None], other=0.0).to(tl.float32)
        two = tl.load(g + g_place + HALF, mask=live[:, None], other=0.0).to(tl.float32)
        if head < QUERY + KEY:
            turn = rows[:, None] * DIM + half[None, :]
            c = tl.load(cos + turn, mask=live[:, None], other=0.0).to(tl.float32)
            s = tl.load(sin + turn, mask=live[:, None], other=0.0).to(tl.float32)
            one, two = one * c + two * s, two * c - one * s
            if NORM:
                raw_one = _projected(qkv, bias, low_tile, b, rows, live, columns, WIDTH, R, RANK, BIAS, UPDATE)
                raw_two = _projected(qkv, bias, low_tile, b, rows, live, columns + HALF, WIDTH, R, RANK, BIAS, UPDATE)
                inverse = tl.rsqrt((tl.sum(raw_one * raw_one, 1) + tl.sum(raw_two * raw_two, 1)) / DIM + eps)
                norm = query_norm if head < QUERY else key_norm
                one *= tl.load(norm + half).to(tl.float32)[None, :]
                two *= tl.load(norm + HALF + half).to(tl.float32)[None, :]
                mean = (tl.sum(one * raw_one, 1) + tl.sum(two * raw_two, 1)) * inverse * inverse / DIM
                one = inverse[:, None] * (one - raw_one * mean[:, None])
                two = inverse[:, None] * (two - raw_two * mean[:, None])
        first = one.to(out.dtype.element_ty)
        second = two.to(out.dtype.element_ty)
        place = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        tl.store(out + place, first, mask=live[:, None])
        tl.store(out + place + HALF, second, mask=live[:, None])
        if UPDATE:
            of_one += dot(tl.trans(first), low_tile)
            of_two += dot(tl.trans(second), low_tile)
            tl.atomic_add(g_low + low_place, dot(first, b_one) + dot(second, b_two), mask=low_mask, sem="relaxed")
    if UPDATE:
        tl.atomic_add(g_b + b_place, of_one * scaling, mask=b_mask, sem="relaxed")
        tl.atomic_add(g_b + HALF * RANK + b_place, of_two * scaling, mask=b_mask, sem="relaxed")


def rotate_grad(
    grads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    qkv: torch.Tensor | None,
    lora: LowRank | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    heads: Heads,
) -> torch.Tensor:
    """Compute the derivative of `rotate`; the gradients of B and of the low-rank activations are added up.

    Args:
        grads: of queries, keys and values, [tokens, heads, dim] each, contiguous.
        qkv: the frozen product if heads are normed, else None.
        lora, cos, sin, heads: as for `rotate`.

    Returns:
        the gradient of the joined product [tokens, width].
    """
    tokens = len(grads[0])
    out = grads[0].new_empty(tokens, heads.width)
    low, b, g_low, g_b = (lora.low, lora.b, lora.g_low, lora.g_b) if lora else (None, None, None, None)
    rank, scaling = (lora.rank, lora.scaling) if lora else (1, 1.0)
    query_norm, key_norm, eps = heads.norms or (None, None, 0.0)
    bm, steps = 64, 4
    grid = (heads.query + 2 * heads.key, blocks(tokens, bm * steps))
    _rotate_grad_kernel[grid](
        *grads, qkv, heads.bias, low, b, cos, sin, query_norm, key_norm,
        g_low, g_b, out, tokens, eps, scaling,
        QUERY=heads.query, KEY=heads.key, DIM=heads.dim, R=tile_of(rank), RANK=rank,
        BIAS=heads.bias is not None, UPDATE=b is not None, NORM=heads.norms is not None,
        BM=bm, STEPS=steps, num_warps=4,
    )  # fmt: skip
    return out
