"""What is right, what is wrong, and why a completion fails."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from thinktune.scoring import TASKS
from thinktune.scoring.base import Verdict
from thinktune.scoring.choice_scorer import letter
from thinktune.scoring.math_answers.last_number import last_number
from thinktune.scoring.math_answers.normalize import normalise
from thinktune.scoring.math_answers.quantities import read_quantity
from thinktune.scoring.math_answers.verify_worker import Verifier


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


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("18 dollars", "18"), ("18", r"18\text{ dollars}"), ("$18", "18 dollars"), ("18 元", "18"), ("十八元", "18"),
        ("180 cm", "1.8 m"), ("2 hours", "120 minutes"), ("12 apples", "12"), ("5 km²", "5 km^2"),
        ("3 million", "3000000"),
        ("$1.5 million", "1500000 dollars"), (r"45^\circ", "45"), ("45 degrees", "45°"), ("7 (apples)", "7"),
        ("50%", "0.5"), ("50%", "50"), (r"50\%", "50％"), ("百分之五十", "50%"), ("三分之二", "2/3"),
        ("两百零五", "205"),
        ("负三点一四", "-3.14"), ("3.5万", "35000"), ("一亿", "100000000"), ("二〇二四", "2024"),
        ("１２．５", "12.5"),
        ("（１，２）", "(1,2)"), ("1½", "1.5"), (r"1\frac{1}{2}", "3/2"), ("1 1/2", "1.5"), ("1.5 × 10^3", "1500"),
        ("x = 5", "5"), ("The answer is 5.", "5"), ("答案是5。", "5"), ("答案：5", "5"), (r"$\boxed{5}$", "5"),
        ("**5**", "5"),
        ("√2", r"\sqrt{2}"), ("−3", "-3"), ("2π", r"2\pi"), ("x²+1", "1+x^{2}"), (r"\text{even}", "Even"),
        ("(0, 5]", r"\left(0,5\right]"), (r"0 < x \le 5", "(0,5]"), ("3, 2", r"\{2,3\}"), ("2或3", "2,3"),
        ("2 or 3", "3,2"), (r"\pm 2", "2, -2"), (r"(-\infty,2)\cup(3,\infty)", r"(-∞,2) ∪ (3,∞)"),
        (r"\varnothing", "∅"),
        (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
        ("(4.25, 0)", r"(\frac{17}{4},0)"), ("(((5)))", "5"), ("{{5}}", "5"),
        ("2x+1", "y=2x+1"), ("9" * 900, "9" * 900),
    ],
)  # fmt: skip
def test_answers_are_equal_in_whatever_form_they_are_written(answer: str, reference: str) -> None:
    assert score("math", written(answer), reference).correct
    assert score("math", written(reference), answer).correct


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("5 m", "5 km"), ("18x", "18"), ("5x", "5"), ("2 pi", "2"), ("18 thousand", "18"), ("18 dollars", "18 cents"),
        ("50%", "0.5%"), ("[0,5)", "(0,5)"), ("(1,2)", "(2,1)"), ("(1,2)", r"\{1,2\}"), ("(1,250)", "1250"),
        ("5 or 6", "5"),
        ("dynamo", "Monday"), ("三分之二", "3/2"), ("十八", "80"), ("x=2 or x=3", "2"), (r"\sqrt{3}", r"\sqrt{2}"),
        ("5 cm^2", "5 cm"), ("1.5e3", "15000"), ("3/4", "3"), ("18 1/2", "18"), ("万", "10"), ("one", "two"),
        ("", "0"),
    ],
)  # fmt: skip
def test_what_only_looks_alike_is_not_equal(answer: str, reference: str) -> None:
    assert not score("math", written(answer), reference).correct
    assert not score("math", written(reference), answer).correct


def test_expressions_are_compared_by_math_verify() -> None:
    assert score("math", written("2 + x"), "x+2").correct
    assert score("math", written(r"\sqrt{8}"), r"2\sqrt{2}").correct
    assert not score("math", written(r"\sqrt{8}"), r"3\sqrt{2}").correct
    assert "math-verify 0." in score("math", written("1"), "1").scorer


@pytest.fixture
def verifier() -> Iterator[Verifier]:
    """One whose process is up, and that is as patient as it gets."""
    verifier = Verifier(seconds=60, clock=60)
    assert verifier.verify("x", "x").equal
    yield verifier
    verifier.close()


def test_a_comparison_that_takes_too_long_is_broken_off_and_the_next_one_is_right() -> None:
    verifier = Verifier(seconds=0.5, clock=60)
    assert verifier.verify("x", "x").equal
    child = verifier._child
    verdict = verifier.verify("5", "9^{9^{9^{9}}}")
    assert not verdict.equal
    assert not verdict.failed
    assert "did not end within 0.5 s of processor time" in (verdict.note or "")
    assert verifier.verify("x+1", "1+x").equal
    assert verifier._child == child
    verifier.close()


def test_a_comparison_that_does_not_break_off_is_killed_and_the_next_one_is_right(verifier: Verifier) -> None:
    process, child = verifier._process, verifier._child
    verifier._seconds = 0.1  # which the process does not know of
    verdict = verifier.verify("5", "9^{9^{9^{9}}}")
    assert not verdict.equal
    assert "did not end within 0.1 s of processor time" in (verdict.note or "")
    assert not psutil.pid_exists(child)
    verifier._seconds = 60
    assert verifier.verify("x+1", "1+x").equal
    assert verifier._process is process  # starting another one takes longer than many comparisons


def test_a_process_that_gets_no_processor_time_is_killed_and_makes_no_answer_wrong(verifier: Verifier) -> None:
    child = verifier._child
    os.kill(child, signal.SIGSTOP)
    verifier._clock = 0.5
    verdict = verifier.verify("x", "x")  # never read by the child, but by the next one
    assert verdict == Verdict(False, "math-verify got too little processor time to end within 0.5 s", failed=True)
    assert not psutil.pid_exists(child)
    verifier._clock = 60
    assert not verifier.verify("x+1", "2+x").equal
    assert verifier.verify("x+1", "1+x").equal


def test_a_process_that_dies_is_replaced(verifier: Verifier) -> None:
    os.kill(verifier._child, signal.SIGKILL)
    assert "died" in (verifier.verify("x", "x").note or "")
    assert verifier.verify("x+1", "1+x").equal
    assert verifier._process is not None
    verifier._process.kill()
    os.kill(verifier._child, signal.SIGKILL)
    verifier._process.wait()
    assert "died" in (verifier.verify("x", "x").note or "")
    assert verifier.verify("x+1", "1+x").equal


def test_nothing_goes_on_when_the_scorer_is_gone(verifier: Verifier) -> None:
    process = verifier._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=120) == 0
    assert not psutil.pid_exists(verifier._child)


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
        ("The answer is B.", "B"), ("The correct answer is (C) because it is 12.", "C"), ("Answer: D", "D"),
        ("Option B", "B"),
        ("B is correct", "B"), ("答案是B", "B"), ("答案：Ｃ", "C"), ("故选D。", "D"), ("应选（A）", "A"),
        ("选项B", "B"), ("B项", "B"),
        ("正确答案为 C，因为它最大", "C"), ("(c)", "C"), ("c)", "C"), ("$\\mathbf{B}$", "B"), ("[B]", "B"),
        ("A、C", "AC"),
        ("BD", "BD"),
        ("A and C", "AC"), ("A: a train", "A"), ('"B"', "B"),
        ("A train leaves", None), ("Because", None), ("", None), ("12", None), ("Plan B failed", None),
        ("I think so", None),
        ("The answer is A train that leaves", None), ("the answer is a train", None),
        ("A. is wrong, B. is right", None),
        ("答案是C语言", None), ("The answer is A. No, the answer is B.", None), ("BAD", None), ("A or B", None),
        ("Vitamin C", None), ("E=mc^2", None), ("Dr. B. Smith", None), ("K", None), ("A" * 5000, None),
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


def test_numbers_are_found_in_text() -> None:
    assert last_number("So 3 x $1,200 = $3,600.") == "3600"
    assert last_number("from 5 to -3") == "-3"
    assert last_number("it is 3/4 of v2") == "3/4"
    assert last_number("none") is None
    assert read_quantity(normalise("9" * 5000)) is None


@pytest.mark.parametrize("task", ["math", "choice"])
@pytest.mark.parametrize(
    "text",
    [r"\boxed{" * 100_000, "{" * 500_000 + "5" + "}" * 500_000, "答案" + " " * 500_000, "9" * 1_000_000,
     "5" + " " * 500_000 + "x",
     "√(" * 300_000, "1," * 400_000, "<answer>" * 100_000, "十" * 300_000, "\\frac{" * 100_000, "\x00" * 100_000],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_answers_of_a_million_characters_are_read_in_no_time(task: str, text: str) -> None:
    started = time.process_time()  # a busy machine is not to blame
    for completion in (text, written(text), "<think>" + text):
        assert not score(task, completion, "B" if task == "choice" else "7").correct
    assert time.process_time() - started < 5


def test_what_is_no_mathematics_at_all_neither_hangs_nor_ends_the_scorer() -> None:
    bombs = [
        r"\frac{1}{" * 90 + "1" + "}" * 90,
        "{" * 400 + "5" + "}" * 400,
        "(" * 300,
        r"\sqrt" * 150,
        r"10^{10^{10}}!",
        "\\",
    ]
    for bomb in bombs:
        assert not score("math", written(bomb), "7").correct
    assert score("math", written("x+1"), "1+x").correct
