"""A base spread over processes: the same training as with all of it in each."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tiny_model
from in_ranks import in_ranks
from test_out_of_memory import load
from test_ranks import assert_equal_training, resume, train_until
from thinktune.config import Config
from thinktune.errors import ModelError, UsageError
from thinktune.models import load_model
from thinktune.models.sharded_base import ShardedBase, lying_together
from thinktune.planner.hardware import GIB, find_gpu
from thinktune.planner.known_models import known_config
from thinktune.planner.model_shape import shape_of
from thinktune.planner.pack_lengths import longest_packs
from thinktune.planner.plan import plan_as_configured
from thinktune.training.adapter import adapter_to_train
from thinktune.training.fidelity import batch_of, cut
from thinktune.training.fused.support import why_not_fused
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.prepare_model import set_up
from training import assert_same_outcome, make_config, quietly


class _Alone:
    """What has come at once."""

    def wait(self) -> None:
        """Wait for nothing."""


def copy_of(whole: torch.Tensor, own: torch.Tensor) -> _Alone:
    whole.copy_(own)
    return _Alone()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of five layers: three that are not there at any moment."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=5)


@pytest.mark.parametrize("quantize", ["none", "fp8", "nf4"])
def test_a_layer_is_there_in_its_forward_and_in_its_backward_pass(deep: Path, tmp_path: Path, quantize: str) -> None:
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    load = make_config(deep, tmp_path / "run").load
    found = []
    for base in (None, ShardedBase(0, 1, copy_of, quantize, torch.device("cpu"))):  # type: ignore[arg-type]
        model = load_model(deep, load=load, quantize=quantize, into=base).model  # type: ignore[arg-type]
        states = model.get_input_embeddings()(torch.arange(3, 40)[None]).detach().requires_grad_()
        logits = model(inputs_embeds=states, use_cache=False).logits
        found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), states)))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_were_moved_out_of_their_room_are_an_error(deep: Path, tmp_path: Path) -> None:
    base = ShardedBase(0, 1, copy_of, "none", torch.device("cpu"))
    model = load_model(deep, load=make_config(deep, tmp_path / "run").load, into=base).model
    weight = model.get_decoder().layers[3].mlp.up_proj.weight
    weight.data = weight.data.clone()
    with pytest.raises(ModelError, match="weights of layer 3 were moved away"):
        model(torch.arange(3, 40)[None])


def test_a_layer_that_does_not_arrive_as_it_was_read_is_an_error(deep: Path, tmp_path: Path) -> None:
    def change(whole: torch.Tensor, own: torch.Tensor) -> _Alone:
        whole.copy_(own.flip(0))
        return _Alone()

    with pytest.raises(ModelError, match="does not arrive as it was read"):
        load_model(
            deep,
            load=make_config(deep, tmp_path / "run").load,
            into=ShardedBase(0, 1, change, "none", torch.device("cpu")),
        )


def test_only_neighbours_in_memory_lie_together() -> None:
    whole = torch.arange(24.0).view(6, 4)
    joined_again = lying_together([whole[:2], whole[2:3], whole[3:]])
    assert joined_again is not None
    assert torch.equal(joined_again, whole)
    assert lying_together([whole[:2], whole[3:]]) is None
    assert lying_together([whole[2:], whole[:2]]) is None


published_shape = cache(lambda model: shape_of(known_config(model)))


@pytest.mark.parametrize(
    ("model", "quantize", "gpus", "settings", "kept"),
    [
        ("Qwen/Qwen2.5-72B-Instruct", "fp8", 2, {}, 0.5),
        ("Qwen/Qwen2.5-72B-Instruct", "fp8", 4, {}, 0.25),
        ("Qwen/Qwen2.5-72B-Instruct", "int8", 2, {}, 1.0),
        ("Qwen/Qwen2.5-72B-Instruct", "fp8", 2, {"shard_base": False}, 1.0),
        ("Qwen/Qwen2.5-72B-Instruct", "fp8", 1, {}, 1.0),
        ("Qwen/Qwen2.5-3B-Instruct", "none", 2, {}, 1.0),
        ("Qwen/Qwen2.5-3B-Instruct", "none", 2, {"shard_base": True}, 0.5),
    ],
)
def test_the_plan_spreads_a_base_only_where_it_does_not_fit_otherwise(
    tmp_path: Path, model: str, quantize: str, gpus: int, settings: dict[str, Any], kept: float
) -> None:
    config = make_config(Path(model), tmp_path / "run", quantize=quantize, train=settings)
    shape = published_shape(model)
    hardware = replace(find_gpu("h100"), memory=64 * GIB)
    plan = plan_as_configured(config, shape, longest_packs(config), hardware, width=2, gpus=gpus)
    assert plan.kept == kept
    assert plan.fits == (kept < 1 or "3B" in model)
    whole = plan_as_configured(config, shape, longest_packs(config), hardware, width=2, gpus=gpus, kept=1.0)
    saved = (1 - kept - 2 / shape.layers * (kept < 1)) * shape.linear_weights * (1 if quantize == "fp8" else 2)
    if kept < 1:
        assert whole.parts["weights"] - plan.parts["weights"] == pytest.approx(saved, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({}, "there is one GPU"), ({"quantize": "int8"}, "there is one GPU"), ({"lora": None}, "there is one GPU")],
)
def test_a_base_that_cannot_be_spread_is_refused(
    deep: Path, tmp_path: Path, settings: dict[str, Any], why: str
) -> None:
    config = make_config(deep, tmp_path / "run", train={"shard_base": True}, **settings)
    with pytest.raises(UsageError, match=f"train.shard_base cannot be true: {why}"):
        quietly(config)
    assert not (tmp_path / "run").exists()


def spread(deep: Path, output: Path, **settings: Any) -> Config:
    """A training whose packs do not divide by its ranks, so that one of them has batches less, of held-out rows too."""
    train = {"packing": False, "batch_size": 5, "save_every": 4, "eval_every": 3, "shard_base": True, **settings}
    return make_config(deep, output, data={"sample": 42, "eval_fraction": 0.27}, train=train)


@pytest.fixture(scope="module")
def unspread(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of `spread` by two processes with all of the base in each. Read-only."""
    run = tmp_path_factory.mktemp("runs") / "unspread"
    outcomes = in_ranks(2, quietly, spread(deep, run, shard_base=False))
    assert [outcome.error for outcome in outcomes] == [None] * 2
    return run


@pytest.mark.slow
def test_a_spread_base_is_trained_to_the_same_bits_also_after_a_stop(
    deep: Path, unspread: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    in_ranks(2, train_until, spread(deep, run), 4)
    assert [outcome.error for outcome in in_ranks(2, resume, spread(deep, run))] == [None] * 2
    assert_same_outcome(run, unspread)
    assert {path.relative_to(run) for path in run.rglob("*")} == {
        path.relative_to(unspread) for path in unspread.rglob("*")
    }


@pytest.mark.slow
def test_a_spread_training_goes_on_in_one_process(deep: Path, unspread: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    in_ranks(3, train_until, spread(deep, run), 4)
    quietly(spread(deep, run, shard_base="auto"), resume=True)
    assert_equal_training(run, unspread)


def gradients(model: Path, quantize: str, into: ShardedBase | None) -> list[torch.Tensor]:
    """Return the gradients of fused layers on a short document."""
    config, _, examples, plan = load(model)
    loaded = load_model(model, load=config.load_to_train, quantize=quantize, into=into)  # type: ignore[arg-type]
    torch.manual_seed(0)
    with adapter_to_train(loaded, config) as tuned:
        assert why_not_fused(tuned) is None
        with set_up(tuned, loaded, replace(plan, fused=True)):
            with_loss = ModelWithLoss(tuned.train())
            with_loss(**batch_of(tuned, [cut(examples[0], 24)])).backward()
            return [parameter.grad for parameter in with_loss.trained if parameter.grad is not None]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="interprets the kernels, which a GPU machine compiles")
@pytest.mark.parametrize("quantize", ["none", "fp8"])
def test_fused_layers_of_a_spread_base_have_the_same_gradients(tmp_path: Path, quantize: str) -> None:
    model = make_tiny_model(
        tmp_path / "wide", hidden_size=64, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=3
    )
    base = ShardedBase(0, 1, copy_of, quantize, torch.device("cpu"))  # type: ignore[arg-type]
    whole, ours = (gradients(model, quantize, into) for into in (None, base))
    assert len(ours) == len(whole) == 3 * 7 * 2
    for one, other in zip(ours, whole, strict=True):
        assert torch.equal(one, other)
