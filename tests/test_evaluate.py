"""Scores with intervals, and a line a sample that says why."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import make_tiny_tokenizer
from scripted import ScriptedModel
from thinktune import tags
from thinktune.config import Data, Sampling
from thinktune.data import Example
from thinktune.evaluation.evaluate import Summary, comparison_table, evaluate, evaluate_data
from thinktune.evaluation.significance import wilson
from thinktune.inference.engines import Opened, open_engine
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Chat


def make_examples(count: int) -> list[Example]:
    return [
        Example(({"role": "user", "content": f"What is {n}?"},), "so", str(n), n, "here") for n in range(1, count + 1)
    ]


def run(
    folder: Path, reply: Callable[[str], str], count: int = 10, **settings: Any
) -> tuple[Summary, list[dict[str, Any]]]:
    tokenizer = make_tiny_tokenizer()
    engine = TransformersEngine(ScriptedModel(tokenizer, reply), tokenizer, [2])
    settings = {"tell_format": False, "console": Console(file=io.StringIO()), **settings}
    sampling = settings.pop("sampling", Sampling(max_tokens=60))
    summary = evaluate(Opened(engine, Chat(tokenizer), "m"), make_examples(10), sampling, folder, **settings)
    return summary, [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def number_in(prompt: str) -> int:
    return int(prompt.partition("What is ")[2].partition("?")[0])


def mixed(prompt: str) -> str:
    """Right for 1 to 5, wrong for 6, cut off for 7, without tags but right for 8 and 9, silent for 10."""
    number = number_in(prompt)
    if number <= 6:
        return f"<think>so</think> <answer>{min(number, 5)}</answer>"
    return {7: "<think>" + "so " * 100, 10: "Who knows."}.get(number, f"It is {number}.")


def test_rates_count_every_problem_and_say_why_it_failed(tmp_path: Path) -> None:
    summary, lines = run(tmp_path, mixed)
    assert (summary.n, summary.completions) == (10, 10)
    assert (summary.format.value, summary.strict.value, summary.lenient.value) == (0.6, 0.5, 0.7)
    assert summary.completed is not None
    assert summary.completed.value == pytest.approx(5 / 9)
    assert summary.outcomes == {"right": 5, "no answer": 3, "wrong": 1, "cut off": 1}
    assert [line["row"] for line in lines] == list(range(1, 11))
    assert lines[5] | {"scorer": "", "tokens": 0} == {
        "source": "here", "row": 6, "sample": 0, "prompt": "What is 6?", "reference": "6", "extracted": "5",
        "completion": "<think>so</think> <answer>5</answer>", "outcome": "wrong", "correct": False, "lenient": False,
        "format_problem": None, "finish_reason": "stop", "error": None, "tokens": 0, "scorer": "", "note": None,
    }  # fmt: skip
    assert (lines[6]["finish_reason"], lines[6]["format_problem"]) == ("length", "no </think>")


def test_the_summary_file_holds_the_rates_and_their_intervals(tmp_path: Path) -> None:
    summary, _ = run(tmp_path, mixed)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["format_rate"], written["accuracy"], written["accuracy_lenient"]) == (0.6, 0.5, 0.7)
    assert written["accuracy_interval"] == [summary.strict.low, summary.strict.high]
    assert (written["n"], written["told_format"]) == (10, False)
    assert (written["sampling"]["temperature"], "seed" in written["sampling"]) == (0.0, False)


def test_only_a_model_that_was_not_trained_for_the_format_is_told_it(tmp_path: Path) -> None:
    asked: list[str] = []

    def reply(prompt: str) -> str:
        asked.append(prompt)
        return mixed(prompt)

    run(tmp_path / "tuned", reply)
    assert not any(tags.INSTRUCTION in prompt for prompt in asked)
    asked.clear()
    _, lines = run(tmp_path / "base", reply, tell_format=True)
    assert all(f"?\n\n{tags.INSTRUCTION}<|im_end|>" in prompt for prompt in asked)
    assert tags.INSTRUCTION in lines[0]["prompt"]


def test_a_second_evaluation_asks_nothing_and_gives_the_same(tmp_path: Path) -> None:
    first, lines = run(tmp_path, mixed)

    def fail(prompt: str) -> str:
        raise AssertionError("asked again")

    second, again = run(tmp_path, fail)
    assert again == lines
    assert (second.strict, second.mean_tokens) == (first.strict, first.mean_tokens)
    assert second.tokens_per_second is None


def test_several_samples_count_as_the_mean_of_their_problem(tmp_path: Path) -> None:
    summary, lines = run(tmp_path, mixed, sampling=Sampling(max_tokens=60, n=3, temperature=1.0))
    assert (summary.n, summary.completions, len(lines)) == (10, 30, 30)
    assert summary.strict == wilson(5, 10)


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81/263, 15/148, 0/20, 1/29.
    for successes, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        rate = wilson(successes, n)
        assert (rate.low, rate.high) == pytest.approx((low, high), abs=5e-5)
    assert (wilson(0, 20).low, wilson(20, 20).high) == (0, 1)


def test_the_table_sets_base_against_tuned(tmp_path: Path) -> None:
    tuned, _ = run(tmp_path / "tuned", mixed)
    base, _ = run(tmp_path / "base", lambda prompt: "It is 1.", tell_format=True)
    said = io.StringIO()
    Console(file=said, width=120).print(comparison_table({"base": base, "tuned": tuned}))
    text = said.getvalue()
    assert "60.0% (31.3% to 83.2%)" in text
    assert text.index("base") < text.index("tuned")
    assert "told the format" in text


def test_a_model_folder_is_evaluated_on_rows_of_a_file(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n + 1}"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_engine(tiny_model) as opened:
        summary = evaluate_data(
            opened,
            Data(source=str(tmp_path / "rows.jsonl"), split="test", sample=3),
            tmp_path / "eval",
            sampling=Sampling(max_tokens=5),
            console=Console(file=io.StringIO()),
        )
    lines = [json.loads(line) for line in (tmp_path / "eval/samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (summary.n, summary.told_format, summary.strict.value) == (3, True, 0.0)
    assert all(line["prompt"].startswith(f"What is {line['row'] - 1} + 1?") for line in lines)
    assert [line["reference"] for line in lines] == [str(line["row"]) for line in lines]
