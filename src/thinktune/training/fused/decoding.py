"""Fused layers for decoded tokens.

One token of many rows is a batch like any other, but for attention, which reads the engine's cache. The CUDA graph of a
step so has a dozen kernels a layer in the place of seventy, the same as in the update; that of attention reads the
columns that a row has, and no more.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from thinktune.training.fused.batch import Batch
from thinktune.training.fused.decoder_layer import FusedLayer
from thinktune.training.fused.kernels.decode_attention import decode_attention, is_taken
from thinktune.training.fused.kernels.qkv_rotary import Positions


def may_decode(layer: FusedLayer, hidden: torch.Tensor, inputs: dict[str, Any]) -> bool:
    """Return whether a call of a layer is for one more token of every row, of a cache that a CUDA graph may read."""
    if not layer.decodes or hidden.shape[1] != 1 or inputs.get("past_key_values") is None:
        return False
    return getattr(inputs["past_key_values"].layers[layer.number], "column", None) is not None


def decode(layer: FusedLayer, module: Any, hidden: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """Compute a layer's output for one token of every row, [rows, 1, width]."""
    mixer, cache = module.self_attn, inputs["past_key_values"]
    own = cache.layers[mixer.layer_idx]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        if is_taken(query, own.keys, own.values):
            return decode_attention(query[0], key[0], value[0], own.keys, own.values, own.starts, own.column, scaling)
        query, key, value = (each[0].transpose(0, 1)[:, :, None] for each in (query, key, value))
        keys, values = cache.update(key, value, mixer.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS[mixer.config._attn_implementation]
        out: torch.Tensor = attention(mixer, query, keys, values, inputs["attention_mask"], scaling=scaling)[0]
        return out

    turn = inputs.get("position_embeddings")
    cos, sin = (None, None) if turn is None else (each[:, 0].contiguous() for each in turn)
    return layer.decode(hidden[:, 0], Batch(Positions(cos, sin), {}, attend=attend))[:, None]
