"""A user's own function scores what the built-in comparisons cannot."""

from __future__ import annotations

import json
import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from thinktune.cli import app
from thinktune.config import ItemType
from thinktune.errors import ConfigError
from thinktune.scoring import TASKS, tasks_scored_by

FUNCTIONS = """
def within_a_percent(answer, gold):
    return abs(float(answer) - float(gold["reference"])) <= 0.01 * float(gold["reference"])

def echoes_the_prompt(answer, gold):
    return gold["prompt"] != "" and gold["reference"] != ""

def by_degrees(answer, gold):
    return 0.7

def nothing(answer, gold):
    pass

def element_by_element(answer, gold):
    import numpy
    return numpy.array([True, False])

def numpys_own_truth(answer, gold):
    import numpy
    return numpy.float64(100) == float(gold["reference"])
"""
GOLD = [{"id": name, "type": "math", "reference": "100"} for name in "abcde"]
CONTENTS = {
    "a": "<think>so</think> <answer>100.9</answer>",
    "b": "<think>so</think> <answer>102</answer>",
    "c": "<think>so</think> <answer>a hundred</answer>",
    "d": "<think>so</think> 99.5",
    "e": "",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_scorers.py").write_text(FUNCTIONS)
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(record) + "\n" for record in GOLD))
    (tmp_path / "res.json").write_text(json.dumps([{"id": name, "content": text} for name, text in CONTENTS.items()]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_result_file_is_scored_by_ones_own_function(folder: Path) -> None:
    call = ["score", "res.json", "gold.jsonl", "-o", "out", "--json", "--scorer", "own_scorers:within_a_percent"]
    result = CliRunner().invoke(app, call, catch_exceptions=False)
    scores = json.loads(result.stdout)["types"]["math"]
    assert scores["strict"]["value"] == 0.2
    assert scores["lenient"]["value"] == 0.4
    lines = [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["right", "wrong", "error", "no answer", "no answer"]
    assert lines[2]["note"] == "ValueError: could not convert string to float: 'a hundred'"
    assert {line["scorer"] for line in lines} == {"own_scorers:within_a_percent"}


def test_rows_are_scored_by_ones_own_function(folder: Path, tiny_model: Path) -> None:
    call = ["eval", str(tiny_model), "builtin:arithmetic", "--sample", "2", "--max-tokens", "3", "-o", "out", "--json"]
    result = CliRunner().invoke(app, [*call, "--scorer", "own_scorers:echoes_the_prompt"], catch_exceptions=False)
    summary = json.loads(result.stdout)
    assert (summary["accuracy"], summary["accuracy_lenient"]) == (0, 1)
    assert summary["scorer"] == "own_scorers:echoes_the_prompt"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("by_degrees", "returned 0.7"),
        ("nothing", "returned None"),
        ("element_by_element", r"returned array\(\[ True, False\]\)"),
        ("missing", "cannot import 'own_scorers:missing'"),
    ],
)
def test_a_function_that_is_no_scorer_is_refused(folder: Path, function: str, said: str) -> None:
    call = ["score", "res.json", "gold.jsonl", "--scorer", f"own_scorers:{function}"]
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(app, call, catch_exceptions=False)


def test_a_truth_of_numpys_is_one(folder: Path) -> None:
    call = ["score", "res.json", "gold.jsonl", "-o", "out", "--json", "--scorer", "own_scorers:numpys_own_truth"]
    result = CliRunner().invoke(app, call, catch_exceptions=False)
    assert json.loads(result.stdout)["types"]["math"]["strict"]["value"] == 0.6


def test_the_first_failure_of_ones_own_function_is_said_and_the_others_are_not(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "own_scorers.py").write_text("def misspelt(answer, gold):\n    return gold['refrence'] == answer\n")
    sys.modules.pop("own_scorers", None)
    call = ["score", "res.json", "gold.jsonl", "-o", "out", "--scorer", "own_scorers:misspelt"]
    CliRunner().invoke(app, call, catch_exceptions=False)
    assert caplog.text.count("own_scorers:misspelt failed on an answer") == 1
    assert "KeyError: 'refrence'" in caplog.text


def test_of_failures_in_several_threads_at_once_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "together.py").write_text(
        "import threading\nboth = threading.Barrier(2)\n"
        "def fails(answer, gold):\n    both.wait(10)\n    return gold['no']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    score = tasks_scored_by("together:fails")["math"].score

    def wait(_: logging.LogRecord) -> bool:
        time.sleep(0.1)
        return True

    monkeypatch.setattr(logging.getLogger("thinktune.scoring.own_scorer"), "filters", [wait])
    with ThreadPoolExecutor(2) as pool:
        scores = list(pool.map(lambda text: score(text, {}, "stop"), ["1", "2"]))
    assert [each.note for each in scores] == ["KeyError: 'no'"] * 2
    assert caplog.text.count("failed on an answer") == 1


def test_without_a_scorer_of_ones_own_each_task_has_its_own() -> None:
    assert tasks_scored_by(None) is TASKS


def test_a_config_may_set_the_sampling_of_every_task_and_of_nothing_else() -> None:
    assert get_args(ItemType) == tuple(TASKS)
