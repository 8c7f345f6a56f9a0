"""Training in several processes: the same training as in one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import TrainerCallback

from conftest import make_tiny_model
from in_ranks import in_ranks
from test_out_of_memory import load, loss_of
from thinktune.config import Config, dump_config
from thinktune.errors import DataError, Interrupted, LostRank, OutOfMemory, StartAgain
from thinktune.files import write_json_lines
from thinktune.models.folder import read_json
from thinktune.planner.dealing import deal
from thinktune.planner.memory_model import Batch
from thinktune.training import train as training
from thinktune.training.adapter import adapter_to_train
from thinktune.training.checkpoints import whole_checkpoints
from thinktune.training.collator import PackedCollator
from thinktune.training.dealt_batches import DealtBatches
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.prepare_model import set_up
from thinktune.training.ranks import Ranks, here, joined
from thinktune.training.stop_signals import StopSignals
from thinktune.training.trainer import ThinkTrainer
from training import adapter_of, assert_same_outcome, make_config, metrics_of, quietly, wait_for_lines

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
@pytest.mark.parametrize("count", [3, 4])
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


@pytest.mark.slow
def test_held_out_loss_and_scores_are_those_of_one_process_also_at_the_last_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    data, train = {"sample": 41, "eval_fraction": 0.2}, {"max_steps": 4, "packing": False, "batch_size": 5}
    asked = {"data": "builtin:arithmetic", "every": 2, "every_sample": 5, "every_tokens": 12, "every_share": 1.0}
    configs = [
        make_config(tiny_model, tmp_path / name, data=data, train={**train, "eval_every": 2}, eval=asked)
        for name in ("one", "two")
    ]
    quietly(configs[0])
    assert [outcome.error for outcome in in_ranks(2, quietly, configs[1])] == [None] * 2
    assert_equal_training(tmp_path / "two", tmp_path / "one")
    lines = metrics_of(tmp_path / "two")
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]
    assert [line["eval_samples"] for line in lines if "eval_accuracy" in line] == [5, 5]


def short_of_memory(config: Config, step: int | None) -> None:
    """Train where memory runs out once on the last rank: in an optimizer step, or (None) before the first one."""
    place = here()
    with pytest.MonkeyPatch.context() as patch:
        if place.rank == place.size - 1:
            left = [1]
            train_step, prepare = ThinkTrainer.training_step, set_up

            def in_a_step(self: ThinkTrainer, *arguments: Any, **fields: Any) -> torch.Tensor:
                if self.state.global_step + 1 == step and left.pop():
                    raise torch.OutOfMemoryError
                return train_step(self, *arguments, **fields)

            def before(*arguments: Any) -> Any:
                if step is None and left and left.pop():
                    raise torch.OutOfMemoryError
                return prepare(*arguments)

            patch.setattr(ThinkTrainer, "training_step", in_a_step)
            patch.setattr(training, "set_up", before)
        quietly(config)


@pytest.mark.slow
def test_all_ranks_go_lighter_together_if_one_has_no_memory_before_the_first_step(
    alone: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcomes = in_ranks(2, short_of_memory, odd(tiny_model, run, on_oom="retry"), None)
    assert [outcome.error for outcome in outcomes] == [None] * 2
    assert read_json(run / "plan.json")["setup"]["memory"]["levels"] == ["full"] * 2
    assert_equal_training(run, alone)


@pytest.mark.slow
def test_memory_that_runs_out_in_a_step_has_all_start_again_with_a_lighter_plan(
    alone: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = odd(tiny_model, run, on_oom="retry")
    errors = [type(outcome.error) for outcome in in_ranks(2, short_of_memory, config, 8)]
    assert errors == [LostRank, StartAgain]
    assert [outcome.error for outcome in in_ranks(2, resume, config)] == [None] * 2
    assert read_json(run / "plan.json")["setup"]["memory"]["levels"] == ["full"] * 2
    assert_equal_training(run, alone)


@pytest.mark.slow
def test_memory_that_runs_out_is_an_error_where_that_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    errors = [type(each.error) for each in in_ranks(2, short_of_memory, odd(tiny_model, tmp_path / "run"), 2)]
    assert errors == [LostRank, OutOfMemory]


def train_on_own_rows(config: Config, folder: Path) -> None:
    os.chdir(folder / str(here().rank))
    quietly(config)


@pytest.mark.slow
def test_processes_that_have_read_other_rows_train_nothing(tiny_model: Path, tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        thought = f"<think>It is {rank}.</think> <answer>{rank}</answer>"
        rows = [{"prompt": f"{number} + {rank}?", "completion": thought} for number in range(8)]
        write_json_lines(tmp_path / str(rank) / "rows.jsonl", rows)
    config = make_config(tiny_model, tmp_path / "run", data={"source": "rows.jsonl", "sample": None})
    errors = [outcome.error for outcome in in_ranks(2, train_on_own_rows, config, tmp_path)]
    told = [error.message for error in errors if isinstance(error, DataError)]
    assert any("other data" in message for message in told), errors
    assert all(isinstance(error, DataError | LostRank) for error in errors)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def wide_headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose heads are wide enough for the kernels."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return make_tiny_model(folder, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)


def gradients_of(model: Path, shares: list[list[int]], width: int) -> list[Any]:
    """Add up, over all ranks, the gradients of this rank's share of some documents, through fused layers."""
    config, loaded, examples, plan = load(model)
    own = shares[here().rank]
    torch.manual_seed(0)
    with adapter_to_train(loaded, config) as tuned, set_up(tuned, loaded, replace(plan, fused=True)):
        with_loss = ModelWithLoss(tuned.train())
        if own:
            with_loss(**PackedCollator(examples)([{"documents": own}])).backward()
        with joined("cpu"):
            (documents,) = with_loss.add_up_ranks(torch.tensor(float(len(own))))
            assert documents == width
        return [
            parameter.grad.numpy() for parameter in with_loss.trained
        ]  # tensors would be shared with a process that ends


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="interprets the kernels, which a GPU machine compiles")
def test_ranks_add_up_to_the_gradient_of_the_joined_batch_through_fused_layers_and_one_may_have_nothing(
    wide_headed: Path,
) -> None:
    config, loaded, examples, plan = load(wide_headed)
    torch.manual_seed(0)
    with adapter_to_train(loaded, config) as model, set_up(model.train(), loaded, replace(plan, fused=True)):
        _, expected = loss_of(model, examples[:2])
    for outcome in in_ranks(3, gradients_of, wide_headed, [[0], [], [1]], 2):
        for ours, theirs in zip(outcome.value, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=1e-6, rtol=1e-4)


def command(config: Config, folder: Path, *flags: str) -> subprocess.Popen[str]:
    file = folder / "config.yaml"
    file.write_text(dump_config(config))
    words = [sys.executable, "-m", "thinktune", "train", str(file), "--gpus", "2", *flags]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children()]


@pytest.mark.slow
def test_a_rank_that_is_killed_and_a_command_that_is_killed_leave_no_process_and_lose_no_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    whole, killed = odd(tiny_model, tmp_path / "whole"), odd(tiny_model, tmp_path / "killed")
    in_ranks(2, quietly, whole)
    lines = tmp_path / "killed" / "metrics.jsonl"

    process = command(killed, tmp_path)
    wait_for_lines(lines, 3, process)
    ranks = ranks_of(process)
    os.kill(ranks[1], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.count("thinktune: process 1 of the training was ended by SIGKILL") == said.count("thinktune:") == 1
    assert "Traceback" not in said
    assert not any(map(psutil.pid_exists, ranks))

    process = command(killed, tmp_path, "--resume")
    wait_for_lines(lines, 12, process)  # those of before are cut off at first
    ranks = ranks_of(process)
    process.kill()
    process.communicate()
    assert psutil.wait_procs([psutil.Process(pid) for pid in ranks if psutil.pid_exists(pid)], timeout=5)[1] == []

    process = command(killed, tmp_path, "--resume")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_folder_that_holds_a_run_is_one_sentence_of_the_command_whatever_the_number_of_processes(
    alone: Path, tiny_model: Path, tmp_path: Path
) -> None:
    process = command(odd(tiny_model, alone), tmp_path)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.count("holds a finished run") == said.count("thinktune:") == 1
    assert "Traceback" not in said
