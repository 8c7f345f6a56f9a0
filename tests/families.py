"""Tiny random models of the decoder families that transformers has, and how far each goes in thinktune.

The table is held by `test_families.py`, family by family; docs/models.md is held against it. A row begins with the word
for what is expected, and that is all there is to change when a family comes to work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from conftest import make_tiny_tokenizer

Outcome = Literal["works", "slower", "refused"]


@dataclass(frozen=True)
class Row:
    """A family's expected outcome.

    Attributes:
        outcome: `works`; `slower`: with an attention of its own, one example at a time; `refused`: it is not trained.
        says: part of the refusal.
        settings: of its config, beside those that all have.
    """

    outcome: Outcome
    says: str
    settings: dict[str, Any]


def works(**settings: Any) -> Row:
    return Row("works", "", settings)


def slower(**settings: Any) -> Row:
    return Row("slower", "", settings)


def refused(says: str, **settings: Any) -> Row:
    return Row("refused", says, settings)


WINDOW = 60
"""Tokens: examples and prompts are longer."""
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
MAMBA2 = {"n_groups": 1, "chunk_size": 16, "expand": 2}
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "num_key_value_heads": 4, "head_dim": None,
}  # fmt: skip
SPARSE = {"mlp_layer_types": ["dense", "sparse"]}
INDEXED = {"index_topk": 16, "index_n_heads": 16, "index_head_dim": 8}  # few heads: scores of 0, and ties
GRANITE = {"embedding_multiplier": 2.0, "logits_scaling": 4.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}
CAPPED = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0, "query_pre_attn_scalar": 8}
GEMMA4 = {
    "hidden_size_per_layer_input": 8, "final_logit_softcapping": 10.0, "num_experts": None,
    "moe_intermediate_size": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
YARN_SCALED = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [6.0] * 4,
    "original_max_position_embeddings": 110,
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
TOWER = {**VISION, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}

FAMILIES: dict[str, Row] = {
    # Llama and its like
    "llama": works(),
    "llama, tied": works(tie_word_embeddings=True, rope_parameters=LLAMA3),
    "mistral": works(sliding_window=WINDOW),
    "ministral": works(**SLIDING),
    "ministral3": works(rope_parameters=YARN_SCALED),
    "qwen2": works(tie_word_embeddings=True),
    "qwen3": works(),
    "smollm3": works(no_rope_layer_interval=2, no_rope_layers=[1, 0]),
    "seed_oss": works(),
    "cwm": works(**SLIDING),
    "arcee": works(),
    "apertus": works(),
    "helium": works(),
    "jais2": works(),
    "hyperclovax": works(logits_scaling=0.3),
    "hunyuan_v1_dense": works(),
    "ernie4_5": works(),
    "bitnet": works(),
    "nanochat": works(final_logit_softcapping=10.0),
    "diffllama": works(),
    "granite": works(**GRANITE),
    "granite_swa": works(**SLIDING),
    "glm": works(),
    "glm4": works(),
    "olmo": works(),
    "olmo2": works(),
    "olmo3": works(**SLIDING),
    "exaone4": works(**SLIDING, sliding_window_pattern=2),
    "cohere": works(logit_scale=0.3),
    "cohere2": works(**SLIDING, logit_scale=0.3),
    "stablelm": works(use_qkv_bias=True),
    "nemotron": works(),
    "starcoder2": works(),
    "persimmon": works(),
    "phi": works(),
    "phi3": works(),
    "phi3, longrope": works(rope_parameters=LONGROPE, original_max_position_embeddings=110),
    "gemma": works(num_key_value_heads=1),
    "gemma2": works(**SLIDING, **CAPPED),
    "vaultgemma": works(**SLIDING, **CAPPED),
    "gemma3_text": works(**SLIDING, query_pre_attn_scalar=8),
    "gemma3": works(
        text_config={**SLIDING, "query_pre_attn_scalar": 8}, vision_config=TOWER, mm_tokens_per_image=4,
        image_token_index=399, boi_token_index=398, eoi_token_index=397,
    ),
    "gemma3n_text": works(
        **SLIDING, num_kv_shared_layers=0, intermediate_size=[64, 64], activation_sparsity_pattern=[0.0, 0.0],
        hidden_size_per_layer_input=8, laurel_rank=8,
    ),
    "gemma4_text": works(**SLIDING, **GEMMA4),
    "gemma4_text, shared keys": works(
        **GEMMA4, layer_types=["sliding_attention", "full_attention", "full_attention"], sliding_window=WINDOW,
        num_hidden_layers=3, num_kv_shared_layers=1,
    ),
    "gemma4_text, experts": works(**SLIDING, hidden_size_per_layer_input=0, enable_moe_block=True, top_k_experts=2),
    "gemma4": works(
        text_config={**SLIDING, **GEMMA4}, vision_config={**VISION, "num_hidden_layers": 1, "head_dim": 8},
        audio_config=None, image_token_id=399, boi_token_id=398, eoi_token_id=397, video_token_id=396,
        audio_token_id=395,
    ),
    "mistral3": works(
        text_config={"model_type": "ministral3", "rope_parameters": YARN_SCALED},
        vision_config={**TOWER, "model_type": "pixtral", "head_dim": 8}, image_token_index=399,
    ),
    "modernbert-decoder": works(sliding_window=WINDOW),
    # latent attention, experts
    "minicpm3": works(**LATENT),
    "youtu": works(**LATENT),
    "deepseek_v2": works(**LATENT, topk_method="greedy"),
    "deepseek_v3": works(**LATENT),
    "glm4_moe": works(use_qk_norm=True),
    "glm4_moe_lite": works(**LATENT, **SPARSE),
    "qwen2_moe": works(),
    "qwen3_moe": works(mlp_only_layers=[0]),
    "mixtral": works(),
    "phimoe": works(),
    "olmoe": works(),
    "flex_olmo": works(),
    "gpt_oss": works(**SLIDING, rope_parameters={**YARN, "truncate": False}),
    "granitemoe": works(**GRANITE),
    "granitemoeshared": works(**GRANITE),
    "ernie4_5_moe": works(moe_layer_start_index=1, moe_layer_end_index=1, moe_layer_interval=1),
    "hunyuan_v1_moe": works(),
    "exaone_moe": works(**SLIDING, sliding_window_pattern=2),
    "minimax_m2": works(),
    "mimo_v2_flash": works(**SLIDING, **SPARSE, v_head_dim=8),
    "afmoe": works(**SLIDING, num_dense_layers=1),
    "jetmoe": works(kv_channels=8),
    "mellum": works(),
    "laguna": works(sliding_window=WINDOW),
    "solar_open": works(),
    "dots1": works(layer_types=["full_attention"] * 2),
    "hy_v3": works(),
    "llama4_text": works(
        layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0], attention_chunk_size=WINDOW,
        intermediate_size_mlp=64, interleave_moe_layer_step=2, moe_layers=[1],
    ),
    "deepseek_v32": slower(**LATENT, **SPARSE, **INDEXED),
    "glm_moe_dsa": slower(**LATENT, **SPARSE, **INDEXED),
    "qwen4_exp_text": slower(
        layer_types=["linear_attention", "indexed_attention"], **DELTA, hc_lowrank=8,
        ple_embed_dim=16, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=64,
        indexer_compress_ratio=4,
    ),
    "doge": slower(sliding_window=None),
    # layers with a state
    "qwen3_next": works(**LINEAR, **DELTA),
    "qwen3_5_text": works(**LINEAR, **DELTA),
    "qwen3_5_moe_text": works(**LINEAR, **DELTA),
    "qwen3_5": works(
        text_config={
            **LINEAR, **DELTA,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0,
                "mrope_section": [2, 1, 1], "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 14, "num_position_embeddings": 16,
        },
        image_token_id=399, video_token_id=398, vision_start_token_id=397, vision_end_token_id=396,
    ),
    "olmo_hybrid": works(**LINEAR, **DELTA),
    "kimi_linear": works(
        **LINEAR, **SPARSE, **{**LATENT, "q_lora_rank": None}, num_experts_per_token=2, linear_head_dim=8,
        linear_num_heads=4,
    ),
    "granitemoehybrid": works(**GRANITE, **LINEAR, **MAMBA, position_embedding_type="rope"),
    "granitemoehybrid, attention": works(
        **GRANITE, **MAMBA, layer_types=["full_attention"] * 2, num_local_experts=0, position_embedding_type="rope"
    ),
    "falcon_h1": works(**MAMBA, mamba_d_ssm=64, lm_head_multiplier=0.5, embedding_multiplier=2.0),
    "bamba": works(**MAMBA, attn_layer_indices=[1]),
    "jamba": works(
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8,
        mamba_dt_rank=8, use_mamba_kernels=False,
    ),
    "zamba2": works(
        mamba_ngroups=1, n_mamba_heads=8, mamba_d_state=8, mamba_headdim=8, chunk_size=16,
        layers_block_type=["mamba", "hybrid"], num_mem_blocks=1, num_key_value_heads=4, attention_head_dim=16,
        attention_hidden_size=64, head_dim=None,
    ),
    "nemotron_h": works(
        layers_block_type=["linear_attention", "moe", "full_attention", "mlp"], mamba_num_heads=8, mamba_head_dim=8,
        ssm_state_size=8, n_groups=1, chunk_size=16, moe_shared_expert_intermediate_size=16, use_mamba_kernels=False,
    ),
    "mamba": works(state_size=8),
    "mamba2": works(num_heads=8, head_dim=8, state_size=8, **MAMBA2),
    "falcon_mamba": works(state_size=8),
    "lfm2": works(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "lfm2_moe": works(layer_types=["conv", "full_attention"], num_dense_layers=1),
    "minimax": works(**LINEAR, block_size=16),
    "recurrent_gemma": works(
        lru_width=32, sliding_window=WINDOW, block_types=["recurrent", "attention"],
        num_hidden_layers=3,
    ),
    # before Llama
    "gpt_neox": works(),
    "gpt2": works(n_embd=32, n_layer=2, n_head=4, n_positions=2048),
    "gptj": slower(rotary_dim=8, n_embd=32, n_layer=2, n_head=4, n_positions=2048),
    "gpt_neo": slower(attention_types=[[["global", "local"], 1]], num_layers=2, num_heads=4, window_size=WINDOW),
    "gpt_bigcode": works(n_embd=32, n_layer=2, n_head=4, n_positions=2048),
    "codegen": slower(rotary_dim=8, n_embd=32, n_layer=2, n_head=4, n_positions=2048),
    "opt": works(ffn_dim=64, word_embed_proj_dim=32),
    "bloom": slower(n_layer=2, n_head=4),
    "mpt": slower(d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=2048),
    "falcon": slower(num_kv_heads=2, new_decoder_architecture=True),
    "falcon, alibi": refused("off, most", alibi=True, multi_query=True, num_kv_heads=1),
}  # fmt: skip

MOST_USED = (
    "llama, tied", "qwen2", "qwen3", "qwen3_moe", "qwen3_5_text", "gemma3_text", "gemma2", "gpt_oss", "mistral",
    "ministral3", "phi3", "phi3, longrope", "smollm3", "olmo3", "granite", "granitemoehybrid", "lfm2", "falcon_h1",
    "glm4_moe", "deepseek_v3", "ernie4_5_moe", "cohere2", "gpt2", "llama4_text",
)  # fmt: skip
"""The families that most people train, with one of each mechanism: CI has time for these."""

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "sliding_window": None, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "attention_dropout": 0.0, "dropout": 0.0, "resid_pdrop": 0.0,
    "embd_pdrop": 0.0, "attn_pdrop": 0.0, "hidden_dropout": 0.0, "embed_dropout": 0.0, "resid_dropout": 0.0,
    # experts, by the names that families have for the same
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "moe_topk": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16, "n_shared_experts": 1, "moe_num_shared_experts": 1, "num_shared_experts": 1,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip


def model_type(family: str) -> str:
    """Return the name that transformers has for a row of the table; the rest of the key tells variants apart."""
    return family.partition(",")[0]


def make_model(family: str, folder: Path) -> Path:
    """Save a tiny random model of a family with the tests' tokenizer, in float32."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    tokenizer = make_tiny_tokenizer()
    config = _config(family, len(tokenizer))
    torch.manual_seed(0)
    kind = AutoModelForImageTextToText if "vision_config" in FAMILIES[family].settings else AutoModelForCausalLM
    model = kind.from_config(config).float()
    _enlarge_weights(model)
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = 1, 2, 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(family: str, vocabulary: int) -> Any:
    from transformers import AutoConfig

    name, settings = model_type(family), dict(FAMILIES[family].settings)
    whole = AutoConfig.for_model(name)
    if "text_config" in settings:
        settings["text_config"] = {**_sizes(whole.get_text_config(), vocabulary), **settings["text_config"]}
    else:
        settings = {**_sizes(whole, vocabulary), **settings}
    return AutoConfig.for_model(name, **{field: value for field, value in settings.items() if _is_told(field, value)})


def _is_told(field: str, value: Any) -> bool:
    return field != "head_dim" or value is not None


def _sizes(config: Any, vocabulary: int) -> dict[str, Any]:
    """Return the sizes whose fields a config has."""
    known = {*config.to_dict(), *config.attribute_map}
    words = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), vocabulary)
    return {field: value for field, value in {**_SIZES, **words}.items() if field in known}


@torch.no_grad()
def _enlarge_weights(model: torch.nn.Module) -> None:
    """Draw weights so large that every part of a model shows in its output, norms, biases and sinks too."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if "A_log" in name or "dt_" in name or name.endswith(".D"):
            weight.add_(0.1 * noise)  # decays: others would explode
        elif weight.ndim < 2:
            weight.add_(0.2 * noise)
        elif "conv" in name and weight.ndim == 3:
            weight.copy_(0.5 * noise)
        else:
            weight.copy_(0.7 * noise if "embed" in name or "wte" in name else 1.3 * noise / weight.shape[-1] ** 0.5)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
