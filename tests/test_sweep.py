"""A grid of trainings on one base model: each as if it had been trained alone, and none in the way of the others."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conftest import make_tiny_model
from thinktune.config import Config, dump_config, load_config, parse_config
from thinktune.config.grid import split_values
from thinktune.errors import ConfigError, Interrupted, ThinktuneError
from thinktune.models import load_model
from thinktune.training.adapter import adapter_to_ask, adapter_to_train
from thinktune.training.base_model_cache import BaseModelCache, checksum
from thinktune.training.train import train
from thinktune.workflows.sweep import Swept, plan_sweep, sweep
from training import adapter_of


def make_file(model: Path, folder: Path, **settings: Any) -> Path:
    values: dict[str, Any] = {
        "model": str(model),
        "output": str(folder / "runs"),
        "load": {"dtype": "float32", "device": "cpu"},
        "data": {"sample": 20, "max_length": 512},
        "lora": {"r": 2, "alpha": 4},
        "train": {"learning_rate": 1e-2, "max_steps": 2, "save_every": 1},
        "eval": {"data": "builtin:arithmetic", "sample": 3, "sampling": {"max_tokens": 8}, "every": None},
    }
    for section, fields in settings.items():
        values[section] = {**values.get(section, {}), **fields}
    file = folder / "config.yaml"
    file.write_text(dump_config(parse_config(values)))
    return file


def quietly(file: Path, *overrides: str, **settings: Any) -> Swept:
    return sweep(file, overrides, console=Console(file=io.StringIO()), **settings)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4,8,16", ["4", "8", "16"]),
        ("[q_proj,v_proj],[q_proj]", ["[q_proj,v_proj]", "[q_proj]"]),
        ("{a: [1,2]}, x", ["{a: [1,2]}", "x"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("4", ["4"]),
        ("4,,8", ["4", "", "8"]),
    ],
)
def test_values_are_split_at_commas_outside_brackets_and_quotes(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_a_plan_has_every_combination_named_by_what_is_swept(tiny_model: Path, tmp_path: Path) -> None:
    members = plan_sweep(make_file(tiny_model, tmp_path), ["lora.r=4,8", "train.seed=1,2", "lora.alpha=3"])
    assert [member.name for member in members] == ["r=4,seed=1", "r=4,seed=2", "r=8,seed=1", "r=8,seed=2"]
    assert all(member.config.lora and member.config.lora.alpha == 3 for member in members)
    assert members[1].config.run_folder == tmp_path / "runs" / "r=4,seed=2"


def test_settings_of_the_same_name_are_told_apart(tiny_model: Path, tmp_path: Path) -> None:
    members = plan_sweep(make_file(tiny_model, tmp_path), ["data.seed=1,2", "train.seed=1,2"])
    assert members[0].name == "data.seed=1,train.seed=1"


def test_members_that_share_data_come_one_after_the_other(tiny_model: Path, tmp_path: Path) -> None:
    members = plan_sweep(make_file(tiny_model, tmp_path), ["lora.r=4,8", "data.sample=10,20"])
    assert [member.name for member in members] == ["r=4,sample=10", "r=8,sample=10", "r=4,sample=20", "r=8,sample=20"]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["lora.r=4"], "nothing to sweep"),
        (["lora.r=4,,8"], "value is missing"),
        (["lora.r=4,big"], "lora.r"),
        (["lora.rank=4,8"], "unknown key"),
        (["lora.r=4,8", "lora.r=2,3"], "given twice"),
        (["output=a,b"], "output cannot be swept"),
        (["lora.r"], "not key=value"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_trained(
    tiny_model: Path, tmp_path: Path, overrides: list[str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        quietly(make_file(tiny_model, tmp_path), *overrides)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_members_are_what_they_would_be_alone_with_the_base_loaded_once(tiny_model: Path, tmp_path: Path) -> None:
    file = make_file(tiny_model, tmp_path)
    bench = BaseModelCache()
    swept = quietly(file, "lora.r=2,4", "train.seed=1,2", bench=bench)
    assert (bench.loads, bench.preparations) == (1, 1)
    assert [run.name for run in swept.runs] == ["r=2,seed=1", "r=2,seed=2", "r=4,seed=1", "r=4,seed=2"]
    last = swept.runs[-1]
    alone = load_config(file, [f"output={tmp_path / 'alone'}", "lora.r=4", "train.seed=2", "ask.questions=[]"])
    train(alone, console=Console(file=io.StringIO()))
    ours, theirs = adapter_of(last), adapter_of(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(*(adapter_of(run)[next(iter(ours))] for run in swept.runs[2:]))


def test_each_member_is_scored_and_the_base_model_only_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_requests(monkeypatch)
    swept = quietly(make_file(tiny_model, tmp_path), "lora.r=2,4")
    for run in swept.runs:
        for name in ("base", "tuned"):
            assert json.loads((run / "eval" / name / "summary.json").read_text())["n"] == 3
    assert len(asked) == 3 * 3  # the base model and two tuned ones


def count_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from thinktune.inference.engines.hf.engine import TransformersEngine

    asked: list[str] = []
    original = TransformersEngine.generate

    def counting(self: Any, requests: Any) -> Any:
        requests = list(requests)
        asked.extend(request.id for request in requests)
        return original(self, requests)

    monkeypatch.setattr(TransformersEngine, "generate", counting)
    return asked


@pytest.mark.slow
def test_a_second_call_trains_and_loads_nothing(tiny_model: Path, tmp_path: Path) -> None:
    file = make_file(tiny_model, tmp_path)
    first = quietly(file, "lora.r=2,4")
    times = [(run / "run.json").stat().st_mtime_ns for run in first.runs]
    bench = BaseModelCache()
    again = quietly(file, "lora.r=2,4", bench=bench)
    assert again == first
    assert [(run / "run.json").stat().st_mtime_ns for run in again.runs] == times
    assert (bench.loads, bench.preparations) == (0, 0)


@pytest.mark.slow
def test_a_failed_member_is_reported_and_the_others_go_on(tiny_model: Path, tmp_path: Path) -> None:
    swept = quietly(make_file(tiny_model, tmp_path), "lora.targets=[q_proj],[qkv_proj],[v_proj]")
    assert [run.name for run in swept.runs] == ["targets=-q_proj-", "targets=-v_proj-"]
    assert "no qkv_proj" in swept.failures["targets=[qkv_proj]"]
    with pytest.raises(ThinktuneError, match="1 of 3 members failed") as raised:
        swept.require_whole()
    assert raised.value.exit_code == 1


@pytest.mark.slow
def test_a_member_trained_with_other_settings_is_not_taken_for_done(tiny_model: Path, tmp_path: Path) -> None:
    quietly(make_file(tiny_model, tmp_path), "lora.r=2,4")
    swept = quietly(make_file(tiny_model, tmp_path, lora={"alpha": 32}), "lora.r=2,4")
    assert swept.runs == []
    assert all("other settings of lora" in problem for problem in swept.failures.values())


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_where_it_was(tiny_model: Path, tmp_path: Path) -> None:
    file = make_file(tiny_model, tmp_path, train={"max_steps": 25, "save_every": 100})
    when(lambda: (tmp_path / "runs" / "r=4" / "metrics.jsonl").exists(), lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="r=4: stopped by SIGTERM") as raised:
        quietly(file, "lora.r=2,4")
    assert "same command" in raised.value.hint
    assert (tmp_path / "runs" / "r=2" / "run.json").exists()
    assert not (tmp_path / "runs" / "r=4" / "run.json").exists()
    swept = quietly(file, "lora.r=2,4")
    assert len(swept.runs) == 2
    steps = [json.loads(line)["step"] for line in (swept.runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 26))


def when(condition: Callable[[], bool], action: Callable[[], None]) -> None:
    def watch() -> None:
        for _ in range(6000):
            if condition():
                action()
                return
            threading.Event().wait(0.01)

    threading.Thread(target=watch, daemon=True).start()


def make_config(model: Path, **settings: Any) -> Config:
    return parse_config({"model": str(model), "load": {"dtype": "float32", "device": "cpu"}, **settings})


def test_adapters_leave_no_trace_in_the_base_model(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model, load=make_config(tiny_model).load)
    ids = torch.arange(3, 40)[None]
    before, logits = checksum(loaded.model), loaded.model(ids).logits
    modules = [type(module) for module in loaded.model.modules()]
    with adapter_to_train(loaded, make_config(tiny_model)) as model:
        assert len(list(model.modules())) > len(modules)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / "adapter")
    assert [type(module) for module in loaded.model.modules()] == modules
    with adapter_to_ask(loaded, tmp_path / "adapter") as merged:
        assert not torch.allclose(merged(ids).logits, logits)
        assert checksum(loaded.model) != before
    assert [type(module) for module in loaded.model.modules()] == modules
    assert checksum(loaded.model) == before
    assert torch.equal(loaded.model(ids).logits, logits)


def test_a_base_model_that_was_changed_is_loaded_anew(tiny_model: Path) -> None:
    bench, config = BaseModelCache(), make_config(tiny_model)
    loaded = bench.take_model(config)
    assert bench.take_model(config) is loaded
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[5, 5] += 1e-3
    assert bench.take_model(config) is not loaded
    assert bench.loads == 2


def test_another_base_model_takes_the_place_of_the_first(tiny_model: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    bench = BaseModelCache()
    first = bench.take_model(make_config(tiny_model))
    second = bench.take_model(make_config(other))
    assert checksum(first.model) != checksum(second.model)
    assert bench.loads == 2
