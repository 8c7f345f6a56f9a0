"""Attention compiled for what flash attention does not take: soft caps, and heads wider than its own, on GPUs.

torch's flex attention writes a kernel for a change of scores. The first call of a kind compiles it and holds it against
the formula; where that fails, the formula stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from thinktune.models.plain_attention import plain_attention
from thinktune.training.fused.flash_attention import MAX_HEAD_DIM

logger = logging.getLogger(__name__)

_BLOCK = 128
"""Tokens of a block of the mask, as flex attention has it by default."""
_WIDEST = 512
_TRIED = ((150, 9), (300, 1, 40), (70, 9))
"""Lengths of documents: the second and third pack show whether the kernel takes other lengths than it was compiled for,
and less than a block."""
_FURTHEST = 0.02
"""Relative distance from the formula in float32 that bfloat16 explains: 0.007 was measured."""
_ANY_LENGTH = {"FORCE_USE_FLEX_ATTENTION": True}
"""For fewer than 128 tokens torch takes its kernel for decoding instead, of which there is none for small heads."""
_WIDE_BLOCKS = _ANY_LENGTH | {
    "fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_stages": 1, "fwd_num_warps": 8,
    "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 32, "bwd_BLOCK_M2": 32, "bwd_BLOCK_N2": 32, "bwd_num_stages": 1,
    "bwd_num_warps": 8,
}  # fmt: skip
"""For heads wider than flash attention's: torch's own choice is tiles of 16 tokens in the backward pass."""
_RECOMPILATIONS = 64


def is_taken(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, capped: bool) -> bool:
    """Return whether there is a kernel for these heads, [1, heads, tokens, size]; it is made and tried at first."""
    size = query.shape[3]
    fits = size == value.shape[3] and 16 <= size <= _WIDEST and size & (size - 1) == 0
    if not fits or not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    return _works((query.shape[1], key.shape[1], size), query.dtype, query.device, capped)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    *,
    window: int | None,
    softcap: float | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attend over packed documents, each [1, heads, tokens, size]; key heads may be fewer.

    Args:
        lengths: tokens of each document.
        window: tokens that a token sees, itself included.
        softcap, scaling: as of `plain_attention`.
    """
    heads, size = query.shape[1], query.shape[3]
    changes = _scores(heads, softcap, 1.0 if scaling is None else scaling * size**0.5, query.device)
    mask = block_mask(tuple(lengths), window, query.device)
    options = _WIDE_BLOCKS if size > MAX_HEAD_DIM else _ANY_LENGTH
    for tensor in (query, key, value):
        torch._dynamo.maybe_mark_dynamic(tensor, 2)
    with torch._dynamo.config.patch(recompile_limit=_RECOMPILATIONS):
        out: torch.Tensor = _compiled(query.device.type)(
            query, key, value, score_mod=changes, block_mask=mask, enable_gqa=True, kernel_options=options
        )
    return out


@lru_cache(maxsize=8)
def block_mask(lengths: tuple[int, ...], window: int | None, device: torch.device) -> BlockMask:
    """Say which blocks of keys a block of queries sees, in part or wholly: its own document, and in that its window."""
    ends = torch.tensor(lengths).cumsum(0)
    tokens = torch.arange(int(ends[-1]))
    first = (ends - torch.tensor(lengths)).repeat_interleave(torch.tensor(lengths))
    if window is not None:
        first = torch.maximum(first, tokens - window + 1)
    starts = tokens[::_BLOCK]
    blocks = torch.arange(len(starts))
    last = starts + _BLOCK - 1
    full = last < len(tokens)  # as torch has it, the last block is whole only if all of its queries are there
    seen = (blocks <= blocks[:, None]) & (blocks >= first[starts][:, None] // _BLOCK)
    whole = seen & (blocks < blocks[:, None]) & full[:, None] & (starts >= first[last * full][:, None])
    first = first.to(device)

    def mask(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (key >= first[query])

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole, device), *_listed(whole, device), BLOCK_SIZE=_BLOCK, mask_mod=mask,
        seq_lengths=(len(tokens), len(tokens)),
    )  # fmt: skip


def _listed(chosen: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how many blocks of each row are chosen, and their indices, those first."""
    order = chosen.int().argsort(dim=1, descending=True, stable=True)
    counts = chosen.sum(1)
    return counts.to(device, torch.int32)[None, None], order.to(device, torch.int32)[None, None]


@lru_cache(maxsize=8)
def _scores(heads: int, softcap: float | None, factor: float, device: torch.device) -> Callable[..., torch.Tensor]:
    """Make the change of scores. Its numbers stand in tensors: those of Python would be compiled in, or be symbols."""
    if softcap is None:
        factors = torch.full((heads,), factor, device=device)
        return lambda score, _, head, *__: score * factors[head]
    caps = torch.full((heads,), softcap, device=device)
    rises = torch.full((heads,), 2 * factor / softcap, device=device)  # tanh(x) = 2 sigmoid(2 x) - 1, and is cheaper so
    return lambda score, _, head, *__: caps[head] * (2 * torch.sigmoid(score * rises[head]) - 1)


@cache
def _compiled(device: str) -> Any:
    # Inductor has no backward kernel for CPUs; there the tests hold masks and changes of scores against the formula.
    return torch.compile(flex_attention, fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")


@cache
def _works(heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device, capped: bool) -> bool:
    try:
        with torch.enable_grad():
            furthest = max(_distance(heads, dtype, device, 30.0 if capped else None, lengths) for lengths in _TRIED)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything
        logger.info(f"no attention kernel could be compiled: {str(error).strip().splitlines()[0][:200]}")
        return False
    if furthest > _FURTHEST:
        logger.warning(f"the attention kernel that was compiled is {furthest:.3f} off, and is not used")
    return furthest <= _FURTHEST


def _distance(
    heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device, softcap: float | None, lengths: Sequence[int]
) -> float:
    """Return how far output and gradients are from the formula in float32, relative to them."""
    draw = torch.Generator(device).manual_seed(0)
    counts = (heads[0], heads[1], heads[1], heads[0])
    *drawn, weights = (torch.randn(1, n, sum(lengths), heads[2], generator=draw, device=device) for n in counts)
    found, exact = ([tensor.to(dtype).to(kind).requires_grad_() for tensor in drawn] for kind in (dtype, torch.float32))
    ours = attend(found[0], found[1], found[2], lengths, window=None, softcap=softcap, scaling=None)
    parts = []
    for q, k, v in zip(*(tensor.split(list(lengths), 2) for tensor in exact), strict=True):
        causal = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=device).tril()
        parts.append(plain_attention(q, k, v, causal, softcap=softcap))
    pairs = [(ours, torch.cat(parts, 2))]
    grads = (torch.autograd.grad((out * weights).sum(), ins) for out, ins in zip(pairs[0], (found, exact), strict=True))
    pairs += zip(*grads, strict=True)
    return max(float((one.float() - two).norm() / two.norm()) for one, two in pairs)
