"""A cache whose rows come and go, and the attention that reads its keys and values without copying.

Rows are right-aligned: all end in the same column, shorter ones start later. A decoded token is then one column for
every row, written in place, and the distance between two tokens of a row is the distance of their columns, so that
sliding-window masks stay right. Finished rows leave and new ones enter in `merge`, the only place that copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, LinearAttentionLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from thinktune.inference.engines.hf.cache_layers import RowLayer, join_states, new_cache, row_layers
from thinktune.models.attention_keywords import refuse_unknown
from thinktune.models.plain_attention import SCORES, plain_attention

ATTENTION = "thinktune_decode"
UNANSWERED = "the transformers engine cannot run models of this family yet: --engine vllm may"
_KNOWN = {"dropout", "is_causal", "position_bias", "sliding_window"}  # windows are in the mask


@dataclass(frozen=True)
class Piece:
    """Rows of a cache that go on: their indexes, and how many of its last columns they need."""

    cache: Cache
    rows: torch.Tensor
    width: int


def columns_of(cache: Cache) -> int:
    """Count the columns there is room for."""
    return int(row_layers(cache)[0].keys.shape[2])


def spread(cache: Cache, starts: torch.Tensor, width: int) -> Cache:
    """Repeat the one row of a cache without states for many rows of `width` columns, as their common prefix.

    Args:
        cache: of a prefix of n tokens.
        starts: the column of each row's first token; row i begins with the first n - starts[i] tokens of the prefix, if
            that is more than none, and masks the columns before. Its own go on in column n.
    """
    length = cache.get_seq_length()
    at = (torch.arange(length, device=starts.device) - starts[:, None]).clamp(
        min=0
    )  # (rows, n), masked where too early
    spread = new_cache(tuple(map(type, cache.layers)))
    for old, layer in zip(cache.layers, spread.layers, strict=True):
        room = [state.new_zeros(len(starts), state.shape[1], width, state.shape[3]) for state in (old.keys, old.values)]
        for state, new in zip((old.keys, old.values), room, strict=True):
            new[:, :, :length] = state[0][:, at].transpose(0, 1)
        layer.lazy_initialization(*room)
        layer.length = length
    return spread


def merge(pieces: Sequence[Piece], spare: int) -> Cache:
    """Make one cache with the pieces' rows in their order, right-aligned, and room for `spare` more columns.

    The pieces' caches are emptied layer by layer, so that old and new never lie in memory as a whole together.
    """
    width = max(piece.width for piece in pieces)
    merged = new_cache(tuple(map(type, pieces[0].cache.layers)))
    for index, layer in enumerate(merged.layers):
        olds = [piece.cache.layers[index] for piece in pieces]
        if isinstance(layer, LinearAttentionLayer):
            join_states(layer, olds, [piece.rows for piece in pieces])
        if isinstance(layer, RowLayer):
            keys = _join([old.keys for old in olds], pieces, width, spare)
            RowLayer.lazy_initialization(layer, keys, _join([old.values for old in olds], pieces, width, spare))
            layer.length = width
            for old in olds:
                old.keys = old.values = None
    return merged


def _join(states: Sequence[torch.Tensor], pieces: Sequence[Piece], width: int, spare: int) -> torch.Tensor:
    _, heads, _, size = states[0].shape
    count = sum(len(piece.rows) for piece in pieces)
    # Zeros, not empty: a masked column has weight 0, but 0 times a NaN left in memory is NaN.
    joined = states[0].new_zeros(count, heads, width + spare, size)
    at = 0
    for state, piece in zip(states, pieces, strict=True):
        end = piece.cache.get_seq_length()
        joined[at : at + len(piece.rows), :, width - piece.width : width] = state[
            piece.rows, :, end - piece.width : end
        ]
        at += len(piece.rows)
    return joined


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Apply SDPA, which lacks a cap on scores and sinks: those by the formula.

    For a single query token, heads that share a key stand in for a sequence, and nothing is repeated: query
    `(rows, heads, 1, size)` becomes `(rows, key heads, heads / key heads, size)`.

    Raises:
        ModelError: the model needs arguments that neither knows.
    """
    refuse_unknown({name: kwargs[name] for name in kwargs.keys() - _KNOWN}, "the transformers engine", UNANSWERED)
    if softcap is not None or s_aux is not None:
        return _attend_by_formula(query, key, value, attention_mask, scaling, softcap, s_aux), None
    rows, heads, length, size = query.shape
    groups = heads // key.shape[1]
    if length != 1 or groups == 1 or kwargs.get("position_bias") is not None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result
    grouped = query.reshape(rows, key.shape[1], groups, size)
    if attention_mask is not None and attention_mask.shape[1] == heads:  # one for each head
        attention_mask = attention_mask.reshape(rows, key.shape[1], groups, -1)
    out = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, value.shape[-1]), None


def _attend_by_formula(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend to all columns, a part of the queries at a time."""
    rows, heads, length, _ = query.shape
    columns = key.shape[2]
    part = max(1, SCORES // (rows * heads * columns))
    out = []
    for start in range(0, length, part):
        end = min(start + part, length)
        if mask is None:
            at = torch.arange(columns - length + start, columns - length + end, device=query.device)
            seen = torch.arange(columns, device=query.device) <= at[:, None]
        else:
            seen = mask[:, :, start:end]
        queries = query[:, :, start:end]
        out.append(plain_attention(queries, key, value, seen, scaling=scaling, softcap=softcap, sinks=sinks))
    return torch.cat(out, dim=2).transpose(1, 2)


def register_attention() -> None:
    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
