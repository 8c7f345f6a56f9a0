"""The layers of a cache: keys and values in columns, states of linear attention, Mamba and short convolutions, or both.

A state has no columns: a row is one line of it, which holds all that the row has read. Columns cannot be dropped or
shared, so that every prompt is read from its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from thinktune.models.layer_sizes import layer_sizes

_STATES = ("conv_states", "recurrent_states")


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer, `(rows, heads, columns, size)`, of which the first `length` columns are filled.

    Attributes:
        column: where the next token goes, and all columns are read under a mask; None: behind the last one, and only
            those are read that are filled.
        starts: with `column`, that of each row's first token.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.column: torch.Tensor | None = None
        self.starts: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.column is not None:
            self.keys.index_copy_(2, self.column, key_states)
            self.values.index_copy_(2, self.column, value_states)
            return self.keys, self.values
        end = self.length + key_states.shape[-2]
        if self.is_initialized:
            self.keys[:, :, self.length : end] = key_states
            self.values[:, :, self.length : end] = value_states
        else:
            RowLayer.lazy_initialization(self, key_states, value_states)
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class StateAndRowLayer(LinearAttentionLayer, RowLayer):
    """A layer with attention and a state side by side."""

    is_compileable = False

    def __init__(self) -> None:
        RowLayer.__init__(self)
        LinearAttentionLayer.__init__(self)


Layout = tuple[type[Any], ...]
"""The class of each layer of a cache."""

_OURS: dict[type, type] = {
    DynamicLayer: RowLayer,
    DynamicSlidingWindowLayer: RowLayer,  # columns before the window are masked, not dropped
    LinearAttentionLayer: LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer: StateAndRowLayer,
}


def layout_of(config: Any) -> Layout | None:
    """Find the layers of the cache that a model of this text config needs; None: it keeps something unknown."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds <= {"full_attention", "sliding_attention", "chunked_attention"}:
        return tuple(RowLayer for layer in layer_sizes(config) if layer.keeps_keys)
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError, TypeError, ValueError):  # a kind of layer that only the model's own code knows
        return None
    known = all(type(layer) in _OURS and getattr(layer, "number_of_states", 1) == 1 for layer in layers)
    layout = tuple(_OURS[type(layer)] for layer in layers) if known else ()
    return layout if any(issubclass(kind, RowLayer) for kind in layout) else None


def keeps_state(layout: Layout) -> bool:
    return any(issubclass(kind, LinearAttentionLayer) for kind in layout)


def new_cache(layout: Layout) -> Cache:
    return Cache(layers=[kind() for kind in layout])


def row_layers(cache: Cache) -> list[RowLayer]:
    """Return the layers with keys and values; there is one at least."""
    return [layer for layer in cache.layers if isinstance(layer, RowLayer)]


def states_of(cache: Cache) -> list[torch.Tensor]:
    """Return the tensors of all states, a line a row each."""
    layers = [layer for layer in cache.layers if isinstance(layer, LinearAttentionLayer)]
    found = [state for layer in layers for name in _STATES for state in getattr(layer, name).values()]
    return [state for state in found if state is not None]


def join_states(
    layer: LinearAttentionLayer, olds: Sequence[LinearAttentionLayer], rows: Sequence[torch.Tensor]
) -> None:
    """Fill a new layer with the states of the given rows of old ones, and empty those."""
    first = olds[0]
    for name in _STATES:
        for at, state in getattr(first, name).items():
            if state is not None:  # layers of experts and short convolutions have none
                lines = [getattr(old, name)[at][chosen] for old, chosen in zip(olds, rows, strict=True)]
                getattr(layer, name)[at] = torch.cat(lines)
    layer.device, layer.dtype = first.device, first.dtype
    for name in ("has_previous_state", "conv_kernel_size", *(f"is_{name}_initialized" for name in _STATES)):
        setattr(layer, name, dict(getattr(first, name)))
    for old in olds:
        old.conv_states, old.recurrent_states = {}, {}
