"""Rejection sampling: rows and pairs of a model's own completions, and what is left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import make_tiny_tokenizer
from thinktune.cli import app
from thinktune.config import Config, Data, Format
from thinktune.data import prepare
from thinktune.errors import DataError, GenerationError
from thinktune.evaluation.collect import Choice, Scored, assess
from thinktune.inference.engines.base import Completion
from thinktune.inference.problems import GoldItem
from thinktune.models import Chat
from thinktune.scoring import TASKS

PROBLEM = GoldItem("1", ({"role": "user", "content": "What is 2 x 3?"},), "math", {"reference": "6"})
# Answers 3 and 2 in turn, whatever is asked; the third completion is truncated.
ENGINE = """
from thinktune.inference.engines import Completion, Engine

class Counting(Engine):
    context_length = 1000
    asked = 0

    def __init__(self, model):
        pass

    def generate(self, requests):
        for request in requests:
            for index in range(request.sampling.n):
                Counting.asked += 1
                ids = (1,) * (20 - index)
                if index == 2:
                    yield Completion(request.id, index, "<think>on and on", ids, "length")
                else:
                    answer = 3 - index % 2
                    yield Completion(request.id, index, f"<think>Try {index}.</think> <answer>{answer}</answer>", ids)

    def stream(self, request):
        yield ""

    def logprobs(self, prompt_ids, continuation_ids):
        return []
"""


def reply(answer: object, thought: str = "It is so.") -> str:
    return f"<think>{thought}</think> <answer>{answer}</answer>"


def scored(*texts: str, reason: str = "stop") -> list[Scored]:
    """Completions of the problem, each of as many tokens as characters."""
    return [
        assess(Completion("1", at, text, (), reason, None, len(text)), PROBLEM, TASKS["math"], Format())
        for at, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("text", "fault", "bad"),
    [
        (reply(6), None, False),
        (reply("$6"), None, False),
        (reply(5), "wrong", True),
        ("It is 6.", "no answer", True),
        (reply(6) + " so", "malformed", True),
        (reply("2 x 3"), "right, but a computation", True),
        (reply(6, ""), "right, but without a thought", False),
        (reply(6, "6"), "right, but without a thought", False),
        (reply(6, "<|begin_of_thought|>so it is"), "right, but thought not closed", False),
    ],
)
def test_completions_that_are_right_well_formed_and_trainable_become_rows(
    text: str, fault: str | None, bad: bool
) -> None:
    (one,) = scored(text)
    assert (one.fault, one.bad) == (fault, bad)


@pytest.mark.parametrize(("reason", "fault"), [("length", "cut off"), ("error", "error")])
def test_unfinished_completions_are_neither_right_nor_wrong(reason: str, fault: str) -> None:
    (one,) = scored("<think>on and on", reason=reason)
    assert (one.fault, one.bad) == (fault, False)


@pytest.mark.parametrize(
    ("choice", "indexes"),
    [
        (Choice("distinct", 2), [0, 1]),
        (Choice("distinct", 9), [0, 1, 5]),
        (Choice("shortest", 2), [5, 1]),
        (Choice("difficulty", 4), [0, 1]),  # four of eight are right: half of the four
        (Choice("difficulty", 1), [0]),
    ],
)
def test_rows_are_chosen_among_those_of_different_words(choice: Choice, indexes: list[int]) -> None:
    texts = [reply(6, "long and longer"), reply(6, "some"), reply(5), reply(6, " some "), "?", reply(6, "so"), "6", "x"]
    assert [each.completion.index for each in choice.of(scored(*texts))] == indexes


def test_a_problem_that_is_always_solved_is_too_easy_to_learn_from() -> None:
    assert Choice("difficulty", 4).of(scored(reply(6), reply(6, "so"))) == []


def test_a_pair_is_a_right_and_a_wrong_completion_each_used_once() -> None:
    group = scored(reply(5), reply(6), reply(4), reply(6, "so"), reply(4), reply(3), reply(6, ""))
    pairs = [(right.completion.index, bad.completion.index) for right, bad in Choice().pairs_of(group)]
    assert pairs == [(1, 0), (3, 2)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "counting.py").write_text(ENGINE)
    (tmp_path / "data.jsonl").write_text("".join(f'{{"question": "{n}+1?", "answer": "{n + 1}"}}\n' for n in (1, 2, 3)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "counting", raising=False)
    return tmp_path


def collect(model: Path, *options: str, data: str = "data.jsonl") -> dict[str, Any]:
    call = ["collect", str(model), data, "-o", "rows.jsonl", "--engine", "counting:Counting", "--json", *options]
    result = CliRunner().invoke(app, call, catch_exceptions=False)
    assert result.exit_code == 0
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def read(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_right_completions_become_rows_that_training_takes_as_they_are(folder: Path, tiny_model: Path) -> None:
    report = collect(tiny_model, "-n", "6", "--pairs", "pairs.jsonl")
    # Of a reference of 2 the indexes 1, 3 and 5 are right, of 3 it is 0 and 4; 4 is never right.
    assert (report["problems"], report["solved"], report["rows"], report["pairs"]) == (3, 2, 5, 4)
    assert report["solved_by"] == {"0": 1, "2": 1, "3": 1}
    assert report["left_out"] == {"wrong": 10, "cut off": 3}
    assert report["scores"]["math"]["measures"]["pass@1"] == pytest.approx((3 + 2) / 18)
    assert report["scores"]["math"]["measures"]["pass@6"] == pytest.approx(2 / 3)
    assert json.loads(Path("rows.report.json").read_text()) == report
    row = next(each for each in read("rows.jsonl") if each["provenance"]["problem"] == "data.jsonl:1")
    assert row["messages"] == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": reply(2, "Try 1.")},
    ]
    assert row["provenance"] | {"fingerprint": "", "scorer": ""} == {
        "model": str(tiny_model), "fingerprint": "", "problem": "data.jsonl:1", "type": "math", "reference": "2",
        "right": 3, "of": 6, "sample": 1, "tokens": 19, "scorer": "",
        "sampling": {"n": 6, "temperature": 1.0, "top_p": 1.0, "seed": 3407},
    }  # fmt: skip
    prepared = prepare(Config(data=Data(source="rows.jsonl")), Chat(make_tiny_tokenizer()))
    assert (len(prepared.train), prepared.report.dropped) == (5, {})
    assert "not used" not in prepared.report.one_line()
    pair = next(each for each in read("pairs.jsonl") if each["provenance"]["problem"] == "data.jsonl:1")
    assert pair["prompt"] == row["messages"][:1]
    assert [pair[side][0]["content"] for side in ("chosen", "rejected")] == [reply(2, "Try 1."), reply(3, "Try 0.")]


def test_what_is_drawn_already_is_not_drawn_again(folder: Path, tiny_model: Path) -> None:
    collect(tiny_model, "-n", "3", "--sample", "2")
    lines = Path("rows.journal.jsonl").read_text().splitlines(keepends=True)
    Path("rows.journal.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # as after a kill
    collect(tiny_model, "-n", "3", "--sample", "2", "--choose", "shortest", "--keep", "1")
    assert sys.modules["counting"].Counting.asked == 6 + 3
    collect(tiny_model, "-n", "3", "--sample", "2", "--keep", "2")
    assert sys.modules["counting"].Counting.asked == 6 + 3
    collect(tiny_model, "-n", "3", "--sample", "2", "--overwrite")
    assert sys.modules["counting"].Counting.asked == 6 + 3 + 6


def test_a_batch_file_has_its_gold_in_it_or_in_another_file(folder: Path, tiny_model: Path) -> None:
    items = [{"id": "a", "type": "math", "prompt": "1+1?"}, {"id": "b", "type": "choice", "prompt": "A) 1 B) 2?"}]
    gold = [{"id": "a", "type": "math", "reference": "2"}]
    (folder / "items.jsonl").write_text("".join(json.dumps(each) + "\n" for each in items))
    (folder / "gold.jsonl").write_text("".join(json.dumps(each) + "\n" for each in gold))
    (folder / "both.jsonl").write_text(json.dumps({**items[0], **gold[0]}))
    apart = collect(tiny_model, "--gold", "gold.jsonl", data="items.jsonl")
    assert (apart["problems"], apart["rows"]) == (1, 4)
    assert collect(tiny_model, data="both.jsonl") == apart
    with pytest.raises(DataError, match="no reference"):
        collect(tiny_model, data="items.jsonl")


def test_where_nothing_is_right_there_is_no_file_and_it_is_said_why(folder: Path, tiny_model: Path) -> None:
    (folder / "hard.jsonl").write_text('{"question": "What?", "answer": "77"}\n')
    with pytest.raises(GenerationError, match=r"no rows: .*left out: 3 wrong, 1 cut off"):
        collect(tiny_model, "-n", "4", data="hard.jsonl")
    assert not Path("rows.jsonl").exists()
