"""The main job on the real built-in model, small enough for CI: `make quickstart` does the same with more rows."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from thinktune import cli
from training import assert_same_outcome, make_config, quietly, start_in_background, wait_for_lines

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_builtin_model")]


def test_quickstart_teaches_the_format_and_writes_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["data.sample=200", "infer.file=null", "eval.sample=8", 'ask.questions=["What is 12 + 30 - 5?"]']
    monkeypatch.setattr("sys.argv", ["thinktune", "quickstart", *few])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    summary = json.loads((tmp_path / "runs" / "quickstart" / "eval" / "summary.json").read_text())
    assert summary["base"]["format_rate"] == 0.0
    assert summary["tuned"]["format_rate"] >= 0.75
    assert summary["tuned"]["n"] == summary["base"]["n"] == 8
    shown = capsys.readouterr()
    assert "well-formed" in shown.out
    assert "thinktune ask" in shown.err


def test_a_real_training_killed_at_a_random_step_resumes_exactly_in_float32(tmp_path: Path) -> None:
    train = {"max_steps": 8, "save_every": 2, "pack_length": 256, "learning_rate": 1e-3}
    data = {"sample": 20, "max_length": 256, "eval_fraction": 0.1}
    quietly(make_config(Path("builtin:smollm2"), tmp_path / "whole", train=train, data=data))
    config = make_config(Path("builtin:smollm2"), tmp_path / "killed", train=train, data=data)
    process = start_in_background(config, tmp_path)
    wait_for_lines(tmp_path / "killed" / "metrics.jsonl", random.randint(1, 5), process)
    time.sleep(random.random())
    process.kill()
    process.wait()
    quietly(config, resume=True)
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")
