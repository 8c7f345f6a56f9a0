"""Families whose layers differ in size or share keys, and those published with a vision tower alone, all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from conftest import make_tiny_tokenizer
from test_adapter_targets import SIZES
from test_fidelity import make_family, short
from thinktune.config import Load, Sampling
from thinktune.export.merge import merge
from thinktune.inference.engines import Request
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import load_model
from thinktune.models.layer_sizes import layer_sizes
from thinktune.planner.model_shape import shape_of
from training import adapter_of, quietly

MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "sliding_window": 1024}
SMALL = {"vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "larger heads in full attention": ("Gemma4Text", {**MIXED, **SMALL, "global_head_dim": 16}),
    "keys of earlier layers": (
        "Gemma4Text", {**MIXED, **SMALL, "global_head_dim": 16, "num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    ),
    "keys that are the values": (
        "Gemma4Text",
        {**MIXED, "hidden_size_per_layer_input": 0, "global_head_dim": 16, "attention_k_eq_v": True,
         "num_global_key_value_heads": 1},
    ),
    "MLPs of several widths": (
        "Gemma3nText",
        {**MIXED, **SMALL, "num_kv_shared_layers": 2, "intermediate_size": [64, 32, 48, 64], "laurel_rank": 8,
         "activation_sparsity_pattern": [0.0] * 4},
    ),
}  # fmt: skip


def text_config(kind: str, settings: dict[str, Any]) -> Any:
    return getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})


@pytest.mark.parametrize(
    "family", [name if "earlier" in name else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_layers_that_differ_are_trained_and_answer_as_transformers_does(tmp_path: Path, family: str) -> None:
    kind, settings = FAMILIES[family]
    model = make_family(tmp_path / "model", kind, **settings)
    quietly(short(model, tmp_path / "run", lora={"targets": "auto"}))  # refused if loss or gradient were off
    ups = {name: weight for name, weight in adapter_of(tmp_path / "run").items() if "lora_B" in name}
    # A new Gemma 3n scales what its inputs by layer add by zero.
    assert {name for name, weight in ups.items() if not weight.any()} <= {name for name in ups if "per_layer" in name}
    assert_answers_as_transformers(model)


def assert_answers_as_transformers(folder: Path) -> None:
    loaded = load_model(folder, load=Load(dtype="float32", device="cpu"))
    prompts = [list(range(3, 3 + length)) for length in (5, 40, 11)]
    sampling = Sampling(max_tokens=8, temperature=0, stop=())
    engine = TransformersEngine(loaded.model, loaded.tokenizer, ())
    requests = [Request(str(index), ids, sampling) for index, ids in enumerate(prompts)]
    found = {completion.request_id: list(completion.token_ids) for completion in engine.generate(requests)}
    loaded.model.set_attn_implementation("eager")
    for index, ids in enumerate(prompts):
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        whole = loaded.model.generate(torch.tensor([ids]), **settings)
        assert found[str(index)] == whole[0, len(ids) :].tolist()


def test_the_shape_is_the_mean_of_layers_that_differ() -> None:
    config = text_config("Gemma4Text", FAMILIES["keys of earlier layers"][1])
    assert [layer.head_dim for layer in layer_sizes(config)] == [8, 16, 8, 16]
    assert [layer.kv for layer in layer_sizes(config)] == [16, 32, 0, 0]
    shape = shape_of(config)
    assert (shape.layers, shape.q, shape.kv) == (4, 48, 12)
    widths = FAMILIES["MLPs of several widths"]
    assert shape_of(text_config(*widths)).intermediate == 52


def gemma4_that_sees() -> Any:
    return transformers.Gemma4Config(
        text_config={**SIZES, **SMALL, "layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16},
        vision_config={**VISION, "num_key_value_heads": 2}, audio_config=None,
        image_token_id=399, boi_token_id=398, eoi_token_id=397, video_token_id=396, audio_token_id=395,
    )  # fmt: skip


def test_names_that_the_vision_tower_has_too_mean_the_text_decoder() -> None:
    config = gemma4_that_sees()
    shape = shape_of(config)
    targets = shape.named_targets(["q_proj", "down_proj"])
    shape.check_targets(targets)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model = get_peft_model(model, LoraConfig(target_modules=list(targets), task_type="CAUSAL_LM"))
    adapted = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert len(adapted) == len(targets) == 4
    assert all(".language_model.layers." in name for name in adapted)
    assert shape.named_targets(["per_layer_input_gate"]) == ("per_layer_input_gate",)


def make_mistral3(folder: Path) -> Path:
    tokenizer = make_tiny_tokenizer()
    torch.manual_seed(0)
    config = transformers.Mistral3Config(
        text_config={**SIZES, "vocab_size": len(tokenizer), "model_type": "ministral3", "sliding_window": None,
                     "max_position_embeddings": 2048},
        vision_config={**VISION, "model_type": "pixtral", "image_size": 28, "patch_size": 14}, image_token_index=399,
    )  # fmt: skip
    model = transformers.Mistral3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_family_that_is_published_with_a_vision_tower_alone_is_trained_merged_and_asked(tmp_path: Path) -> None:
    model = make_mistral3(tmp_path / "model")
    quietly(short(model, tmp_path / "run"))
    assert all(".language_model.layers." in name for name in adapter_of(tmp_path / "run"))
    merge(tmp_path / "run", load=Load(dtype="float32", device="cpu"), max_tokens=4)
    merged = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "merged").state_dict()
    before = transformers.AutoModelForImageTextToText.from_pretrained(model).state_dict()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert before.keys() == merged.keys()
    assert changed
    assert all("language_model" in name for name in changed)
    assert_answers_as_transformers(tmp_path / "run" / "merged")
