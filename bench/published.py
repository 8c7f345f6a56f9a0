"""Configs of published models, written out: what bench/shapes.py trains, with random weights."""

from __future__ import annotations

from typing import Any

_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, "short_factor": [1.0] * 48,
    "long_factor": [1.0 + 0.6 * at for at in range(48)], "original_max_position_embeddings": 4096,
}  # fmt: skip
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}


def _sizes(hidden: int, wide: int, layers: int, heads: int, kv: int, dim: int, vocabulary: int, **more: Any) -> Any:
    return {
        "hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": dim, "vocab_size": vocabulary, "max_position_embeddings": 32768,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True, "dtype": "bfloat16",
    } | more  # fmt: skip


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-4b": ("Qwen3Config", _sizes(2560, 9728, 36, 32, 8, 128, 151936, rope_theta=1e6)),
    "smollm3-3b": ("SmolLM3Config", _sizes(2048, 11008, 36, 16, 4, 128, 128256, rope_theta=5e6)),
    "gemma-3-4b": (
        "Gemma3TextConfig",
        _sizes(2560, 10240, 34, 8, 4, 256, 262208, sliding_window=1024, query_pre_attn_scalar=256,
               layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 4,
               rope_parameters=_GEMMA3_ROPE),
    ),
    "phi-4-mini": (
        "Phi3Config",
        _sizes(3072, 8192, 32, 24, 8, 128, 200064, rope_parameters=_LONGROPE, sliding_window=262144,
               max_position_embeddings=131072),
    ),
    "llama-3.1-8b": (
        "LlamaConfig",
        _sizes(4096, 14336, 32, 32, 8, 128, 128256, tie_word_embeddings=False, rope_parameters=_LLAMA3,
               max_position_embeddings=131072),
    ),
    "olmo-3-7b": (
        "Olmo3Config",
        _sizes(4096, 11008, 32, 32, 32, 128, 100278, tie_word_embeddings=False, rope_theta=5e5, sliding_window=4096,
               layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8),
    ),
    "qwen3-30b-a3b": (
        "Qwen3MoeConfig",
        _sizes(2048, 6144, 48, 32, 4, 128, 151936, tie_word_embeddings=False, rope_theta=1e6, num_experts=128,
               num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True),
    ),
    "qwen3.5-4b": (
        "Qwen3_5TextConfig",
        _sizes(2560, 9216, 32, 16, 4, 256, 248320, linear_num_key_heads=16, linear_num_value_heads=32,
               linear_key_head_dim=128, linear_value_head_dim=128,
               layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 8),
    ),
}  # fmt: skip
_TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 512, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip


def published_config(shape: str) -> Any:
    """Return the config of a published model; of `tiny-NAME`, one as narrow as a CPU likes it, four layers deep."""
    import transformers

    name = shape.removeprefix("tiny-")
    kind, values = PUBLISHED[name]
    if name != shape:
        values = values | {key: size for key, size in _TINY.items() if key in values} | {"num_hidden_layers": 4}
        if "layer_types" in values:
            values["layer_types"] = values["layer_types"][2:6]
        if name == "phi-4-mini":
            factors = {"short_factor": [1.0] * 12, "long_factor": [2.0] * 12}
            values |= {"num_attention_heads": 2, "rope_parameters": values["rope_parameters"] | factors}
    return getattr(transformers, kind)(**values)


def is_published(shape: str) -> bool:
    return shape.removeprefix("tiny-") in PUBLISHED
