"""The model families that were tried here, each with a tiny model of it, held against transformers' own.

`tests/families.py` has a row for each, and docs/models.md says how far each one goes. All others are trained too, if
the fidelity check finds nothing; that is said.
"""

from __future__ import annotations

from typing import Any

TRIED = {
    "afmoe", "apertus", "arcee", "bamba", "bitnet", "bloom", "codegen", "cohere", "cohere2", "cwm", "deepseek_v2",
    "deepseek_v3", "deepseek_v32", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
    "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text",
    "gemma4", "gemma4_text",
    "glm", "glm4", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox",
    "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoehybrid", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax", "jais2", "jamba", "jetmoe", "kimi_linear", "laguna",
    "lfm2", "lfm2_moe", "llama", "llama4_text", "mamba", "mamba2", "mellum", "mimo_v2_flash", "minicpm3", "minimax",
    "minimax_m2", "ministral", "ministral3", "mistral", "mistral3", "mixtral", "modernbert-decoder", "mpt", "nanochat",
    "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon", "phi", "phi3",
    "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next",
    "qwen4_exp_text", "recurrent_gemma", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma",
    "youtu", "zamba2",
}  # fmt: skip
"""Model types of transformers."""


def untried(model: Any) -> str | None:
    """Say that nobody has tried to train a model's family; None: its family is among the tried ones."""
    family = model.config.model_type
    if family in TRIED:
        return None
    return f"models of the family {family} are untried: loss and gradient are checked first, nothing else is known"
