"""`lora.experts`: adapters on parameters that hold the weights of all experts, from the plan to the merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from conftest import make_tiny_model
from test_adapter_targets import EXPERTS, config_of
from test_fidelity import make_family, short
from thinktune.config import Load, parse_config
from thinktune.errors import ConfigError, ModelError
from thinktune.export.merge import merge
from thinktune.models import load_model
from thinktune.planner.cost_model import CostModel, cost_model_of
from thinktune.planner.hardware import find_gpu
from thinktune.planner.memory_model import Batch
from thinktune.planner.model_shape import shape_of
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.adapter import adapter_to_ask, adapter_to_train
from thinktune.training.adapter_coverage import coverage_table
from thinktune.training.adapter_round_trip import require_round_trip
from thinktune.training.base_model_cache import checksum
from training import adapter_of, make_config, quietly

CPU = Load(dtype="float32", device="cpu")
LORA = {"targets": "auto", "experts": True}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixture of experts, read-only."""
    return make_family(tmp_path_factory.mktemp("mixture") / "model", "Qwen3Moe", **EXPERTS)


@pytest.fixture(scope="module")
def trained(mixture: Path) -> Path:
    """A run with adapters on attention and experts, read-only."""
    run = mixture.parent / "run"
    quietly(short(mixture, run, lora=LORA))
    return run


def planned(config: Any, **lora: Any) -> CostModel:
    settings = parse_config({"lora": {"r": 4, **lora}, "train": {"gradient_checkpointing": False}})
    return cost_model_of(settings, shape_of(config), find_gpu("h100"), width=2)


def test_experts_are_trained_and_counted_by_the_plan(mixture: Path, trained: Path) -> None:
    ups = {name: weight for name, weight in adapter_of(trained).items() if "experts" in name and "lora_B" in name}
    assert len(ups) == 2 * 2
    assert all(weight.any() for weight in ups.values())
    record = json.loads((trained / "run.json").read_text())
    cost = planned(transformers.AutoConfig.from_pretrained(mixture), **LORA)
    assert record["trainable_parameters"] == cost.trained_parameters
    assert record["uncovered"] == []


def test_names_that_peft_takes_for_experts_are_counted_as_these() -> None:
    config = transformers.Qwen3MoeConfig(**{**EXPERTS, "mlp_only_layers": [0]})
    names = ["q_proj", "gate_proj", "up_proj", "down_proj"]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        trained = get_peft_model(model, LoraConfig(r=4, target_modules=names))
    numbers = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    assert planned(config, targets=names).trained_parameters == numbers


def test_the_plan_counts_the_experts_that_a_token_goes_through(mixture: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(mixture)
    one, two = (
        planned(type(config).from_dict({**config.to_dict(), "num_experts_per_tok": count}), targets="auto")
        for count in (1, 2)
    )
    batch = Batch(tokens=10**7, trained=10**7, attended=10**9)
    layers, gate_up, down = 2, 2 * 16 * 32, 16 * 32
    assert two.flops(batch) - one.flops(batch) == 4 * 10**7 * layers * (gate_up + down)
    assert two.saved["none"] - one.saved["none"] == 2 * (3 * 16 + 32)
    none = RecomputePolicy(("none", "none"))
    assert two.seconds(batch, none) > one.seconds(batch, none)
    assert two.memory(batch, none)["peak"] > one.memory(batch, none)["peak"]


def test_experts_are_no_part_of_the_adapter_unless_asked_for(mixture: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(mixture)
    with_them, without = planned(config, **LORA), planned(config, targets="auto")
    assert with_them.trained_parameters - without.trained_parameters == 2 * 2 * 4 * ((32 + 32) + (16 + 32))
    assert without.expert_stack == 0
    assert with_them.expert_stack == 2 * 2 * (32 * 32 + 16 * 32)  # bytes in bfloat16, of two experts


def test_the_merged_model_predicts_as_the_adapter_beside_its_base(mixture: Path, trained: Path, tmp_path: Path) -> None:
    merge(trained, tmp_path / "merged", load=CPU, max_tokens=4)
    base, merged = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        for folder in (mixture, tmp_path / "merged")
    )
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        plain = base(ids).logits
        beside = PeftModel.from_pretrained(base, str(trained / "adapter"))(ids).logits
        difference = (merged(ids).logits - beside).abs().max()
    assert difference < 1e-4 < (plain - beside).abs().max() / 100


@pytest.mark.slow
def test_a_resumed_training_of_experts_ends_with_the_same_adapter(mixture: Path, trained: Path, tmp_path: Path) -> None:
    config = short(mixture, tmp_path / "run", lora=LORA, train={"save_every": 1})
    quietly(config)
    expected = adapter_of(tmp_path / "run")
    for folder in ("adapter", "checkpoints/checkpoint-2"):
        for file in (tmp_path / "run" / folder).iterdir():
            file.unlink()
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "adapter").rmdir()
    quietly(config, resume=True)
    found = adapter_of(tmp_path / "run")
    assert found.keys() == expected.keys() == adapter_of(trained).keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_that_was_asked_with_adapters_on_its_experts_is_as_before(mixture: Path, trained: Path) -> None:
    loaded = load_model(mixture, load=CPU)
    before = checksum(loaded.model)
    with adapter_to_ask(loaded, trained / "adapter"):
        assert checksum(loaded.model) != before
    assert checksum(loaded.model) == before


def test_the_table_says_which_layers_have_an_adapter(mixture: Path) -> None:
    loaded = load_model(mixture, load=CPU)
    with adapter_to_train(loaded, make_config(mixture, mixture.parent / "none", lora=LORA)) as model:
        attention = "2 self_attn.{q_proj,k_proj,v_proj,o_proj}"
        assert coverage_table(model) == f"on {attention}, 2 mlp.experts.{{down_proj,gate_up_proj}}"
    settings = {"targets": ["q_proj", "v_proj"]}
    with adapter_to_train(loaded, make_config(mixture, mixture.parent / "none", lora=settings)) as model:
        rest = "2 self_attn.{k_proj,o_proj}, 2 mlp.experts.{gate_up_proj,down_proj}"
        assert coverage_table(model) == f"on 2 self_attn.{{q_proj,v_proj}}, none on {rest}"


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss", "GraniteMoe", "JetMoe", "Olmoe"])
def test_the_experts_of_other_families_are_found(kind: str) -> None:
    sizes = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "kv_channels": 8}
    shape = shape_of(config_of(kind, sizes))
    assert len(shape.experts) >= 2 * 2
    assert len(shape.expert_targets) == 2


def test_experts_where_there_are_none_and_dropout_on_them_are_refused(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"lora\.experts: the model has no parameter"):
        quietly(short(model, tmp_path / "run", lora=LORA))
    with pytest.raises(ConfigError, match="dropout"):
        parse_config({"lora": {**LORA, "dropout": 0.1}})


def test_an_adapter_that_comes_back_as_it_was_is_left_as_it_was(mixture: Path) -> None:
    loaded = load_model(mixture, load=CPU)
    with adapter_to_train(loaded, make_config(mixture, mixture.parent / "none", lora=LORA)) as model:
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        state = torch.get_rng_state()
        require_round_trip(model)
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
        assert torch.equal(torch.get_rng_state(), state)


def test_an_adapter_that_does_not_come_back_is_refused_before_a_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if PEFT saved some weights under names that it does not load."""

    def saved(model: PeftModel, **settings: Any) -> dict[str, torch.Tensor]:
        own = get_peft_model_state_dict(model, **settings)
        on_meta = next(iter(own.values())).is_meta
        return own if on_meta else {name.replace("v_proj", "values"): weight for name, weight in own.items()}

    monkeypatch.setattr("thinktune.training.adapter_round_trip.get_peft_model_state_dict", saved)
    with pytest.raises(ModelError, match=r"and loaded: \d+ weights find no place .*layers\.0\.self_attn"):
        quietly(short(tiny_model, tmp_path / "run"))
    assert not (tmp_path / "run" / "config.yaml").exists()
