"""The models that fused layers support: those of the planner's table whose layers are as they should, with plain
adapters."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel

from thinktune.models.sharded_base import lying_together, sharded_base_of
from thinktune.planner.fused_models import FUSED_MAX_RANK
from thinktune.training.fused.layer_parts import NotFusable, Parts, adapters_in, decoder_layers, parts_of
from thinktune.training.fused.lora_buffers import base_of, dropout_of, matrices


def why_not_fused(model: PeftModel) -> str | None:
    """Explain in a few words why the layers of a model cannot be fused; None if they can."""
    base = model.get_base_model()
    if not _runs_on(base.device, base.dtype):
        return "its kernels are for NVIDIA GPUs from Ampere on, in bfloat16 or float16"
    layers = decoder_layers(base)
    if not layers:
        return f"{type(base).__name__} is no architecture that it knows"
    try:
        parts = [parts_of(layer, base.config.get_text_config()) for layer in layers]
        if sharded_base_of(base) is not None:
            _require_joined(parts)
        modules = adapters_in(parts)
    except NotFusable as reason:
        return str(reason)
    if any(parameter.requires_grad and "lora_" not in name for name, parameter in model.named_parameters()):
        return "more is trained than low-rank adapters"
    if not modules:
        return "it trains no adapter in them"
    if not all(_is_plain(module) for module in modules):
        return "the adapter has a bias, or a variant of LoRA"
    kinds = {
        (matrices(module)[0].shape[0], module.scaling[next(iter(module.lora_A))], dropout_of(module))
        for module in modules
    }
    if len(kinds) != 1:
        return "the adapter's ranks, scalings or dropout differ from layer to layer"
    if next(iter(kinds))[0] > FUSED_MAX_RANK:
        return f"the adapter's rank is above {FUSED_MAX_RANK}"
    return None


def _require_joined(parts: list[Parts]) -> None:
    """Check that the weights of a sharded base lie as products read them.

    Raises:
        NotFusable: they do not, or half of a layer is not fused: what is not would find the weights of another one.
    """
    for attention, mlp in parts:
        if attention is None or mlp is None:
            raise NotFusable("its base is spread over GPUs, and only half of a layer can be fused")
        for projections in (attention.qkv, mlp.gate_up):
            layers = [base_of(module) for module in projections]
            apart = hasattr(layers[0].weight, "quant_state")  # nf4 is read one by one
            if not apart and lying_together([layer.weight.data for layer in layers]) is None:
                raise NotFusable("its base is spread over GPUs, and weights read together do not lie together")


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels, on a CPU: tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    if interpreted():
        return True
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and dtype in (torch.bfloat16, torch.float16)


def _is_plain(module: Any) -> bool:
    names = list(module.lora_A)
    return (
        len(names) == 1
        and isinstance(module.lora_dropout[names[0]], torch.nn.Identity | torch.nn.Dropout)
        and not getattr(module, "lora_variant", None)
        and module.lora_B[names[0]].bias is None
    )
