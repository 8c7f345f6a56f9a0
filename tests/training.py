"""Runs of tiny models, and what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from thinktune.config import Config, dump_config, parse_config
from thinktune.training.train import train

MEASURED = ("tokens_per_second", "memory_gib", "eval_seconds", "rl/seconds_generating", "rl/seconds_scoring",
            "rl/seconds_training")  # fmt: skip
"""What metrics.jsonl has of the machine; everything else must be the same each time."""


def make_config(model: Path, output: Path, **settings: Any) -> Config:
    values: dict[str, Any] = {
        "model": str(model),
        "output": str(output),
        "load": {"dtype": "float32", "device": "cpu"},
        "data": {"sample": 40, "max_length": 512, "eval_fraction": 0.1},
        "lora": {"r": 4, "alpha": 8},
        "train": {"learning_rate": 1e-2, "pack_length": 512, "save_every": 4, "warmup_steps": 2},
        "ask": {"questions": []},
    }
    for section, fields in settings.items():
        values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return parse_config(values)


def quietly(config: Config, **arguments: Any) -> dict[str, Any]:
    with open(os.devnull, "w") as nowhere:
        return train(config, console=Console(file=nowhere), **arguments)


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(run / "adapter" / "adapter_model.safetensors")
    return tensors


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def assert_same_outcome(run: Path, expected: Path) -> None:
    ours, theirs = adapter_of(run), adapter_of(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics_of(run) == metrics_of(expected)
    records = [json.loads((folder / "run.json").read_text()) for folder in (run, expected)]
    for counter in ("steps", "epochs", "tokens", "trained_tokens", "final_loss", "data_fingerprint"):
        assert records[0][counter] == records[1][counter], counter


def start_in_background(config: Config, folder: Path) -> subprocess.Popen[str]:
    file = folder / "config.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "thinktune", "train", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(file: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not file.exists() or file.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
