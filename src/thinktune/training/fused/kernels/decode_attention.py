"""Attention of one token a row to the columns of a cache, from the row's first one on; its own key and value go in."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import dot, power_of_two

_LOG2_E = 1.4426950408889634
_WIDEST = 256
"""Dims of a head."""


@triton.jit
def _decode_kernel(
    query, key, value, keys, values, starts, column, out, scale, query_row, query_head, key_row, key_head,
    value_row, value_head, cache_row, cache_head,
    GROUP: tl.constexpr, G: tl.constexpr, DIM: tl.constexpr, BC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    group, dims = tl.arange(0, G), tl.arange(0, DIM)
    of_group = (group < GROUP)[:, None]
    heads = (head * GROUP + group)[:, None]
    q = tl.load(query + row * query_row + heads * query_head + dims[None, :], mask=of_group, other=0.0)
    k = tl.load(key + row * key_row + head * key_head + dims)
    v = tl.load(value + row * value_row + head * value_head + dims)
    start, end = tl.load(starts + row).to(tl.int32), tl.load(column).to(tl.int32)
    place = row * cache_row + head * cache_head
    tl.store(keys + place + end * DIM + dims, k)
    tl.store(values + place + end * DIM + dims, v)
    # The new token is the first of the running softmax: what was just stored is not read back.
    top = tl.sum(q.to(tl.float32) * k.to(tl.float32)[None, :], 1) * scale
    total = tl.full([G], 1.0, tl.float32)
    sums = tl.zeros([G, DIM], tl.float32) + v.to(tl.float32)[None, :]
    for first in tl.range(start, end, BC, num_stages=STAGES):
        columns = first + tl.arange(0, BC)
        inside = columns < end
        at = place + columns[:, None] * DIM + dims[None, :]
        tile = tl.load(keys + at, mask=inside[:, None], other=0.0)
        scores = tl.where(inside[None, :], dot(q, tl.trans(tile)) * scale, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights, kept = tl.exp2(scores - higher[:, None]), tl.exp2(top - higher)
        tile = tl.load(values + at, mask=inside[:, None], other=0.0)
        sums = sums * kept[:, None] + dot(weights.to(tile.dtype), tile)
        total = total * kept + tl.sum(weights, 1)
        top = higher
    at = (row * tl.num_programs(1) * GROUP + heads) * DIM + dims[None, :]
    tl.store(out + at, (sums / total[:, None]).to(out.dtype.element_ty), mask=of_group)


def is_taken(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Return whether `decode_attention` is for heads of this size, and a cache that lies in memory in one piece."""
    dim = query.shape[-1]
    sizes: bool = keys.shape == values.shape and keys.shape[-1] == dim and keys.dtype == query.dtype
    return sizes and 16 <= dim == power_of_two(dim) <= _WIDEST and keys.is_contiguous() and values.is_contiguous()


def decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    column: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Write each row's key and value into a column of the cache, and attend to all from the row's first one up to it.

    Args:
        query: [heads, rows, dim], dims beside each other; heads that share a key follow one another.
        key, value: [key heads, rows, dim], likewise.
        keys, values: [rows, key heads, columns, dim]; changed in place.
        starts: int64 [rows], the column of each row's first token.
        column: int64 [1], that of the new token; read by the kernel, so that a CUDA graph may be replayed for others.

    Returns:
        [rows, heads, dim].
    """
    heads, rows, dim = query.shape
    count = keys.shape[1]
    out = query.new_empty(rows, heads, dim)
    _decode_kernel[(rows, count)](
        query, key, value, keys, values, starts, column, out, scale * _LOG2_E,
        query.stride(1), query.stride(0), key.stride(1), key.stride(0), value.stride(1), value.stride(0),
        keys.stride(0), keys.stride(1),
        GROUP=heads // count, G=max(16, power_of_two(heads // count)), DIM=dim, BC=64 if dim <= 128 else 32, STAGES=2,
        num_warps=2 if dim <= 64 else 4,
    )  # fmt: skip
    return out
