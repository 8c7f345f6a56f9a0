"""The examples run as they stand."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
from typer.testing import CliRunner

from thinktune.cli import app
from thinktune.config import Load, load_config
from thinktune.data import load_examples
from thinktune.scoring.own_reward import OwnReward
from thinktune.scoring.own_scorer import load_scorer

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _in_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    monkeypatch.syspath_prepend(str(FOLDER))


def test_every_example_is_in_their_list() -> None:
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    names = [file.name for file in FOLDER.iterdir() if file.is_file() and file.name != "README.md"]
    assert [name for name in names if name not in listed] == []


def test_all_rows_of_ones_own_are_usable_and_their_times_right() -> None:
    rows = [json.loads(line) for line in (FOLDER / "rows.jsonl").read_text().splitlines()]
    right = load_scorer("scorer:within_a_minute")
    for row in rows:
        think, _, answer = row["answer"].partition("</think> ")
        completion = f"{think}</think> <answer>{answer}</answer>"
        assert think.removesuffix(".").endswith(answer)
        assert right(completion, {"reference": answer}, "stop").correct
    assert not right("<think>so</think> <answer>11:03</answer>", {"reference": "11:05"}, "stop").correct


def test_the_own_row_format_reads_its_rows_and_drops_what_is_not_checked() -> None:
    config = load_config("exam.yaml")
    examples, report = load_examples(config.data, config.format, 1, load=Load())
    assert (len(examples), report.dropped) == (4, {"not checked": 1})
    assert {example.answer for example in examples} == {"3", "7.5", "75", "400"}


def test_the_own_reward_counts() -> None:
    reward = OwnReward("reward:says_the_unit")
    try:
        assert reward("q", "<think>5 minutes</think> <answer>1</answer>", {}) == 1.0
    finally:
        reward.close()


def _arguments(script: str) -> list[str]:
    """Return what bash makes of a call of thinktune."""
    shell = ["bash", "-ec", f"thinktune() {{ printf '%s\\n' \"$@\"; }}\n{script}"]
    return subprocess.run(shell, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: with a kernel, and a process for each command, most of the time went into imports."""
    shutil.copy("rows.jsonl", tmp_path)
    notebook = nbformat.read("first_steps.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL", str(tiny_model))
    monkeypatch.setenv("STEPS", "2")
    names: dict[str, Any] = {}
    printed = []
    for source in (cell.source for cell in notebook.cells if cell.cell_type == "code"):
        magic, _, script = source.partition("\n")
        if magic == "%%bash":
            done = CliRunner().invoke(app, _arguments(script), catch_exceptions=False)
            assert done.exit_code == 0, done.output
            printed.append(done.output)
        else:
            exec(compile(source, "cell", "exec"), names)
            printed.append(capsys.readouterr().out)
    assert "40 rows read, 40 kept" in printed[0]
    assert (tmp_path / "runs/rows/report.html").exists()
    assert printed[-1].startswith("base: ")
    assert "tuned: " in printed[-1]
