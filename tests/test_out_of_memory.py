"""From a plan to a model that follows it, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tiny_model
from thinktune.config import Config, parse_config
from thinktune.data import Tokens, prepare
from thinktune.models import Loaded, load_model
from thinktune.planner.plan import Plan, Setup
from thinktune.planner.recompute_policy import Memory
from thinktune.training.adapter import adapter_to_train
from thinktune.training.collator import PackedCollator
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.plan import plan_training, settle
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
    return config, loaded, examples, plan_training(config, loaded, examples)


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
    setup = Setup(Memory(("full", "mlp"), mlp_chunks=2), rows=1, accumulation=1)
    layer = loaded.model.model.layers[0]
    with adapter_to_train(loaded, config, lambda line: None) as model:
        model.train()
        with set_up(model, loaded, plan, plan.setup):
            expected, theirs = loss_of(model, examples)
        with set_up(model, loaded, replace(plan, fused=True), setup):
            assert "forward" in vars(layer)
            fused, ours = loss_of(model, examples)
        assert "forward" not in vars(layer)
    assert fused == pytest.approx(expected, rel=1e-4)
    assert len(ours) == len(theirs) == 28
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_model_that_the_kernels_do_not_take_is_planned_anew(tiny_model: Path) -> None:
    config, loaded, examples, plan = load(tiny_model)
    said: list[str] = []
    with adapter_to_train(loaded, config, lambda line: None) as model:
        asked = replace(plan, fused=True)
        settled, setup = settle(model, config, loaded, examples, asked, asked.setup, said.append)
        resumed = Setup(Memory(("full", "full")), rows=1, accumulation=1)
        assert settle(model, config, loaded, examples, asked, resumed, said.append)[1] == resumed
    assert not settled.fused
    assert setup == settled.setup
    assert "8 dimensions" in said[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes a model on a CPU for one on a GPU")
@pytest.mark.parametrize(
    ("fused", "said"), [(True, ["its layers are not fused: the adapter has dropout"]), (False, [])]
)
def test_a_training_on_a_gpu_that_is_not_fused_says_why_unless_that_was_asked_for(
    wide_headed: Path, fused: bool, said: list[str]
) -> None:
    config, loaded, examples, plan = load(wide_headed)
    lora, train = (getattr(config, name) for name in ("lora", "train"))
    changes = {"lora": lora.model_copy(update={"dropout": 0.1}), "train": train.model_copy(update={"fused": fused})}
    heard: list[str] = []
    config = config.model_copy(update=changes)
    with adapter_to_train(loaded, config, lambda line: None) as model:
        on_gpu = replace(loaded, device=torch.device("cuda"))
        assert settle(model, config, on_gpu, examples, plan, plan.setup, heard.append) == (plan, plan.setup)
    assert [line.split(",")[0] for line in heard] == said


def test_what_is_recomputed_as_a_whole_is_so_only_within(tiny_model: Path) -> None:
    config, loaded, examples, plan = load(tiny_model)
    whole = Setup(Memory(("full", "full")), 1, 1)
    with adapter_to_train(loaded, config, lambda line: None) as model:
        model.train()
        with set_up(model, loaded, plan, plan.setup):
            kept = loss_of(model, examples)
        with set_up(model, loaded, plan, whole):
            assert loaded.model.is_gradient_checkpointing
            recomputed = loss_of(model, examples)
        assert not loaded.model.is_gradient_checkpointing
    assert recomputed[0] == kept[0]
    assert all(torch.equal(one, other) for one, other in zip(recomputed[1], kept[1], strict=True))
