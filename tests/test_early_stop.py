"""Early stopping: its decisions, the checkpoint that it keeps, and that a stopped training decides as a whole one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from in_ranks import in_ranks
from test_ranks import resume, train_until
from thinktune.config import Stop
from thinktune.errors import ConfigError, RunFolderError
from thinktune.models.folder import ADAPTER_WEIGHTS, read_json
from thinktune.training.checkpoints import whole_checkpoints
from thinktune.training.early_stop import EarlyStop
from training import adapter_of, assert_same_outcome, make_config, metrics_of, quietly


def history(field: str, values: list[float]) -> list[dict[str, Any]]:
    """Evaluations every two steps, among other lines."""
    lines: list[dict[str, Any]] = []
    for number, value in enumerate(values, start=1):
        lines += [{"step": 2 * number, "loss": 9.0}, {"step": 2 * number, field: value}]
    return lines


@pytest.mark.parametrize(
    ("settings", "values", "best", "ends"),
    [
        ({"patience": 2}, [3.0], 2, False),
        ({"patience": 2}, [3.0, 2.0, 2.5], 4, False),
        ({"patience": 2}, [3.0, 2.0, 2.5, 2.1], 4, True),
        ({"patience": 2}, [3.0, 2.0, 2.5, 1.9], 8, False),
        ({"patience": 1}, [3.0, 3.0], 2, True),
        # Slightly better is kept, and does not count as an improvement until enough of it has come together.
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.9, 2.8], 6, True),
        ({"patience": 2, "min_delta": 0.5}, [3.0, 2.7, 2.4], 6, False),
        ({"patience": 2, "monitor": "token_accuracy"}, [0.3, 0.5, 0.4, 0.5], 4, True),
        ({"patience": 3, "monitor": "token_accuracy"}, [0.3, 0.5, 0.4, 0.6], 8, False),
    ],
)
def test_the_best_evaluation_is_kept_and_enough_without_improvement_end_the_training(
    settings: dict[str, Any], values: list[float], best: int, ends: bool
) -> None:
    early = EarlyStop(Stop(**settings))
    verdict = early.judge(history(early.field, values))
    assert verdict is not None
    assert (verdict.step, verdict.ends) == (best, ends)
    assert early.judge(history("loss", values)) is None


def test_checkpoints_are_kept_with_the_best_as_of_each() -> None:
    early = EarlyStop(Stop())
    lines = history("eval_loss", [3.0, 2.0, 2.5, 1.0])
    assert early.kept(lines, {7, 8}) == {4, 7, 8}
    assert early.kept(lines, {3, 9}) == {2, 3, 8, 9}
    assert early.kept(lines, {1}) == {1}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": {"eval_fraction": 0.0}}, "data.eval_fraction holds none out"),
        ({"train": {"eval_every": None}}, "train.eval_every has none before the end"),
        ({"method": "dpo", "train": {"stop": {"monitor": "token_accuracy"}}}, "not known of pairs"),
        ({"method": "grpo", "data": {"eval_fraction": 0.0}}, "which method: grpo has not"),
        ({"train": {"eval_every": 50}}, "10 optimizer steps, and train.eval_every=50 evaluates none before the last"),
        ({"train": {"eval_every": 3, "max_steps": 3}}, "3 optimizer steps"),
    ],
)
def test_where_it_has_nothing_to_go_by_that_is_said_before_the_training(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    common = {"stop": {}, "eval_every": 2, **settings.get("train", {})}
    with pytest.raises(ConfigError, match=says):
        quietly(make_config(tiny_model, tmp_path / "run", **{**settings, "train": common}))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def stopping(model: Path, output: Path, **train: Any) -> Any:
    """A training whose held-out loss is best long before its end."""
    data = {"sample": 40, "eval_fraction": 0.2}
    settings = {"epochs": 8, "learning_rate": 0.1, "scheduler": "constant", "eval_every": 2, "keep_checkpoints": 1}
    return make_config(model, output, data=data, train={**settings, "save_every": 5, "stop": {"patience": 3}, **train})


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped early. Read-only."""
    run = tmp_path_factory.mktemp("early") / "whole"
    quietly(stopping(tiny_model, run))
    return run


@pytest.mark.slow
def test_the_adapter_is_that_of_the_best_evaluation_and_its_checkpoint_stays(whole: Path, tiny_model: Path) -> None:
    record, lines = read_json(whole / "run.json"), metrics_of(whole)
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert record["best"]["step"] == best
    assert record["best"]["stopped_early"]
    assert record["final_loss"] == record["best"]["eval_loss"] == losses[best]
    assert record["steps"] == max(losses) == best + 6
    assert next(step for step, _ in whole_checkpoints(whole / "checkpoints")) == best
    kept = adapter_of(whole)
    saved = load_file(whole / "checkpoints" / f"checkpoint-{best}" / ADAPTER_WEIGHTS)
    assert kept.keys() == saved.keys()
    assert all(torch.equal(kept[name], saved[name]) for name in kept)
    short = whole.with_name("short")
    quietly(stopping(tiny_model, short, stop=None, max_steps=best))
    assert all(torch.equal(kept[name], weight) for name, weight in adapter_of(short).items())


@pytest.mark.slow
def test_stopped_before_at_and_behind_the_best_checkpoint_and_at_the_end_it_ends_the_same(
    whole: Path, tiny_model: Path, tmp_path: Path
) -> None:
    best = read_json(whole / "run.json")["best"]
    config = stopping(tiny_model, tmp_path / "run")
    for after in (-1, 0, 1, 6):
        train_until(config, best["step"] + after)
    quietly(config, resume=True)
    assert_same_outcome(tmp_path / "run", whole)
    assert read_json(tmp_path / "run" / "run.json")["best"] == best


@pytest.mark.slow
def test_without_its_best_checkpoint_a_training_is_not_resumed(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    best = read_json(whole / "run.json")["best"]["step"]
    config = stopping(tiny_model, tmp_path / "run")
    train_until(config, best + 3)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}")
    with pytest.raises(RunFolderError, match=f"the best checkpoint is not whole: .*checkpoint-{best}"):
        quietly(config, resume=True)


@pytest.mark.slow
def test_several_processes_decide_as_one(whole: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = stopping(tiny_model, tmp_path / "run")
    best = read_json(whole / "run.json")["best"]
    in_ranks(2, train_until, config, best["step"] + 1)
    assert [outcome.error for outcome in in_ranks(2, resume, config)] == [None] * 2
    record = read_json(tmp_path / "run" / "run.json")
    assert record["best"] == {**best, "eval_loss": pytest.approx(best["eval_loss"], rel=1e-4)}
    assert record["steps"] == best["step"] + 6
    ours, theirs = (
        torch.cat([weights[name].flatten() for name in sorted(weights)])
        for weights in (adapter_of(tmp_path / "run"), adapter_of(whole))
    )
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()
