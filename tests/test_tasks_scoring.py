"""What is right, what is wrong, and why a completion fails."""

from __future__ import annotations

import time

import pytest

from thinktune.tasks import TASKS
from thinktune.tasks.choice import letter
from thinktune.tasks.math import as_number, last_number, normalise
from thinktune.tasks.worker import Verifier


def written(answer: str) -> str:
    return f"<think>Let me see: 99.</think> <answer>{answer}</answer>"


def score(task: str, text: str, reference: str, finish_reason: str = "stop"):  # type: ignore[no-untyped-def]
    return TASKS[task].score(text, {"id": "a", "reference": reference}, finish_reason)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("18", "18"),
        ("$1,250.00", "1250"),
        (r"\boxed{12}", "12"),
        ("3/4", r"\frac{3}{4}"),
        ("0.75", r"\dfrac{3}{4}"),
        (r"\frac34", "3/4"),
        ("-5.", "-5"),
        (r"\(7\)", "7"),
        ("+7", "7"),
        ("1,234,567", "1234567"),
        (".5", "1/2"),
    ],
)
def test_numbers_are_equal_however_they_are_written(answer: str, reference: str) -> None:
    result = score("math", written(answer), reference)
    assert (result.correct, result.value, result.outcome, result.extracted) == (True, 1.0, "right", answer)
    assert score("math", written(reference), answer).correct


@pytest.mark.parametrize(
    ("answer", "reference"), [("18", "19"), ("1,25", "125"), ("3/4", "4/3"), ("1/0", "0"), ("99", "7")]
)
def test_other_numbers_are_wrong(answer: str, reference: str) -> None:
    result = score("math", written(answer), reference)
    assert (result.correct, result.value, result.outcome) == (False, 0.0, "wrong")


def test_expressions_are_compared_by_math_verify() -> None:
    assert score("math", written("2 + x"), "x+2").correct
    assert score("math", written(r"\sqrt{8}"), r"2\sqrt{2}").correct
    assert not score("math", written(r"\sqrt{8}"), r"3\sqrt{2}").correct
    assert "math-verify 0." in score("math", written("1"), "1").scorer


def test_a_hanging_comparison_is_killed_and_the_next_one_is_right() -> None:
    verifier = Verifier(seconds=1.0)
    assert verifier.verify("x", "x").equal  # the process is up
    started = time.monotonic()
    verdict = verifier.verify("5", "9^{9^{9^{9}}}")
    assert time.monotonic() - started < 5
    assert not verdict.equal
    assert "did not end" in (verdict.note or "")
    assert verifier.verify("x+1", "1+x").equal
    verifier.close()


def test_an_answer_too_long_to_be_one_is_not_compared() -> None:
    result = score("math", written("x+" * 1_000_000), "5")
    assert not result.correct
    assert "not compared" in (result.note or "")


@pytest.mark.parametrize(
    ("text", "finish_reason", "outcome", "lenient"),
    [
        ("<think>so 7", "length", "cut off", True),
        ("<think>a</think> <answer>7", "stop", "malformed", True),
        ("The answer is $7.", "stop", "no answer", True),
        (r"It is \boxed{7} in 3 steps", "stop", "no answer", True),
        ("inside <think> and <answer> tags? It is 7", "stop", "malformed", True),
        ("It is 7, or rather 8", "stop", "no answer", False),
        ("no idea", "stop", "no answer", False),
        ("", "error", "error", False),
        (written("seven, that is 7"), "stop", "wrong", True),
    ],
)
def test_a_completion_fails_for_a_reason_and_may_be_forgiven(
    text: str, finish_reason: str, outcome: str, lenient: bool
) -> None:
    result = score("math", text, "7", finish_reason)
    assert (result.correct, result.outcome, result.lenient) == (False, outcome, lenient)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"), ("(B)", "B"), ("B.", "B"), ("B. 12 apples", "B"), ("（C）", "C"), ("C：十二", "C"),
        (r"\boxed{\text{D}}", "D"), ("b", "B"), ("**A**", "A"),
        ("A train leaves", None), ("Because", None), ("", None), ("12", None),
    ],
)  # fmt: skip
def test_a_choice_is_its_letter_and_no_letter_of_the_prose(answer: str, expected: str | None) -> None:
    assert letter(answer) == expected


def test_choices_are_scored_strictly_and_leniently() -> None:
    assert score("choice", written("(B) 12"), "B").correct
    assert not score("choice", written("C"), "B").lenient
    assert score("choice", "I think the answer is (B).", "B").lenient
    assert score("choice", "所以答案是B", "B").lenient
    assert not score("choice", "A train may take B hours.", "B").lenient


def test_types_without_a_scorer_say_so() -> None:
    result = score("code-generate", written("def f(): pass"), "whatever")
    assert (result.correct, result.lenient, result.outcome) == (None, None, "not scored")
    assert score("generic-generate", "<think>", "x", "length").outcome == "cut off"


def test_numbers_are_found_in_text() -> None:
    assert last_number("So 3 x $1,200 = $3,600.") == "3600"
    assert last_number("from 5 to -3") == "-3"
    assert last_number("it is 3/4 of v2") == "3/4"
    assert last_number("none") is None
    assert as_number(normalise("9" * 5000)) is None
