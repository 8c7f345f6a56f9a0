"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

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


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy("rows.jsonl", tmp_path)
    monkeypatch.setenv("MODEL", str(tiny_model))
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read("first_steps.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = ["".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells]
    assert "40 rows read, 40 kept" in printed[1]
    assert (tmp_path / "runs/rows/report.html").exists()
    assert printed[-1].startswith("base: ")
    assert "tuned: " in printed[-1]
