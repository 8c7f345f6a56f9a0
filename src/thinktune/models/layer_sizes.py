"""The sizes of a decoder's layers, from its config: in some families (Gemma 3n and 4) they differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of one layer's attention and MLP.

    Attributes:
        keeps_keys: whether it has keys and values of its own; the last layers of Gemma 3n and 4 use an earlier one's.
    """

    heads: int
    head_dim: int
    kv_heads: int
    intermediate: int
    keeps_keys: bool

    @property
    def q(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Width of all keys, and of all values, that the layer makes of a token."""
        return self.kv_heads * self.head_dim if self.keeps_keys else 0


def layer_sizes(config: Any) -> list[LayerSizes]:
    """Return the sizes of each decoder layer of a text config of transformers, in their order."""
    count = config.num_hidden_layers
    own = count - (getattr(config, "num_kv_shared_layers", None) or 0)
    layers = getattr(config, "per_layer_config", None) or [config] * count
    return [_sizes(layers[index], index, keeps_keys=index < own) for index in range(count)]


def _sizes(config: Any, index: int, *, keeps_keys: bool) -> LayerSizes:
    def read(name: str) -> Any:
        value = getattr(config, name, None)
        return value[index] if isinstance(value, (list, tuple)) else value

    heads = read("num_attention_heads") or 1
    return LayerSizes(
        heads=heads,
        head_dim=read("head_dim") or config.hidden_size // heads,
        kv_heads=read("num_key_value_heads") or heads,
        intermediate=read("intermediate_size") or 4 * config.hidden_size,
        keeps_keys=keeps_keys,
    )
