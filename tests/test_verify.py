"""Adapter, merged model and engine are held against each other, and what differs is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from test_models_loading import FLOAT32, make_run
from thinktune.cli import app
from thinktune.engines import Completion
from thinktune.errors import ModelError
from thinktune.merge import merge
from thinktune.verify import Verified, _real_ends, alike, verify


@pytest.fixture(scope="module")
def merged_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tiny_model, tmp_path_factory.mktemp("runs") / "run")
    merge(run, load=FLOAT32, max_tokens=4)
    return run


@pytest.fixture
def run(merged_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged_run, tmp_path / "run"))


def verified(run: Path) -> Verified:
    return verify(run, load=FLOAT32, prompts=2, max_tokens=6)


def test_three_ways_of_running_a_run_agree(run: Path) -> None:
    result = verified(run)
    assert result.agrees
    assert {check.name.partition(":")[0] for check in result.checks[:-2]} == {"merged model", "engine"}
    assert [check.found for check in result.checks if "greedy" in check.name] == ["100.0% the same"] * 2


def test_an_untrained_model_has_not_learnt_to_end_its_turn(run: Path) -> None:
    result = verified(run)
    assert not result.stops
    assert not result.passed
    assert "0% of replies" in result.checks[-2].found


def test_stopping_is_judged_by_what_the_model_writes_by_itself() -> None:
    ended = Completion("a", 0, "<think>a</think> <answer>1</answer>", (1,), "stop")
    ran_on = Completion("b", 0, "<think>a</think> <answer>1</answer> and <think>", (1,), "length")
    thinking = Completion("c", 0, "<think>a", (1,), "length")
    assert _real_ends([ended] * 9 + [ran_on]).passed
    assert not _real_ends([ended] * 8 + [ran_on]).passed
    assert _real_ends([ended, thinking]).passed
    assert _real_ends([ended, ran_on, thinking]).found == "1 end, 1 run on after it, 1 come to none"


def test_the_command_says_no_by_its_exit_status(run: Path) -> None:
    done = CliRunner().invoke(app, ["verify", str(run), "--prompts", "1", "--max-tokens", "2", "--json"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["passed"], report["stops"]) == (False, False)


def test_other_weights_than_the_adapters_are_found(run: Path) -> None:
    file = run / "merged" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = weights[name] + 0.5 * torch.randn_like(weights[name])
    save_file(weights, file, metadata={"format": "pt"})
    result = verified(run)
    assert not result.agrees
    assert [check.passed for check in result.checks if "log-prob" in check.name] == [False, False]


def test_another_prompt_template_is_found(run: Path) -> None:
    template = run / "merged" / "chat_template.jinja"
    template.write_text(
        template.read_text(encoding="utf-8").replace("['content'] +", "['content'] + ' ' +"), encoding="utf-8"
    )
    result = verified(run)
    assert [check.passed for check in result.checks if "rendered" in check.name] == [False, False]


def test_what_is_verified_is_not_verified_again_until_it_changes(run: Path) -> None:
    lines: list[str] = []
    first = verified(run)
    assert verify(run, load=FLOAT32, prompts=2, max_tokens=6, notify=lines.append) == first
    assert lines == [f"{run} is verified"]
    (run / "verify.json").write_text("{}")
    assert verified(run) == first  # anew


def test_a_run_without_merged_model_is_told_to_merge(tiny_model: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model, tmp_path / "run")
    for reference in (run, run / "adapter", tiny_model):
        with pytest.raises(ModelError, match="no merged model to verify"):
            verified(reference)


def test_tokens_count_up_to_where_two_texts_part() -> None:
    assert alike([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert alike([1, 2, 3, 4], [1, 9, 3, 4]) == (1, 2)
    assert alike([1, 2], [1, 2, 3]) == (2, 3)
