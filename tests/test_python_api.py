"""A model that stays loaded, for notebooks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from thinktune import Infer, config
from thinktune.cli import app, common
from thinktune.config import Load
from thinktune.errors import ConfigError, GenerationError, UsageError

LOAD = Load(dtype="float32", device="cpu")


def test_questions_are_answered_in_order_and_repeat_themselves(tiny_model: Path) -> None:
    with Infer(tiny_model, load=LOAD, think_budget=4) as model:
        first, second = model.batch(["a", [{"role": "user", "content": "b"}]], max_tokens=8, n=2, temperature=1.0)
        assert len(first) == len(second) == 2
        assert all(parsed.well_formed for parsed in (*first, *second))
        assert model("a", max_tokens=8, temperature=1.0) == first[0]


def test_a_file_is_answered_as_by_the_command(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "A1.jsonl").write_text('{"id": 1, "type": "math", "prompt": "q", "sampling": {"max_tokens": 6}}\n')
    with Infer(tiny_model, load=LOAD) as model:
        assert model.file(tmp_path / "A1.jsonl", tmp_path / "res.json").completions == 1
    (result,) = json.loads((tmp_path / "res.json").read_text(encoding="utf-8"))["result"]["results"]
    assert result["id"] == 1


def test_a_file_that_the_command_answered_is_not_answered_again(tiny_model: Path, tmp_path: Path) -> None:
    sampling = {"max_tokens": 6, "temperature": 1.0}
    line = {"id": 1, "type": "math", "prompt": "q", "sampling": sampling}
    (tmp_path / "A1.jsonl").write_text(json.dumps(line) + "\n")
    assert common.SEED == config.SEED
    call = ["infer", str(tiny_model), str(tmp_path / "A1.jsonl"), "-o", str(tmp_path / "res.json")]
    assert CliRunner().invoke(app, call).exit_code == 0
    with Infer(tiny_model) as model:
        assert model.file(tmp_path / "A1.jsonl", tmp_path / "res.json").tokens_per_second is None  # none was written


def test_wrong_settings_are_told_at_once(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean think_budget"):
        Infer(tiny_model, think_bugdet=4)
    with Infer(tiny_model, load=LOAD) as model:
        with pytest.raises(ConfigError, match="did you mean max_tokens"):
            model("q", max_token=4)
        with pytest.raises(GenerationError, match="question 1: the prompt has"):
            model("x" * 9000)
        with pytest.raises(UsageError, match="a list of questions"):
            model.batch("What is 2 + 2?")
        with pytest.raises(UsageError, match="unknown type 'maths'"):
            model("q", type="maths")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="prompt is blank"):
            model(" ")
        with pytest.raises(UsageError, match="content of message 1"):
            model([{"role": "user"}])
        with pytest.raises(UsageError, match="one question has one answer"):
            model("q", n=5)
    with pytest.raises(UsageError, match="Infer has no file"):
        Infer(tiny_model, file="A1.jsonl")
