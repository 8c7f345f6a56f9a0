"""Generation by the model in training: adapters in the dtype of their base, fused layers for decoded tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel

from thinktune.training.fused.lora_linear import low_copies


@contextmanager
def generating(model: PeftModel) -> Iterator[None]:
    """Let a model whose layers may be fused generate fast within the block, in which its parameters must not change."""
    layers = [vars(module)["fused"] for module in model.modules() if "fused" in vars(module)]
    if layers:
        layers[0].refresh()
    for layer in layers:
        layer.decodes = layer.can_decode and not layer.is_disabled
    try:
        with low_copies(model):
            yield
    finally:
        for layer in layers:
            layer.decodes = False
