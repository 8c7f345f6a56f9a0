"""`thinktune run` from end to end on a tiny model."""

from __future__ import annotations

import gc
import io
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.workflows.run import run
from training import make_config


@pytest.mark.slow
def test_a_run_loads_its_tuned_model_once_for_every_engine_step_and_again_for_none(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    questions = tmp_path / "questions.jsonl"
    lines = [{"id": str(at), "type": "math", "prompt": f"What is {at} + 1?"} for at in range(3)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    short = {"max_tokens": 8}
    config = make_config(
        tiny_model,
        tmp_path / "run",
        train={"max_steps": 2},
        infer={"file": str(questions), "profiles": {"math": short}},
        eval={"data": "builtin:arithmetic", "sample": 2, "sampling": short, "every": None},
    )

    def loaded() -> list[str]:
        caplog.clear()
        run(config, console=Console(quiet=True))
        words = [line.split() for line in caplog.messages]
        return [line[1].removeprefix(str(tmp_path)) for line in words if line[:1] == ["loading"]]

    base = str(tiny_model)
    assert loaded() == [base, "/run", base]  # what verify compares beside it is announced as a comparison
    assert (tmp_path / "run" / "infer" / "results.json").exists()
    assert json.loads((tmp_path / "run" / "eval" / "summary.json").read_text())["tuned"]["n"] == 2
    assert loaded() == []


@pytest.mark.slow
def test_a_batch_file_for_the_unmerged_adapter_is_answered_when_the_merged_models_engine_has_gone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM takes nearly all memory of a GPU: two of them do not start."""
    short = {"max_tokens": 8}
    config = make_config(
        tiny_model,
        tmp_path / "run",
        train={"max_steps": 2},
        infer={"file": "builtin:questions", "merge": False, "profiles": {"code-generate": {**short, "n": 1}}},
        eval={"data": "builtin:arithmetic", "sample": 2, "sampling": short, "every": None},
    )
    beside: list[int] = []
    opened: weakref.WeakSet[TransformersEngine] = weakref.WeakSet()  # this run's: other tests' may still be alive
    real = TransformersEngine.__init__

    def count(engine: TransformersEngine, *args: Any, **settings: Any) -> None:
        gc.collect()
        beside.append(len(opened))
        opened.add(engine)
        real(engine, *args, **settings)

    monkeypatch.setattr(TransformersEngine, "__init__", count)
    run(config, console=Console(file=io.StringIO(), width=1000))
    assert len(beside) > 3
    assert not any(beside)
    assert (tmp_path / "run" / "infer" / "results.json").exists()
