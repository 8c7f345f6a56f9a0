"""The kinds of layers in a decoder. What is the same of every layer of a kind is found out from the first ones alone:
in a model of 36 layers, most of the time of a pass over a few tokens is Python's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from thinktune.models.sharded_base import sharded_base_of
from thinktune.training.fused.document_by_document import changed_forwards
from thinktune.training.fused.layer_parts import NotFusable, decoder_layers, family_of

_PLAIN = (bool, int, float, str, type(None))  # a tuple: thousands of values are looked at


def first_of_each_kind(model: Any, count: int = 1) -> AbstractContextManager[Any]:
    """Let only the first `count` decoder layers of each kind compute within the block, and the others hand on what they
    are given; all layers of a model that is not of the families whose layers are known."""
    layers = _known_layers(model)
    seen: Counter[Hashable] = Counter()
    others = []
    for layer in layers:
        kind = _kind(layer)
        seen[kind] += 1
        if seen[kind] > count:
            others.append(layer)
    return changed_forwards(others, lambda *_: _hand_on) if others else nullcontext()


def _hand_on(hidden_states: Any, *_: Any, **__: Any) -> Any:
    return hidden_states


def _known_layers(model: Any) -> list[Any]:
    if sharded_base_of(model) is not None:  # the weights of a layer come while the one before is at work
        return []
    try:
        layers = decoder_layers(model)
        for layer in layers:
            family_of(layer)
    except (AttributeError, NotFusable):
        return []
    return layers


def _kind(layer: Any) -> Hashable:
    """Return what a layer is made of: classes, settings and sizes; and what is kept of it, where it is fused."""
    fused = vars(layer).get("fused")
    parts = []
    for name, module in layer.named_modules():
        settings = [
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, _PLAIN) and key not in ("layer_idx", "training")
        ]
        sizes = [(key, value.shape, value.dtype) for key, value in module._parameters.items() if value is not None]
        parts.append((name, type(module), tuple(settings), tuple(sizes)))
    return None if fused is None else fused.level, tuple(parts)
