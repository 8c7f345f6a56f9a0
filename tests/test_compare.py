"""Runs side by side: what is read from their folders, and which differences are called real."""

from __future__ import annotations

import json
import math
import shutil
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from thinktune.cli import app
from thinktune.compare import compare, sentences
from thinktune.errors import RunFolderError
from thinktune.evaluate import wilson
from thinktune.paired import compare_paired, holm, mcnemar

GOOD = "<think>so</think> <answer>{}</answer>"


def write_run(folder: Path, *, tuned: str, base: str | None = None, completion: str = GOOD, **settings: Any) -> Path:
    """A run folder as training and evaluation leave it; a letter of `tuned` is r for right, w for wrong."""
    folder.mkdir(parents=True)
    lora = {"r": 4, "alpha": 8, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": "m", "lora": lora, "output": str(folder)}))
    record = {
        "model": "m",
        "system": None,
        "seed": 1,
        "versions": {"torch": "2"},
        "hardware": {"cpu": "a CPU", "device": "cpu"},
        "dtype": "float32",
        "steps": 2,
        "epochs": 1.0,
        "trainable_parameters": 1234,
        "parameters": 5000,
        "tokens": 200,
        "trained_tokens": 100,
        "train_seconds": 90.0,
        "tokens_per_second": 2.2,
        "peak_memory_gib": 0.5,
        "final_loss": 1.25,
    }
    (folder / "run.json").write_text(json.dumps(record))
    steps = [{"step": step, "loss": 3.0 / step, "grad_norm": 1.0, "learning_rate": 1e-3} for step in (1, 2)]
    scored = {"step": 2, "eval_format_rate": 0.5, "eval_accuracy": 0.25, "eval_samples": 4}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*steps, scored]))
    for name, outcomes in (("tuned", tuned), ("base", base)):
        if outcomes is not None:
            write_scores(folder / "eval" / name, outcomes, completion)
    return folder


def write_scores(folder: Path, outcomes: str, completion: str = GOOD) -> None:
    folder.mkdir(parents=True)
    lines = [
        {
            "source": "s",
            "row": row,
            "sample": 0,
            "prompt": f"What is {row}?",
            "completion": completion.format(row if letter == "r" else "no"),
            "reference": str(row),
            "outcome": "right" if letter == "r" else "wrong",
            "correct": letter == "r",
            "lenient": letter == "r",
            "format_problem": None,
            "error": None,
            "note": None,
            "tokens": 5,
        }
        for row, letter in enumerate(outcomes, start=1)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rate = wilson(outcomes.count("r"), len(outcomes))
    summary: dict[str, Any] = {"n": len(lines), "told_format": folder.name == "base"}
    for name in ("format_rate", "accuracy", "accuracy_lenient"):
        summary |= {name: rate.value, f"{name}_interval": [rate.low, rate.high]}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_the_exact_test_is_the_two_sided_binomial_one() -> None:
    # The probability of every split of n fair coins at least as far from the middle, added up one sequence at a time.
    for n, first in [(1, 0), (5, 1), (8, 2), (9, 9), (10, 5)]:
        far = abs(first - n / 2)
        sequences = list(product((0, 1), repeat=n))
        expected = sum(abs(sum(each) - n / 2) >= far for each in sequences) / len(sequences)
        assert mcnemar(first, n - first) == pytest.approx(min(1.0, expected))
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 3000) == 0.0 or mcnemar(0, 3000) < 1e-300


def test_holm_gives_the_values_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_of_a_difference_holds_the_truth_about_19_times_in_20() -> None:
    random, held, rounds = Random(1), 0, 600
    for _ in range(rounds):
        first = [random.random() < 0.5 for _ in range(80)]
        second = [right or random.random() < 0.4 for right in first]  # right with 0.5 + 0.5 * 0.4
        paired = compare_paired(first, second)
        held += paired.low <= 0.2 <= paired.high
    assert 0.92 < held / rounds < 0.99


def test_equal_models_differ_by_nothing_and_opposite_ones_by_everything() -> None:
    same = compare_paired([True, False] * 10, [True, False] * 10)
    assert (same.difference, same.p) == (0.0, 1.0)
    assert same.low < 0 < same.high
    opposite = compare_paired([False] * 20, [True] * 20)
    assert opposite.difference == 1.0
    assert opposite.high <= 1.0 + 1e-12
    assert opposite.p == pytest.approx(2 / 2**20)
    assert not math.isnan(opposite.low)


def test_a_comparison_reads_cost_scores_settings_and_the_base_model(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "r=4", tuned="r" * 20 + "w" * 10, base="w" * 30),
        write_run(tmp_path / "r=8", tuned="r" * 21 + "w" * 9, base="w" * 30, r=8),
    ]
    comparison = compare(runs)
    assert [each.name for each in comparison.candidates] == ["base", "r=4", "r=8"]
    assert comparison.differing == {"lora.r": [4, 8]}
    real = {(each.first, each.second): each.real for each in comparison.differences}
    assert real == {("base", "r=4"): True, ("base", "r=8"): True, ("r=4", "r=8"): False}
    said = list(sentences(comparison))
    assert said[0].startswith("r=8 is better than base by 70.0 points (95% interval ")
    assert "r=8 and r=4 cannot be told apart: 3.3 points" in said[2]
    assert "p adjusted for 3 comparisons" in said[3]


def test_a_worse_model_is_called_worse_with_the_interval_turned_round(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", tuned="r" * 30), write_run(tmp_path / "b", tuned="w" * 29 + "r")]
    (said,) = sentences(compare(runs))
    assert said.startswith("a is better than b by 96.7 points (95% interval 79.2 to 99.4; p = ")


def test_runs_scored_on_other_problems_are_compared_on_those_they_share(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", tuned="r" * 30), write_run(tmp_path / "b", tuned="r" * 20)]
    comparison = compare(runs)
    assert comparison.differences[0].paired.n == 20
    assert comparison.notes == ["a and b are compared on the 20 problems that both were given"]


def test_a_run_that_was_not_scored_is_shown_and_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tuned="r")
    shutil.rmtree(run / "eval")
    comparison = compare([run, write_run(tmp_path / "b", tuned="rw")])
    assert comparison.notes == ["a was not scored"]
    assert comparison.differences == []


def test_a_folder_that_is_no_whole_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        compare([tmp_path])
    run = write_run(tmp_path / "a", tuned="r")
    (run / "run.json").unlink()
    with pytest.raises(RunFolderError, match="not trained to its end"):
        compare([run])


def test_runs_of_the_same_name_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "r=4", tuned="r") for parent in ("one", "two")]
    assert [each.name for each in compare(runs).candidates] == ["one/r=4", "two/r=4"]


def test_the_verb_prints_a_table_or_json_and_writes_a_page_and_a_plot(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name, tuned="r" * 9 + "w", base="w" * 10)) for name in ("a", "b")]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["compare", *runs, "--out", str(out)])
    assert result.exit_code == 0
    assert "1,234" in result.stdout
    assert "90.0% (60–98)" in result.stdout
    assert (out / "report.html").exists()
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    printed = json.loads(CliRunner().invoke(app, ["compare", *runs, "--out", str(out), "--json"]).stdout)
    assert printed == json.loads((out / "comparison.json").read_text())
    assert [each["real"] for each in printed["differences"]] == [True, True, False]
