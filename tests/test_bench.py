"""The benchmarks run, and compare like with like, on a tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "bench" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_equal_data_gives_equal_losses_and_what_is_missing_says_so(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    size = ("--shape", "tiny", "--rows", "2", "--length", "64", "--steps", "3", "--folder", str(tmp_path))
    said = run("train.py", *size, "--only", "ours,trl-ckpt,unsloth", "--json", str(file))
    measured: dict[str, Any] = json.loads(file.read_text())["bf16"]
    assert measured["ours"]["losses"] == pytest.approx(measured["trl-ckpt"]["losses"], rel=1e-3)
    assert measured["ours"]["norms"] == pytest.approx(measured["trl-ckpt"]["norms"], rel=0.02)
    assert measured["ours"]["rate"] > 0
    assert "unsloth is not installed" in said


@pytest.mark.slow
def test_the_verb_is_measured_on_rows_of_the_same_length(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    size = ("--shape", "tiny", "--rows", "1", "--accumulation", "2", "--length", "200", "--steps", "3")
    run("train.py", *size, "--only", "verb", "--json", str(file), "--folder", str(tmp_path))
    measured = json.loads(file.read_text())["bf16"]["verb"]
    assert len(measured["losses"]) == 3
    assert "2 packs at once x 1" in measured["label"]
    assert measured["first_step"] > 0


@pytest.mark.slow
def test_adapters_of_one_base_are_trained_one_after_the_other(tmp_path: Path) -> None:
    size = ("--shape", "tiny", "--rows", "2", "--length", "64", "--steps", "4", "--folder", str(tmp_path))
    said = run("adapters.py", *size, "4", "4", "16:0.1")
    *_, first, again, other = (line.split() for line in said.splitlines())
    assert first[:2] == again[:2] == ["4", "0"]
    assert first[-1] == again[-1]  # the base is as it was
    assert other[:2] == ["16", "0.1"]


@pytest.mark.slow
def test_a_model_without_weights_on_the_disk_is_trained_by_the_command(tmp_path: Path) -> None:
    said = run("large.py", "--only", "tiny-drawn:fp8", "--length", "200", "--steps", "4", "--folder", str(tmp_path))
    rate, predicted = said[said.index("tiny-drawn:fp8") :].split()[1:3]
    assert float(rate.replace(",", "")) > 0
    assert float(predicted.replace(",", "")) > 0
    weights = tmp_path / "tiny-drawn" / "model.safetensors"
    assert weights.stat().st_size > 8 * 512 * weights.stat().st_blocks


@pytest.mark.slow
def test_the_plan_is_measured_in_slices(tmp_path: Path) -> None:
    common = ("--only", "^tiny none 8x256", "--record", str(tmp_path / "record.json"), "--folder", str(tmp_path))
    assert "0 of 1 configs are measured" in run("plan.py", *common, "--seconds", "0")
    measured = run("plan.py", *common, "--steps", "4", "--timeout", "250")
    assert "1 of 1 configs are measured" in measured
    assert "recomputing nothing" in measured
    again = run("plan.py", *common)
    assert "1 of 1 configs are measured" in again
    assert "recomputing nothing" not in again  # it was not run


@pytest.mark.slow
def test_gradients_of_ours_are_as_near_to_float32_as_those_of_plain_peft() -> None:
    small = ("--width", "64", "--layers", "2", "--length", "48", "--batches", "2")
    said = run("gradients.py", *small, "--models", "qwen2", "--variants", "plain,ours")
    _, _, plain, ours = said.splitlines()
    assert plain.split()[:2] == ["qwen2", "plain"]
    ratio_of_all, median_ratio = map(float, ours.split()[3:5])
    assert ratio_of_all < 1.2
    assert median_ratio < 1.2


def test_long_reasoning_fills_its_steps_and_rows_of_text_have_their_length(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from workload import Workload, byte_tokenizer, write_rows  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    steps = Workload(6, 1, 0, 4).documents(100)
    assert [len(step) for step in steps] == [6] * 4
    assert all(0.97 * 32768 <= sum(map(len, step)) <= 32768 for step in steps)
    assert steps == Workload(6, 1, 0, 4).documents(100)
    write_rows(tmp_path / "rows.jsonl", [150, 300])
    texts = [json.loads(line)["messages"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rendered = [byte_tokenizer().apply_chat_template(text, tokenize=False).rstrip("\n") for text in texts]
    assert [len(byte_tokenizer()(text)["input_ids"]) for text in rendered] == [150, 300]


@pytest.mark.slow
def test_no_item_is_lost_or_twice_where_a_server_has_faults_and_its_client_is_killed(tiny_model: Path) -> None:
    said = run("endpoint.py", "--model", str(tiny_model), "--items", "40", "--kills", "2", "--dtype", "float32")
    figures = dict(line.strip().rsplit(maxsplit=1) for line in said.splitlines() if line.startswith("  "))
    assert "2 kills" in said
    wrong = ("lost", "twice in result", "twice in journal", "errors", "other text")
    assert [figures[name] for name in wrong] == ["0"] * len(wrong)


@pytest.mark.slow
def test_planted_duplicates_and_problems_are_found_and_nothing_else_is_dropped() -> None:
    said = run("data.py", "--count", "400", "--planted", "20")
    found = [line.split()[-4:-1] for line in said.splitlines() if line.endswith(" found")]
    assert found == [["20", "of", "20"]] * 7
    assert re.search(r"dropped, and not planted +0\n", said)
