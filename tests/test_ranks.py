"""Training in several processes: the same training as in one."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from in_ranks import in_ranks
from thinktune.config import Config
from thinktune.errors import Interrupted
from thinktune.models.folder import read_json
from thinktune.planner.cost_model import Batch
from thinktune.planner.dealing import deal
from thinktune.training.checkpoints import whole_checkpoints
from thinktune.training.dealt_batches import DealtBatches
from thinktune.training.ranks import Ranks, here
from thinktune.training.stop_signals import StopSignals
from training import adapter_of, assert_same_outcome, make_config, metrics_of, quietly

COUNTERS = ("steps", "epochs", "tokens", "trained_tokens")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 3, 8, 33])
def test_every_pack_is_dealt_once_and_no_rank_gets_more_than_its_share(count: int, ranks: int) -> None:
    draw = random.Random(count * ranks)
    costs = [draw.lognormvariate(0, 0.8) for _ in range(2 * count)]
    packs = draw.sample(range(2 * count), count)
    dealt = deal(packs, costs, ranks)
    assert sorted(pack for own in dealt for pack in own) == sorted(packs)
    assert max(map(len, dealt)) <= -(-count // ranks)
    loads = [sum(costs[pack] for pack in own) for own in dealt]
    assert max(loads) <= sum(loads) / ranks + max(costs[pack] for pack in packs)
    assert dealt == deal(packs, costs, ranks)


def test_one_rank_takes_the_packs_of_a_step_as_they_come() -> None:
    assert deal([4, 0, 2], [1.0, 9.0, 5.0, 9.0, 3.0], 1) == [[4, 0, 2]]


@pytest.mark.parametrize("epoch", [0, 1])
def test_all_ranks_together_take_the_packs_of_each_step_that_one_gpu_would_take(epoch: int) -> None:
    from accelerate.data_loader import SeedableRandomSampler

    one = SeedableRandomSampler(range(38), data_seed=5)
    one.set_epoch(epoch)
    expected = list(one)
    sizes = [Batch(10 + pack, pack, 100.0) for pack in range(38)]
    seen: list[list[int]] = [[] for _ in range(10)]
    for rank in range(3):
        dealt = DealtBatches(
            sizes, [size.tokens for size in sizes], Ranks(rank, 3, rank), rows=4, accumulation=2, seed=5
        )
        dealt.set_epoch(epoch)
        batches = list(dealt)
        assert len(batches) == len(dealt) == 20
        for number, batch in enumerate(batches):
            assert len(batch) <= 1
            seen[number // 2] += batch
    steps = [expected[start : start + 4] for start in range(0, 38, 4)]
    assert [sorted(step) for step in seen] == [sorted(step) for step in steps]
    total = dealt.size(10 * epoch + 3)
    assert (total.tokens, total.trained) == (40 + sum(steps[3]), sum(steps[3]))


def odd(tiny_model: Path, output: Path, **settings: Any) -> Config:
    """A training whose packs divide by nothing: 37 of them, 5 a step, over 2 epochs."""
    train = {"epochs": 2, "packing": False, "batch_size": 5, "save_every": 6, **settings}
    return make_config(tiny_model, output, data={"sample": 41, "eval_fraction": 0.1}, train=train)


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training of `odd` by one process. Read-only."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    quietly(odd(tiny_model, run))
    return run


def assert_equal_training(run: Path, expected: Path) -> None:
    ours, theirs = adapter_of(run), adapter_of(expected)
    both = [torch.cat([tensors[name].double().flatten() for name in sorted(theirs)]) for tensors in (ours, theirs)]
    assert (both[0] - both[1]).norm() <= 1e-6 * both[1].norm()
    lines = metrics_of(run), metrics_of(expected)
    assert len(lines[0]) == len(lines[1])
    for line, other in zip(*lines, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert value == pytest.approx(other[name], rel=1e-5), (name, line)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_processes_train_the_adapter_that_one_trains(
    alone: Path, tiny_model: Path, tmp_path: Path, count: int
) -> None:
    run = tmp_path / "run"
    outcomes = in_ranks(count, quietly, odd(tiny_model, run))
    assert [outcome.error for outcome in outcomes] == [None] * count
    assert_equal_training(run, alone)
    records = [read_json(folder / "run.json") for folder in (run, alone)]
    assert [{name: record[name] for name in COUNTERS} for record in records] == [
        {name: records[1][name] for name in COUNTERS}
    ] * 2
    assert {path.name for path in run.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_processes(alone: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = odd(tiny_model, run)
    for count, steps in ((3, 6), (2, 12)):
        in_ranks(count, train_until, config, steps)
        assert whole_checkpoints(run / "checkpoints")[-1][0] == steps
    quietly(config, resume=True)
    assert_equal_training(run, alone)


@pytest.mark.slow
def test_a_training_resumed_with_as_many_processes_has_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    whole, resumed = odd(tiny_model, tmp_path / "whole"), odd(tiny_model, tmp_path / "resumed")
    in_ranks(2, quietly, whole)
    in_ranks(2, train_until, resumed, 9)
    assert [outcome.error for outcome in in_ranks(2, resume, resumed)] == [None] * 2
    assert_same_outcome(tmp_path / "resumed", tmp_path / "whole")


def resume(config: Config) -> None:
    quietly(config, resume=True)


def train_until(config: Config, step: int) -> None:
    """Begin a training, or go on with it, and have the last rank alone asked to stop in this step."""

    class Asked(StopSignals):
        def callback(self) -> TrainerCallback:
            stopper = super().callback()

            class Stopper(TrainerCallback):
                def on_step_begin(_, args: Any, state: Any, control: Any, **__: Any) -> None:
                    if state.global_step == step - 1 and here().rank == here().size - 1:
                        os.kill(os.getpid(), signal.SIGTERM)

                def on_step_end(_, *arguments: Any, **fields: Any) -> None:
                    stopper.on_step_end(*arguments, **fields)

            return Stopper()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thinktune.training.train.StopSignals", Asked)
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM after step {step};"):
            quietly(config, resume=config.run_folder.exists() and any(config.run_folder.iterdir()))
