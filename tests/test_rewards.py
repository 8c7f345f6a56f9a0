"""Rewards: the ways in which a model cheats them, and the rule that stops each (docs/reinforce.md has the table)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from thinktune.config import Data, Format, Load
from thinktune.errors import ConfigError, DataError
from thinktune.inference.problems import read_problems
from thinktune.scoring.own_reward import OwnReward
from thinktune.scoring.rewards import Reward, Rewards, overlong_penalty

QUESTION = "What is 12 x 7?"
MATH = {"reference": "84", "prompt": QUESTION}
CHOICE = {"reference": "B", "prompt": "Which?", "options": {"A": "one", "B": "two", "C": "three"}}
GOOD = "<think>12 times 7 is 84.</think> <answer>84</answer>"
OWN = """
import os, time

def brief(prompt, completion, gold):
    return len(prompt) + len(completion) + len(gold["reference"]) / 10

def prints(prompt, completion, gold):
    print("to stdout, where replies go")
    return True

def sleeps(prompt, completion, gold):
    if completion == "slow":
        time.sleep(60)
    return 1

def raises(prompt, completion, gold):
    return 1 / (completion != "bad")

def ends(prompt, completion, gold):
    os._exit(0) if completion == "bad" else None
    return 2.5

def nan(prompt, completion, gold):
    return float("nan")

def text(prompt, completion, gold):
    return "1"
"""


@pytest.fixture(scope="module")
def rewards() -> Iterator[Rewards]:
    weights = {"answer": 1.0, "format": 0.2, "length": 0.5}
    with Rewards(weights, max_tokens=100, length_buffer=20) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


def pay(
    rewards: Rewards,
    text: str,
    gold: Mapping[str, Any] = MATH,
    type: str = "math",
    *,
    reason: str = "stop",
    n: int = 50,
) -> Reward:
    return rewards.reward(type, gold, text, finish_reason=reason, tokens=n)


def answer(text: str) -> str:
    return f"<think>I think.</think> <answer>{text}</answer>"


def test_a_right_answer_after_a_thought_is_paid_in_full(rewards: Rewards) -> None:
    reward = pay(rewards, GOOD)
    assert reward.parts == {"answer": 1.0, "format": 1.0, "length": 0.0}
    assert reward.total == 1.2
    assert reward.score.correct


CHEATS = {
    "an empty thought": ("<think></think> <answer>84</answer>", 1, 0),
    "a blank thought": ("<think> \n </think> <answer>84</answer>", 1, 0),
    "a thought of dots": ("<think>... … ---</think> <answer>84</answer>", 1, 0),
    "the answer again as the thought": ("<think>84</think> <answer>84</answer>", 1, 0),
    "the answer again and again": ("<think>84, 84! 84</think> <answer>84</answer>", 1, 0),
    "no thought": ("<answer>84</answer>", 0, 0),
    "no answer": ("<think>12 times 7 is 84.</think>", 0, 0),
    "a blank answer": ("<think>12 times 7 is 84.</think> <answer> </answer>", 0, 0),
    "two answers in tags": (f"{GOOD} <answer>85</answer>", 0, 0),
    "an answer in the thought and another behind it": (
        "<think>so <answer>84</answer> it is</think> <answer>84</answer>",
        0,
        0,
    ),
    "a thought within a thought": ("<think>a <think>b</think></think> <answer>84</answer>", 0, 0),
    "a second round": (f"{GOOD} {GOOD}", 0, 0),
    "a word behind the answer": (f"{GOOD} or 85", 0, 0),
    "a word between thought and answer": ("<think>a b</think> so <answer>84</answer>", 0, 0),
    "tags out of order": ("<answer>84</answer> <think>12 times 7</think>", 0, 0),
    "the tags alone": ("<think></think> <answer></answer>", 0, 0),
    "the format without content": ("<think>I think about it.</think> <answer>the answer</answer>", 0, 1),
    "the question as the answer": (answer(QUESTION), 0, 1),
    "the question's computation as the answer": (answer("12 x 7"), 0, 1),
    "a computation behind a wrong number": (answer("1 = 12 x 7"), 0, 1),
    "a fraction not worked out": (answer("168/2"), 0, 1),
    "numbers to choose from": (answer("83, 84, 85"), 0, 1),
    "one or another": (answer("84 or 85"), 0, 1),
    "a range": (answer("80-90"), 0, 1),
    "an interval": (answer("[80, 90]"), 0, 1),
    "a bound": (answer("at least 80"), 0, 1),
    "an unknown": (answer("x"), 0, 1),
    "a hundred numbers": (answer(" ".join(map(str, range(100)))), 0, 1),
    "more text than is compared": (answer("84 " * 1000), 0, 1),
}


@pytest.mark.parametrize(("text", "paid", "form"), CHEATS.values(), ids=CHEATS)
def test_cheating_is_paid_for_no_more_than_it_holds(rewards: Rewards, text: str, paid: float, form: float) -> None:
    assert pay(rewards, text).parts == {"answer": paid, "format": form, "length": 0.0}


@pytest.mark.parametrize("said", ["84", "84.0", "$84", "x = 84", "12 x 7 = 84", r"\boxed{84}", "**84**", "84 apples"])
def test_ways_of_writing_a_number_are_no_computations(rewards: Rewards, said: str) -> None:
    assert pay(rewards, answer(said)).parts["answer"] == 1


BETWEEN = [" or {}", ", {}", " {}", " = {}", " ({})", " and not {}", "\n{}", "/{}", "; no, {}"]


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize(("type", "values"), [("math", ("84", "85")), ("choice", ("A", "B"))])
def test_of_several_answers_at_most_one_is_taken(
    rewards: Rewards, between: str, type: str, values: tuple[str, str]
) -> None:
    text = answer(values[0] + between.format(values[1]))
    gold = MATH if type == "math" else CHOICE
    paid = [pay(rewards, text, {**gold, "reference": value}, type).parts["answer"] for value in values]
    assert sum(each or 0 for each in paid) <= 1


@pytest.mark.parametrize("said", ["A, B, C", "all of them", "A B C", "ABC", "not A", "one two three"])
def test_all_letters_are_no_choice(rewards: Rewards, said: str) -> None:
    assert pay(rewards, answer(said), CHOICE, "choice").parts["answer"] == 0


@pytest.mark.parametrize(
    "program",
    ["import sys\nsys.exit(0)", "class Any:\n    __eq__ = lambda *_: True\n\ndef add(a, b):\n    return Any()"],
)
def test_a_program_that_passes_its_tests_without_the_work_is_not_paid(rewards: Rewards, program: str) -> None:
    gold = {"test": "assert add(1, 2) == 3", "entry_point": "add"}
    assert not pay(rewards, answer(f"```python\n{program}\n```"), gold, "code-generate").parts["answer"]


def test_a_truncated_completion_has_no_answer_and_the_full_penalty(rewards: Rewards) -> None:
    reward = pay(rewards, "<think>12 times 7 is 84, and so " + "on " * 30, reason="length", n=100)
    assert reward.parts == {"answer": 0.0, "format": 0.0, "length": -1.0}


def test_the_penalty_falls_over_the_buffer_as_dapo_has_it() -> None:
    # With the values of Yu et al.: at most 20,480 tokens, of which the last 4,096 are the buffer.
    values = [overlong_penalty(n, max_tokens=20480, buffer=4096) for n in (1, 16384, 17408, 20479, 20480, 30000)]
    assert values == [0, 0, -0.25, -4095 / 4096, -1, -1]


@pytest.mark.parametrize("reference", [{"prompt": "?"}, {"reference": None}, {"reference": ["1", "2"]}])
def test_without_a_usable_reference_a_completion_is_undecided(rewards: Rewards, reference: dict[str, Any]) -> None:
    reward = pay(rewards, GOOD, reference)
    assert (reward.total, reward.parts["answer"]) == (None, None)


def test_a_failed_completion_is_undecided_and_not_a_bad_one(rewards: Rewards) -> None:
    reward = pay(rewards, "", reason="error")
    assert (reward.total, set(reward.parts.values()), reward.score.outcome) == (None, {None}, "error")


def test_the_parts_are_the_same_in_threads_beside_generation(rewards: Rewards) -> None:
    futures = [rewards.submit("math", MATH, text, finish_reason="stop", tokens=90) for text, *_ in CHEATS.values()]
    assert [each.result() for each in futures] == [pay(rewards, text, n=90) for text, *_ in CHEATS.values()]


@pytest.mark.parametrize(
    ("weights", "buffer", "said"),
    [
        ({"anwser": 1.0}, 0, "there is no 'anwser'"),
        ({"length": 1.0}, 0, "rl.length_buffer is 0"),
        ({"length": 1.0}, 101, "rl.length_buffer is 101"),
        ({"no_module:f": 1.0}, 0, "cannot import 'no_module:f'"),
    ],
)
def test_unusable_rewards_are_refused_at_once(weights: dict[str, float], buffer: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Rewards(weights, max_tokens=100, length_buffer=buffer)


@pytest.mark.usefixtures("own")
def test_ones_own_functions_are_parts_like_others() -> None:
    with Rewards({"answer": 1, "mine:brief": -0.01, "mine:prints": 0}, max_tokens=100) as rewards:
        reward = pay(rewards, GOOD)
    brief = len(QUESTION) + len(GOOD) + 0.2
    assert reward.parts == {"answer": 1, "mine:brief": brief, "mine:prints": 1}
    assert reward.total == pytest.approx(1 - 0.01 * brief)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("function", "bad", "again"),
    [
        ("raises", "bad", 1),
        pytest.param("ends", "bad", 0, marks=pytest.mark.slow),
        pytest.param("sleeps", "slow", 0, marks=pytest.mark.slow),
    ],
)
def test_a_function_that_fails_leaves_that_completion_undecided_and_is_told_once(
    function: str, bad: str, again: int, caplog: pytest.LogCaptureFixture
) -> None:
    reward = OwnReward(f"mine:{function}", seconds=1.0)
    began = time.monotonic()
    assert [reward("", text, {}) is None for text in ("good", bad, "good", *(bad,) * again)] == [False, True, False] + [
        True
    ] * again
    assert time.monotonic() - began < 30
    assert caplog.text.count("failed on a completion, which is left out") == 1
    reward.close()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("function", ["nan", "text"])
def test_a_function_that_returns_no_number_is_refused(function: str) -> None:
    reward = OwnReward(f"mine:{function}")
    with pytest.raises(ConfigError, match="returned"):
        reward("", "", {})
    reward.close()


def read(source: Path, **settings: Any) -> list[tuple[str, str, Any]]:
    problems = read_problems(Data(source=str(source), **settings), Format(), 0, load=Load())
    return sorted((each.id.rpartition(":")[2], each.type, each.gold["reference"]) for each in problems)


def test_problems_are_rows_with_answers_or_a_batch_file_with_its_gold(tmp_path: Path) -> None:
    rows, batch = tmp_path / "rows.jsonl", tmp_path / "batch.jsonl"
    rows.write_text('{"question": "1+1?", "answer": "#### 2"}\n{"question": "1+2?", "answer": "3"}\n')
    lines: list[dict[str, Any]] = [
        {"id": 7, "type": "choice", "prompt": "Which?", "reference": "B"},
        {"id": "x", "type": "math", **MATH},
    ]
    batch.write_text("\n".join(map(json.dumps, lines)))
    assert read(rows) == [("1", "math", "2"), ("2", "math", "3")]
    assert read(batch) == [("7", "choice", "B"), ("x", "math", "84")]
    assert len(read(batch, sample=1)) == 1
    lines[0]["reference"] = 1
    batch.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match="1 problems cannot be scored:\nid 7"):
        read(batch)
