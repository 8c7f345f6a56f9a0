"""Fused layers of every family give the gradients of plain PEFT; parts that they do not know are not fused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from test_fused_layers import CONFIGS, DEVICE, SameMask, add_adapter, assert_same
from thinktune.planner.adapter_targets import auto_targets
from thinktune.planner.fused_models import FUSED_MODELS
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.fused.fuse_model import fuse_layers
from thinktune.training.fused.support import why_not_fused

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 160, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOWED: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "ministral": ("MinistralConfig", {"layer_types": ["full_attention"] * 2}),
    "ministral3": (
        "Ministral3Config",
        {
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 8,
                "llama_4_scaling_beta": 0.5,
            }
        },
    ),
    "seed_oss": (
        "SeedOssConfig",
        {"attention_bias": True, "attention_out_bias": False, "attention_dropout": 0.0, "residual_dropout": 0.0},
    ),
    "cwm": ("CwmConfig", {"layer_types": ["full_attention"] * 2}),
    "granite": ("GraniteConfig", {"residual_multiplier": 0.22, "attention_multiplier": 0.1}),
    "granite4": (
        "GraniteMoeHybridConfig",
        {
            "num_local_experts": 0, "shared_intermediate_size": 96, "layer_types": ["attention"] * 2,
            "residual_multiplier": 0.22, "attention_multiplier": 0.1, "position_embedding_type": "nope",
        },
    ),
    "phi3": (
        "Phi3Config",
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.75}},
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True},
    ),
    "glm4_moe": (
        "Glm4MoeConfig",
        {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "first_k_dense_replace": 1,
            "use_qk_norm": True, "attention_bias": True,
        },
    ),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", WINDOWED),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 32, **WINDOWED}),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        {
            "layer_types": ["full_attention", "linear_attention"], "linear_num_value_heads": 4,
            "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        },
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
}  # fmt: skip


def make(family: str, *, r: int = 4, lora_dropout: float = 0.0, **changes: Any) -> PeftModel:
    """Two random layers, with norms and biases off their initial values and adapters that are not zero."""
    torch.manual_seed(0)
    kind, own = FAMILIES[family]
    base = AutoModelForCausalLM.from_config(
        getattr(transformers, kind)(**SIZES | own | changes), dtype=torch.float32
    ).to(DEVICE)
    for name, parameter in base.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        elif parameter.dim() > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return add_adapter(base, targets=list(auto_targets(base)), r=r, lora_dropout=lora_dropout)


QUICK = ("phi3", "gemma3", "qwen3_moe")  # joined projections and half a rotary; norms and GELU; half a layer


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_s_fused_layers_give_the_logits_and_gradients_of_plain_peft(family: str) -> None:
    plain, fused = make(family), make(family)
    assert why_not_fused(fused) is None
    fuse_layers(fused, RecomputePolicy(("none", "full")))
    assert_same(fused, plain)


@pytest.mark.slow
def test_the_text_half_of_a_model_that_sees_is_fused() -> None:
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=SIZES | FAMILIES["gemma3"][1], vision_config={**tower, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=159, boi_token_index=158, eoi_token_index=157,
    )  # fmt: skip
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        base = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).to(DEVICE).requires_grad_(False)
        models.append(add_adapter(base, targets=list(auto_targets(base))))
    assert why_not_fused(models[0]) is None
    fuse_layers(models[0], RecomputePolicy(("none", "full")))
    assert_same(*models)


def test_every_family_of_the_table_is_tested() -> None:
    types = {getattr(transformers, kind).model_type for kind, _ in FAMILIES.values()}
    assert types | CONFIGS.keys() == FUSED_MODELS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "memory"),
    [
        ("phi3", RecomputePolicy(("full",), mlp_chunks=2)),
        ("gemma3", RecomputePolicy(("full", "mlp"), mlp_chunks=3)),
        ("olmo2", RecomputePolicy(("mlp",))),
        ("granite", RecomputePolicy(("full",))),
        ("qwen3_5", RecomputePolicy(("mlp",), mlp_chunks=2)),
    ],
)
def test_large_ranks_and_recomputation_are_any_family_s(family: str, memory: RecomputePolicy) -> None:
    plain, fused = make(family, r=36), make(family, r=36)
    fuse_layers(fused, memory)
    assert_same(fused, plain)


@pytest.mark.slow
@pytest.mark.parametrize("r", [4, 36])
def test_a_joined_projection_drops_out_one_input(r: int) -> None:
    plain, fused = make("phi3", r=r, lora_dropout=0.3), make("phi3", r=r, lora_dropout=0.3)
    fuse_layers(fused, RecomputePolicy(("full",), mlp_chunks=2))
    for number, layer in enumerate(plain.get_base_model().model.layers):
        for place, module in [
            (0, layer.self_attn.qkv_proj), (3, layer.self_attn.o_proj),
            (4, layer.mlp.gate_up_proj), (6, layer.mlp.down_proj),
        ]:  # fmt: skip
            module.lora_dropout["default"] = SameMask(8 * number + place, 0.3)
    assert_same(fused, plain)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("seed_oss", {"attention_dropout": 0.1}, "dropout in attention"),
        ("seed_oss", {"residual_dropout": 0.1}, "dropout"),
        ("seed_oss", {"attention_out_bias": True}, "output has a bias"),
        ("phi3", {"resid_pdrop": 0.1}, "Phi3DecoderLayer has a part that it does not know, resid_attn_dropout"),
        ("granite", {"mlp_bias": True}, "biases in its MLP"),
        ("smollm3", {"hidden_act": "gelu"}, "activation is gelu"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "cap on scores"),
        ("granite4", {"layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 32}, "mamba"),
        ("granite4", {"num_local_experts": 4, "num_experts_per_tok": 2}, "block_sparse_moe"),
        ("olmo2", {"head_dim": 16}, "heads have 16 dimensions"),
    ],
)
def test_what_a_layer_has_beyond_its_family_is_not_fused_and_said(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    assert reason in (why_not_fused(make(family, **changes)) or "")


def test_a_norm_that_is_none_of_the_known_ones_is_not_fused() -> None:
    model = make("ministral")
    norm = model.get_base_model().model.layers[1].input_layernorm
    norm.forward = lambda x: x * norm.weight
    assert "no RMSNorm that it knows" in (why_not_fused(model) or "")


def test_another_class_of_the_same_name_is_not_fused() -> None:
    model = make("ministral")
    layer = model.get_base_model().model.layers[1]
    layer.__class__ = type("MinistralDecoderLayer", (type(layer),), {"__module__": "modeling_of_somebody"})
    assert "no architecture that it knows" in (why_not_fused(model) or "")
