"""The models that fused layers support: Llama-, Mistral-, Qwen2- and Qwen3-style decoders with plain adapters."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from thinktune.planner.model_shape import FUSED_HEAD_DIMS, FUSED_MAX_RANK, FUSED_MODELS
from thinktune.training.fused.lora_buffers import base_of, dropout_of, matrices


def why_not_fused(model: PeftModel) -> str | None:
    """Explain in a few words why the layers of a model cannot be fused; None if they can."""
    base = model.get_base_model()
    if not _runs_on(base.device, base.dtype):
        return "its kernels are for NVIDIA GPUs from Ampere on, in bfloat16 or float16"
    layers = list(getattr(base.base_model, "layers", ()))
    names = {type(layer).__name__ for layer in layers}
    if not layers or not names <= set(FUSED_MODELS.values()):
        return f"{' and '.join(sorted(names)) or type(base).__name__} is no architecture that it knows"
    config = base.config
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if config.attention_dropout or getattr(config, "mlp_bias", False):
        return "it has dropout in attention, or biases in its MLP"
    attention = layers[0].self_attn
    if attention.head_dim not in FUSED_HEAD_DIMS:
        return f"its heads have {attention.head_dim} dimensions"
    if base_of(attention.o_proj).bias is not None:
        return "its attention's output has a bias"
    modules = [module for layer in layers for module in layer.modules() if isinstance(module, LoraLayer)]
    if any(parameter.requires_grad and "lora_" not in name for name, parameter in model.named_parameters()):
        return "more is trained than low-rank adapters"
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
