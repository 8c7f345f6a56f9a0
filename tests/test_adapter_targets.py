"""`lora.targets: auto`: the layers it stands for in models of several kinds, in the plan as in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from conftest import make_tiny_model
from test_fidelity import make_family, short
from thinktune.config import parse_config
from thinktune.planner.cost_model import cost_model_of
from thinktune.planner.hardware import find_gpu
from thinktune.planner.model_shape import ModelShape, shape_of
from thinktune.training.adapter_coverage import uncovered
from training import adapter_of, quietly

SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
ATTENTION, MLP = "k_proj o_proj q_proj v_proj", "down_proj gate_proj up_proj"

FAMILIES: dict[str, tuple[str, dict[str, Any], str, list[str]]] = {
    "dense": ("Qwen2", {}, f"{ATTENTION} {MLP}", []),
    "experts": ("Qwen3Moe", EXPERTS, ATTENTION, ["mlp.experts"]),
    "names that PEFT moves to experts": (
        "Qwen3Moe", {**EXPERTS, "mlp_only_layers": [0]}, ATTENTION,
        ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.experts"],
    ),
    "delta rule": (
        "Qwen3_5Text", {**MIXED, **DELTA},
        f"{ATTENTION} {MLP} in_proj_a in_proj_b in_proj_qkv in_proj_z out_proj", [],
    ),
    "delta rule and experts": (
        "Qwen3Next", {**MIXED, **DELTA, **EXPERTS}, f"{ATTENTION} in_proj_ba in_proj_qkvz out_proj",
        ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj", "mlp.experts"],
    ),
    "Mamba beside attention": (
        "FalconH1", {"mamba_d_ssm": 64, **MAMBA}, f"{ATTENTION} {MLP} in_proj", ["mamba.out_proj"],
    ),
    "Mamba, attention and experts": (
        "GraniteMoeHybrid",
        {**MIXED, **MAMBA, "num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 16},
        f"{ATTENTION} in_proj input_linear output_linear", ["mamba.out_proj", "block_sparse_moe.experts"],
    ),
    "short convolutions": (
        "Lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "in_proj k_proj out_proj q_proj v_proj w1 w2 w3", [],
    ),
    "no linears of torch": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "c_attn c_fc c_proj", []),
}  # fmt: skip


def config_of(kind: str, settings: dict[str, Any]) -> Any:
    return getattr(transformers, f"{kind}Config")(**({} if kind == "GPT2" else SIZES), **settings)


def planned_parameters(shape: ModelShape, rank: int) -> int:
    config = parse_config({"lora": {"targets": "auto", "r": rank}})
    return cost_model_of(config, shape, find_gpu("h100"), width=2).trained_parameters


def wrapped(config: Any, shape: ModelShape) -> Any:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    lora = LoraConfig(r=4, target_modules=list(shape.auto_targets), task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


@pytest.mark.parametrize("family", FAMILIES)
def test_auto_names_every_linear_of_the_decoder_that_can_be_trained_and_the_rest_is_said(family: str) -> None:
    kind, settings, targets, left_out = FAMILIES[family]
    config = config_of(kind, settings)
    shape = shape_of(config)
    assert shape.auto_targets == tuple(sorted(targets.split()))
    model = wrapped(config, shape)
    assert uncovered(model, "auto") == [f"no adapter on {name}" for name in left_out]
    assert planned_parameters(shape, rank=4) == model.get_nb_trainable_parameters()[0]


def test_auto_leaves_the_vision_tower_alone_though_its_layers_have_the_same_names() -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**SIZES, "layer_types": ["sliding_attention", "full_attention"]},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=399, boi_token_index=398, eoi_token_index=397,
    )  # fmt: skip
    shape = shape_of(config)
    assert {"gate_proj", "model.language_model.layers.1.self_attn.q_proj"} < set(shape.auto_targets)
    model = wrapped(config, shape)
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(adapted) == 2 * 2 * 7
    assert all(".language_model.layers." in name for name in adapted)
    assert uncovered(model, "auto") == []
    assert planned_parameters(shape, rank=4) == model.get_nb_trainable_parameters()[0]


def test_on_a_dense_model_auto_trains_the_same_adapter_as_the_names(tmp_path: Path) -> None:
    model = make_family(tmp_path / "model", "Qwen2")
    record = quietly(short(model, tmp_path / "auto", lora={"targets": "auto"}))
    quietly(short(model, tmp_path / "named"))
    ours, theirs = adapter_of(tmp_path / "auto"), adapter_of(tmp_path / "named")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (
        json.loads((tmp_path / run / "adapter" / "adapter_config.json").read_text()) for run in ("auto", "named")
    )
    assert sorted(ours.pop("target_modules")) == sorted(theirs.pop("target_modules"))
    assert ours == theirs
    shape = shape_of(transformers.AutoConfig.from_pretrained(model))
    assert record["trainable_parameters"] == planned_parameters(shape, rank=4)


def test_a_model_with_experts_is_trained_with_the_parameters_that_the_plan_counts(tmp_path: Path) -> None:
    model = make_family(tmp_path / "model", "Qwen3Moe", **EXPERTS)
    record = quietly(short(model, tmp_path / "run", lora={"targets": "auto"}, train={"max_steps": 1}))
    shape = shape_of(transformers.AutoConfig.from_pretrained(model))
    assert record["trainable_parameters"] == planned_parameters(shape, rank=4)
    assert record["uncovered"] == ["no adapter on mlp.experts"]


def test_every_adapter_of_auto_is_trained_in_a_hybrid_model(tmp_path: Path) -> None:
    model = make_family(tmp_path / "model", "Qwen3Next", **MIXED, **DELTA, **EXPERTS)
    record = quietly(short(model, tmp_path / "run", lora={"targets": "auto"}, train={"packing": False}))
    assert "no adapter on linear_attn" not in " ".join(record["uncovered"])
    found = {name: weight for name, weight in adapter_of(tmp_path / "run").items() if "lora_B" in name}
    assert any("linear_attn.in_proj_qkvz" in name for name in found)
    assert [name for name, weight in found.items() if not weight.any()] == []


def test_an_adapter_that_training_goes_on_with_keeps_its_own_targets(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    quietly(short(model, tmp_path / "first", lora={"targets": ["q_proj"]}))
    lora = {"targets": "auto", "init": str(tmp_path / "first")}
    quietly(short(model, tmp_path / "second", lora=lora, train={"max_steps": 1}))
    assert adapter_of(tmp_path / "second").keys() == adapter_of(tmp_path / "first").keys()


def test_a_model_whose_layers_have_different_widths_is_planned_for_their_mean() -> None:
    config = transformers.Gemma3nTextConfig(**SIZES | {"intermediate_size": [64, 96]}, num_kv_shared_layers=0)
    assert shape_of(config).intermediate == 80
