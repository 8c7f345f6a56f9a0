"""From a plan to a model that follows it, and back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tiny_model
from thinktune.config import Config, parse_config
from thinktune.data import Tokens, prepare
from thinktune.data.packing import packs_of
from thinktune.models import Loaded, load_model
from thinktune.planner.hardware import find_gpu, hardware_here
from thinktune.planner.model_shape import shape_of
from thinktune.planner.pack_lengths import measure_packs
from thinktune.planner.plan import Plan, plan_as_configured
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.run_folder import RunFolder
from thinktune.training.adapter import adapter_to_train
from thinktune.training.collator import PackedCollator
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.out_of_memory import free_memory_of_the_past
from thinktune.training.peak_memory import peak_memory_gib
from thinktune.training.plan import record_plan, recorded_plan, resolve_plan
from thinktune.training.prepare_model import set_up


@pytest.fixture(scope="module")
def wide_headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose heads are wide enough for the kernels."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return make_tiny_model(folder, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)


def load(model: Path) -> tuple[Config, Loaded, list[Tokens], Plan]:
    config = parse_config(
        {
            "model": str(model),
            "load": {"dtype": "float32", "device": "cpu"},
            "data": {"sample": 2, "max_length": 512},
            "lora": {"r": 16, "alpha": 32},
        }
    )
    loaded = load_model(config.model, load=config.load)
    examples = [example.shorten(20) for example in prepare(config, loaded.chat).train]
    examples = [replace(example, context=10) for example in examples]
    packs = packs_of([len(example) for example in examples], config)
    hardware = hardware_here(loaded.device, loaded.dtype)
    shape, measured = shape_of(loaded.model.config), measure_packs(examples, packs)
    return config, loaded, examples, plan_as_configured(config, shape, measured, hardware, width=4)


def loss_of(model: Any, examples: list[Tokens]) -> tuple[float, list[torch.Tensor]]:
    inputs = PackedCollator(examples)([{"documents": list(range(len(examples)))}])
    loss = ModelWithLoss(model)(**inputs)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    return float(loss.detach()), [gradient for gradient in gradients if gradient is not None]


@pytest.mark.skipif(torch.cuda.is_available(), reason="interprets the kernels, which a GPU machine compiles")
def test_fused_and_other_layers_give_the_same_loss_and_gradients_and_are_put_back(wide_headed: Path) -> None:
    config, loaded, examples, plan = load(wide_headed)
    pieces = replace(plan, fused=True, memory=RecomputePolicy(("full", "mlp"), mlp_chunks=2))
    layer = loaded.model.model.layers[0]
    with adapter_to_train(loaded, config) as model:
        model.train()
        with set_up(model, loaded, plan):
            expected, theirs = loss_of(model, examples)
        with set_up(model, loaded, pieces):
            assert "forward" in vars(layer)
            fused, ours = loss_of(model, examples)
        assert "forward" not in vars(layer)
    assert fused == pytest.approx(expected, rel=1e-4)
    assert len(ours) == len(theirs) == 28
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def resolve(config: Config, loaded: Loaded, examples: list[Tokens]) -> Plan:
    """The plan on a GPU as fast as this CPU."""
    packs = measure_packs(examples, packs_of([len(example) for example in examples], config))
    with adapter_to_train(loaded, config) as model:
        return resolve_plan(model, config, loaded, packs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes a model on a CPU for one on a GPU")
@pytest.mark.parametrize(
    ("rank", "fused", "said"),
    [
        (8, True, []),
        (300, True, ["its layers are not fused: the adapter's rank is above 256"]),
        (300, False, []),
    ],
)
def test_a_training_on_a_gpu_that_is_not_fused_says_why_unless_that_was_asked_for(
    wide_headed: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    fused: bool,
    said: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("thinktune.training.plan.hardware_here", lambda *_: find_gpu("h100"))
    config, loaded, examples, _ = load(wide_headed)
    lora, train = (getattr(config, name) for name in ("lora", "train"))
    changes = {
        "lora": lora.model_copy(update={"r": rank, "dropout": 0.1}),
        "train": train.model_copy(update={"fused": fused}),
    }
    on_gpu = replace(loaded, device=torch.device("cuda"), dtype=torch.bfloat16)
    plan = resolve(config.model_copy(update=changes), on_gpu, examples)
    assert [line.split(",")[0] for line in caplog.messages if "fused" in line] == said
    assert plan.fused is (fused and not said)


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes a model on a CPU for one on a GPU")
def test_a_model_that_the_kernels_do_not_take_is_planned_without_them(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("thinktune.training.plan.hardware_here", lambda *_: find_gpu("h100"))
    config, loaded, examples, _ = load(tiny_model)
    plan = resolve(config, replace(loaded, device=torch.device("cuda"), dtype=torch.bfloat16), examples)
    assert not plan.fused
    assert "8 dimensions" in caplog.text


def test_a_resumed_run_follows_its_recorded_plan_under_the_same_settings(tiny_model: Path, tmp_path: Path) -> None:
    config, _, _, plan = load(tiny_model)
    run = RunFolder(tmp_path)
    assert recorded_plan(run, config, plan) == plan
    begun = replace(plan, memory=RecomputePolicy(("full", "full"), mlp_chunks=2), packs=3, accumulation=5)
    record_plan(run, config, begun)
    assert recorded_plan(run, config, plan) == begun
    values = json.loads(run.plan.read_text())
    values["setup"]["memory"]["unheard_of"] = 512  # an earlier version's, as is a setting that is there no longer
    values["asked"]["fold_accumulation"] = False
    run.plan.write_text(json.dumps(values))
    assert recorded_plan(run, config, plan) == begun
    other = config.model_copy(update={"train": config.train.model_copy(update={"accumulation": 2})})
    assert recorded_plan(run, other, plan) == plan
    assert recorded_plan(run, config, replace(plan, hardware="another")).packs == plan.packs


def test_what_is_recomputed_as_a_whole_is_so_only_within(tiny_model: Path) -> None:
    config, loaded, examples, plan = load(tiny_model)
    whole = replace(plan, memory=RecomputePolicy(("full", "full")))
    with adapter_to_train(loaded, config) as model:
        model.train()
        with set_up(model, loaded, plan):
            kept = loss_of(model, examples)
        with set_up(model, loaded, whole):
            assert loaded.model.is_gradient_checkpointing
            recomputed = loss_of(model, examples)
        assert not loaded.model.is_gradient_checkpointing
    assert recomputed[0] == kept[0]
    assert all(torch.equal(one, other) for one, other in zip(recomputed[1], kept[1], strict=True))


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="counts resident memory of Linux")
def test_memory_that_the_check_took_is_given_back_and_not_counted_as_that_of_the_training() -> None:
    freed = [torch.ones(2**14) for _ in range(6000)]  # 64 KiB each: from the heap
    _last = freed.pop()  # above them, so that the heap does not shrink by itself
    before = peak_memory_gib()
    freed.clear()
    free_memory_of_the_past()
    assert peak_memory_gib() < before - 0.2
