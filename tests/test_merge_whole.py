"""Merged models whose base has more than the text model that is trained: a vision tower, layers that look ahead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from conftest import make_tiny_model, make_tiny_tokenizer
from test_engine_hybrids import DELTA, MIXED
from test_merge import merged, tuned
from test_models_loading import FLOAT32, logits
from thinktune.models import load_model
from thinktune.models.saving import save_model


def make_multimodal(folder: Path, *, tied: bool = False) -> Path:
    """A tiny Qwen3.5 as it is published: text and vision in one checkpoint, in bfloat16, with a processor's config."""
    tokenizer = make_tiny_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "layer_types": MIXED, "tie_word_embeddings": tied, **DELTA,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "patch_size": 14,
        "num_position_embeddings": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    transformers.Qwen3_5ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"patch_size": 14}')
    return folder


def weights_of(folder: str | Path) -> dict[str, torch.Tensor]:
    files = Path(folder).glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_whole(folder: str | Path) -> Any:
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, transformers.Qwen3_5ForConditionalGeneration)
    assert not any(info.values())
    return model


def test_a_multimodal_base_keeps_its_vision_weights_its_config_and_its_processor(tmp_path: Path) -> None:
    base = make_multimodal(tmp_path / "base")
    adapter = tuned(base, tmp_path / "lora", target_modules=["q_proj", "in_proj_qkv"])
    folder = Path(merged(adapter).folder)
    before, after = weights_of(base), weights_of(folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("q_proj.weight", "in_proj_qkv.weight"))}
    for name in ("config.json", "preprocessor_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((base / name).read_text())
    assert_whole(folder)
    apart = logits(load_model(adapter, load=FLOAT32, merge_adapter=False).model)
    torch.testing.assert_close(logits(load_model(folder, load=FLOAT32).model), apart, atol=0.1, rtol=0.1)


def test_a_head_of_its_own_and_another_dtype_are_told_by_the_config_of_the_whole(tmp_path: Path) -> None:
    base = make_multimodal(tmp_path / "base", tied=True)
    adapter = tuned(base, tmp_path / "lora", target_modules=["q_proj", "lm_head"])
    folder = Path(merged(adapter, dtype="float32").folder)
    assert weights_of(folder).keys() - weights_of(base).keys() == {"lm_head.weight"}
    assert {weight.dtype for weight in weights_of(folder).values()} == {torch.float32}
    whole = assert_whole(folder)
    assert whole.dtype == torch.float32
    assert not torch.equal(whole.lm_head.weight, whole.get_input_embeddings().weight)
    ids = torch.arange(3, 30)[None]
    torch.testing.assert_close(
        whole(ids).logits, load_model(folder, load=FLOAT32).model(ids).logits, atol=1e-4, rtol=1e-4
    )


def test_layers_that_transformers_does_not_load_come_along(tiny_model: Path, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    further = torch.arange(6.0)
    save_file({**weights_of(base), "mtp.fc.weight": further}, base / "model.safetensors", metadata={"format": "pt"})
    folder = merged(tuned(base, tmp_path / "lora")).folder
    assert torch.equal(weights_of(folder)["mtp.fc.weight"], further)
    load_model(folder, load=FLOAT32)


def test_a_checkpoint_without_a_prefix_is_completed_by_what_only_it_has(tiny_model: Path, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    others = {name.removeprefix("model."): weight for name, weight in weights_of(base).items()}
    save_file({**others, "vision.weight": torch.zeros(3)}, base / "model.safetensors", metadata={"format": "pt"})
    folder = merged(tuned(base, tmp_path / "lora")).folder
    assert weights_of(folder).keys() == {*weights_of(tiny_model), "vision.weight"}


def test_weights_that_the_base_names_otherwise_are_not_there_twice(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = make_tiny_model(tmp_path / "base")
    others = {f"text.{name}": weight for name, weight in weights_of(base).items()}
    save_file(others, base / "model.safetensors", metadata={"format": "pt"})
    save_model(load_model(tiny_model, load=FLOAT32).model, tmp_path / "out", base, frozenset())
    assert weights_of(tmp_path / "out").keys() == weights_of(tiny_model).keys()
    assert "lacks 20 weights of its base" in caplog.text
