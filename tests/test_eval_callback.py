"""Evaluation during training: it measures, and disturbs nothing."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from test_sweep import when
from thinktune.config import Config, parse_config
from thinktune.errors import ConfigError, Interrupted, MissingExtra
from thinktune.training.train import train
from training import adapter_of

SCORES = ("eval_format_rate", "eval_accuracy", "eval_accuracy_lenient", "eval_samples")


def make_config(model: Path, output: Path, *, every: int | None = 2, **settings: Any) -> Config:
    evaluation = {"data": "builtin:arithmetic", "every": every, "every_sample": 3, "every_tokens": 6, "every_share": 1}
    values: dict[str, Any] = {
        "model": str(model),
        "output": str(output),
        "load": {"dtype": "float32", "device": "cpu"},
        "data": {"sample": 24, "max_length": 512},
        "lora": {"r": 2, "dropout": 0.2},  # draws random numbers in every step
        "train": {"learning_rate": 1e-2, "max_steps": 5, "save_every": 3},
        "ask": {"questions": []},
        "eval": evaluation,
    }
    for section, fields in settings.items():
        values[section] = {**values[section], **fields}
    return parse_config(values)


def quietly(config: Config, **arguments: Any) -> str:
    said = io.StringIO()
    train(config, console=Console(file=said, width=300), **arguments)
    return said.getvalue()


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = ("tokens_per_second", "memory_gib", "eval_seconds")
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


@pytest.fixture(scope="module")
def examined(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "examined"
    quietly(make_config(tiny_model, run))
    return run


def test_scores_are_logged_every_so_many_steps_and_drawn(examined: Path) -> None:
    scored = [line for line in metrics_of(examined) if "eval_accuracy" in line]
    assert [line["step"] for line in scored] == [2, 4]
    assert all(set(SCORES) <= set(line) for line in scored)
    assert [line["eval_samples"] for line in scored] == [3, 3]
    assert json.loads((examined / "run.json").read_text())["evaluation_seconds"] > 0


@pytest.mark.slow
def test_training_is_the_same_with_and_without(examined: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "left-alone"
    quietly(make_config(tiny_model, run, every=None))
    with_it, without = adapter_of(examined), adapter_of(run)
    assert all(torch.equal(with_it[name], without[name]) for name in without)
    assert [line for line in metrics_of(examined) if "loss" in line] == metrics_of(run)


@pytest.mark.slow
def test_a_stopped_training_resumes_to_the_same_lines(examined: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "stopped"
    config = make_config(tiny_model, run)
    when(
        lambda: '"step": 2' in (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else False,
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(Interrupted):
        quietly(config)
    quietly(config, resume=True)
    assert metrics_of(run) == metrics_of(examined)
    ours, theirs = adapter_of(run), adapter_of(examined)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_would_cost_more_than_its_share_is_left_out_and_said(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = quietly(make_config(tiny_model, run, eval={"every_share": 1e-6}))
    assert not [line for line in metrics_of(run) if "eval_accuracy" in line]
    assert said.count("evaluation during training takes") == 1


def test_tensorboard_gets_loss_and_scores(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    quietly(make_config(tiny_model, run, train={"report_to": ["tensorboard"], "max_steps": 3}))
    events = EventAccumulator(str(run / "logs")).Reload()
    losses = [line["loss"] for line in metrics_of(run) if "loss" in line]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.step for event in events.Scalars("eval/accuracy")] == [2]


def test_a_logger_that_is_not_installed_is_named_before_anything_is_done(tiny_model: Path, tmp_path: Path) -> None:
    from importlib.util import find_spec

    (missing,) = [name for name in ("swanlab", "trackio", "mlflow", "wandb") if find_spec(name) is None][:1]
    config = make_config(tiny_model, tmp_path / "run", train={"report_to": [missing]})
    with pytest.raises(MissingExtra, match=f"{missing} is not installed") as raised:
        quietly(config)
    assert raised.value.hint == f"pip install {missing}"
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_is_refused_with_those_there_are(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'tensorboard', 'wandb', 'mlflow', 'swanlab' or 'trackio'"):
        make_config(tiny_model, tmp_path / "run", train={"report_to": ["tensorbord"]})
