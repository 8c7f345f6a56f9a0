"""Which letters an answer names, and which it only happens to hold."""

from __future__ import annotations

import time
from typing import Any

import pytest

from thinktune.scoring import TASKS
from thinktune.scoring.choice_answers.letters import read_letters
from thinktune.scoring.choice_answers.options import options_of
from thinktune.scoring.choice_scorer import gold_fault, reference_letters


def score(answer: str, **gold: Any):  # type: ignore[no-untyped-def]
    return TASKS["choice"].score(f"<think>so</think> <answer>{answer}</answer>", {"id": 1, **gold}, "stop")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # an option's text that holds letters
        ("B. E. coli", "B"), ("A. C. elegans", "A"), ("D) J. D. Salinger", "D"), ("(B) D. H. Lawrence", "B"),
        ("A. E. coli and H. pylori", "A"), ("D. E. coli and B. subtilis", "D"), ("B. Plan C: wait", "B"),
        ("C. Gerald R. Ford", "C"), ("D. John F. Kennedy", "D"), ("A. Dr. B. Jones", "A"), ("C. Vitamin D", "C"),
        ("B. Washington, D.C.", "B"), ("A: U.S. Army", "A"), ("E. Both A and B", "E"), ("(D) (A) and (B)", "D"),
        ("D. All of A, B and C", "D"), ("C) I think so", "C"), ("B. A train", "B"),
        # small letters
        ("c. 12", "C"), ("(c) 12", "C"), ("c) 12", "C"), ("c.", "C"), ("The answer is (c).", "C"),
        ("the answer is c", "C"), ("i.e. 12", None), ("e.g. 12", None), ("a train", None), ("10 a.m.", None),
        # several
        ("(B) and (D)", "BD"), ("B. and D.", "BD"), ("both B and D", "BD"), ("B, C, and D", "BCD"), ("b and d", "BD"),
        ("The answers are (B) and (D)", "BD"), ("Options B and D", "BD"), ("option B and option D", "BD"),
        ("(B) ten, (D) twelve", "BD"), ("B. ten\nD. twelve", "BD"), (r"\boxed{B} and \boxed{D}", "BD"), ("B与D", "BD"),
        ("选ＢＤ", "BD"), ("B；D", "BD"), ("B D", "BD"),
        # what cannot be decided
        ("B or D", None), ("(B) or (D)", None), ("B/D", None), ("either B or D", None), ("B或D", None),
        ("B. ten or D. twelve", None), ("B. D", None), ("The answer is B. Wait, the answer is D.", None),
        # what is said to be wrong
        ("not B", None), ("Not (B)", None), ("the answer is not B", None), ("B is incorrect", None),
        ("B is not correct", None), ("neither B nor D", None), ("不选B", None), ("B错误", None),
        ("B, not D", "B"), ("B rather than D", "B"), ("The answer is B because D is wrong", "B"),
        ("(B) is wrong, (D) is right", "D"), ("Option B is wrong, so option D", "D"), ("B不正确，选D", "D"),
        ("The answer is D; A and B are wrong", "D"), ("排除A、B，选D", "D"),
        # sentences and marks
        ("I'd go with (D)", "D"), ("I choose D", "D"), ("It must be option D.", "D"), ("D, because it is even", "D"),
        ("D is the answer", "D"), ("The best choice is D) 12", "D"), ("Final answer: **D**", "D"), ("Ans: D", "D"),
        ("The answer to this question is D.", "D"), ("D - twelve", "D"), ("D\nsince it is even", "D"),
        ("So it is even.\n(D)", "D"), ("12 (D)", "D"), ("probably D", "D"), ("D only", "D"), ("D (12)", "D"),
        ("【答案】D", "D"), ("「D」", "D"), ("本题应选Ｄ．", "D"), ("D项正确", "D"), ("Ⓓ", "D"), ("𝐃", "D"),
        ("D\u200b", "D"),
        (r"\textbf{(D)}", "D"), (r"\boxed{(D)\ 12}", "D"), (r"D. $\boxed{12}$", "D"), ("*D*", "D"), ("<b>D</b>", "D"),
        ("My choice is D, not B", "D"), ("Solution: D. twelve", "D"), ("d is correct", "D"), ("<D>", "D"),
        (r"\text{D}, because it is even", "D"), ("D，因为十二", "D"), ("(D), i.e., 12", "D"), ("D and not B", "D"),
        ("Respuesta: D", "D"), ("答えはD", "D"), ("[B, D]", "BD"), ("D.\n\nA is too small; B is too large.", "D"),
        ("I", "I"), ("H. 12", "H"),
        # letters of the prose
        ("I think so", None), ("I and II only", None), ("P(A)", None), ("P (A)", None), ("A-level", None),
        ("N/A", None),
        ("C++", None), ("A = B", None), ("A priori", None), ("If A then B", None), ("Hepatitis B", None),
        ("the answer is a (small) train", None), ("It is a", None), ("so a is small", None), ("B.B. King", None),
        ("A∪B", None), ("25 °C", None), ("B12", None), ("A to C", None), ("Grade: A", None), ("D = 4", None),
    ],
)  # fmt: skip
def test_letters_are_read_as_they_are_meant(answer: str, expected: str | None) -> None:
    assert read_letters(answer).letters == expected


def test_an_answer_that_names_several_letters_is_not_right_and_says_why() -> None:
    result = score("B or D", reference="B")
    assert (result.correct, result.outcome, result.note) == (False, "wrong", "names several letters: B, D")


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("BD", "D and B", "B"), ("DB", "BD", "BCD"), ("B, D", "DB", "D"), ("B", "b", "B and D"), ("(b)", "B", "D"),
        ("B. twelve", "(B)", "A"), ("L", "L. twelve", "B"), ("P", "The answer is P.", "none"),
    ],
)  # fmt: skip
def test_an_answer_is_right_if_it_names_all_that_the_reference_names(reference: str, right: str, wrong: str) -> None:
    assert score(right, reference=reference).correct
    assert score(wrong, reference=reference).correct is False


OPTIONS = ["ten", "twelve", "Michael B. Jordan", "$x^2$", "A and B"]
PROMPT = "Which?\n" + "\n".join(f"({letter}) {text}" for letter, text in zip("ABCDE", OPTIONS, strict=True))


@pytest.mark.parametrize("given", [{"options": OPTIONS}, {"prompt": PROMPT}, {"question": PROMPT.replace("\n", " ")}])
@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("twelve", "B", True), ("Twelve.", "B", True), ("ten", "B", False), ("x^2", "D", True), ("B", "twelve", True),
        ("Michael B. Jordan", "C", True), ("C. Michael B. Jordan", "C", True), ("A and B", "E", True),
        ("B. ten", "B", False), ("B. ten", "A", False), ("B: twelve", "B", True), (r"\boxed{twelve}", "B", True),
    ],
)  # fmt: skip
def test_an_options_text_counts_as_its_letter(given: dict[str, Any], answer: str, reference: str, right: bool) -> None:
    assert score(answer, reference=reference, **given).correct is right


def test_options_are_found_where_records_have_them() -> None:
    assert options_of({"choices": {"text": ["x", "y"], "label": ["A", "B"]}}) == {"A": "x", "B": "y"}
    assert options_of({"options": {"A": "x", "B": "y"}}) == {"A": "x", "B": "y"}
    assert options_of({"options": ["A. x", "B. y"]}) == {"A": "x", "B": "y"}
    assert options_of({"prompt": "是？\nA．一\nB．二"}) == {"A": "一", "B": "二"}
    assert options_of({"prompt": "A train leaves at 5. Plan B. failed"}) == {}
    assert score("C", reference="C", options=["C++", "C", "Java"]).correct  # a letter is a letter first


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ({"reference": 1}, "names no letter"), ({"reference": "12"}, "names no letter"),
        ({"reference": "B or C"}, "names no letter"), ({"reference": None}, "is null"),
        ({"reference": "E", "options": ["x", "y"]}, "none of the options A, B"),
    ],
)  # fmt: skip
def test_a_reference_that_names_no_option_is_a_fault_of_the_gold(gold: dict[str, Any], said: str) -> None:
    assert said in (gold_fault(gold) or "")


def test_a_reference_may_be_in_any_order_or_beyond_the_usual_letters() -> None:
    assert [reference_letters(each) for each in ("CAB", "A, C", "k", "(R)", "答案：D")] == ["ABC", "AC", "K", "R", "D"]


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("The answer is (D) because A is wrong.", "D"), ("A is too small, C too large.\n\nB", "B"),
        ("The answer is A? No, the answer is C.", "C"), ("</think>\n\n**Answer:** C", "C"),
        ("It is A or B. The answer is either A or B. Answer: D", "D"), ("The answer is A... either B or C", "A"),
        ("<think>The answer is A.</think> So D is what remains. The correct option is (d).", "D"),
        ("A cat sat on a mat.", None), ("The answer is not B.", None), ("The answer is B or C.", None),
    ],
)  # fmt: skip
def test_without_the_format_what_is_said_last_counts(text: str, letters: str | None) -> None:
    found = [each for each in "ABCD" if TASKS["choice"].score(text, {"reference": each}, "stop").lenient]
    assert found == ([letters] if letters else [])


@pytest.mark.parametrize(
    "text",
    ["A, " * 6000, "(A) and " * 2000, "the answer is " * 1400, "\\boxed{A}" * 2000, "A. x, " * 3000, " " * 20_000],
)
def test_long_lists_of_letters_are_read_in_no_time(text: str) -> None:
    started = time.monotonic()
    for length in (1900, len(text)):
        score(text[:length], reference="B", prompt=text)
        TASKS["choice"].score(text[:length], {"reference": "B"}, "stop")
    assert time.monotonic() - started < 5
