"""Models that are published in MXFP4 or FP8 only: dequantised at loading, trained, and merged into whole weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from test_fidelity import make_family, short
from test_uneven_layers import make_mistral3
from thinktune.config import Load
from thinktune.export.merge import merge
from thinktune.models import load_model
from thinktune.models.folder import check_model_folder, read_safetensors_header
from thinktune.models.saving import save_model
from thinktune.planner.plan_config import read_shape
from training import make_config, quietly

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
CPU = Load(dtype="float32", device="cpu")
Weights = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Weights], Weights], told: dict[str, Any]) -> Weights:
    """Store a model's weights otherwise; `change` returns the values that are meant, by their names before."""
    weights = load_file(folder / "model.safetensors")
    meant = change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told}))
    return meant


def in_mxfp4(weights: Weights) -> Weights:
    """As gpt-oss has its experts: two 4-bit numbers a byte, 32 to a power of two, the input dimension last."""
    meant = {}
    values = torch.tensor(FP4 + [-value for value in FP4])
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
        weights |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], -1)
        whole = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        meant[name] = whole.reshape(experts, outputs, inputs).transpose(1, 2)
    return meant


def in_fp8(weights: Weights, *, by_block: bool) -> Weights:
    meant = {}
    for name in [name for name in weights if "layers" in name and name.endswith("_proj.weight")]:
        if "vision" in name:
            continue
        scale = weights[name].abs().max() / 448
        weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scale.reshape(1, 1) if by_block else scale.clone()
        if not by_block:
            weights[name.replace(".weight", ".activation_scale")] = torch.tensor(1.0)
        meant[name] = weights[name].float() * scale
    return meant


def make_gpt_oss(folder: Path) -> Weights:
    make_family(folder, "GptOss", num_local_experts=2, num_experts_per_tok=1, sliding_window=1024)
    return rewrite(folder, in_mxfp4, {"quant_method": "mxfp4"})


def make_fp8(folder: Path) -> Weights:
    make_family(folder, "Qwen3")
    told = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return rewrite(folder, lambda weights: in_fp8(weights, by_block=True), told)


def make_ministral3(folder: Path) -> Weights:
    make_mistral3(folder)
    kept = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    told = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    return rewrite(folder, lambda weights: in_fp8(weights, by_block=False), {**told, "modules_to_not_convert": kept})


def held_by(model: Any, names: Weights) -> Weights:
    held = dict(model.named_parameters())
    return {name: held[name.replace("language_model.model", "model.language_model")].data for name in names}


def kinds_in(folder: Path) -> set[str]:
    return {entry["dtype"] for file in check_model_folder(folder) for entry in read_safetensors_header(file).values()}


@pytest.mark.parametrize("make", [make_gpt_oss, make_fp8, make_ministral3])
def test_stored_numbers_times_their_scales_are_loaded_and_saved_whole(
    tmp_path: Path, make: Callable[[Path], Weights]
) -> None:
    meant = make(tmp_path / "model")
    assert meant
    loaded = load_model(tmp_path / "model", load=CPU)
    assert all(torch.equal(weight, meant[name]) for name, weight in held_by(loaded.model, meant).items())
    save_model(loaded.model, tmp_path / "saved", tmp_path / "model", frozenset())
    assert kinds_in(tmp_path / "saved") == {"F32"}
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved", load=CPU).model.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in loaded.model.state_dict().items())


def test_mxfp4_is_exact_in_bfloat16(tmp_path: Path) -> None:
    meant = make_gpt_oss(tmp_path / "model")
    model = load_model(tmp_path / "model", load=Load(dtype="bfloat16", device="cpu")).model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(weight.float(), meant[name]) for name, weight in held_by(model, meant).items())


def test_a_model_in_fp8_is_planned_trained_and_merged_as_a_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_fp8(tmp_path / "model")
    plain = make_family(tmp_path / "plain", "Qwen3")
    with caplog.at_level("INFO"):
        assert read_shape(make_config(tmp_path / "model", tmp_path / "run")) == read_shape(make_config(plain, tmp_path))
    assert "its weights are stored in fp8" in caplog.text
    quietly(short(tmp_path / "model", tmp_path / "run"))
    result = merge(tmp_path / "run", load=CPU, dtype="float32", max_tokens=4)
    assert result.max_difference < 1e-3
    assert kinds_in(tmp_path / "run" / "merged") == {"F32"}
