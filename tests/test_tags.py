"""The one parser of the format."""

from __future__ import annotations

import doctest
import random

import pytest

from thinktune import tags
from thinktune.tags import Parsed, TagStream, last_boxed, parse, render

GOOD = "<think>one\ntwo</think> <answer>42</answer>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GOOD, None),
        (f"\n {GOOD}\n\n", None),
        ("<think></think><answer>0</answer>", None),
        ("", "no <think>"),
        ("42", "no <think>"),
        ("<think>a", "no </think>"),
        ("<think>a</think> 42", "no <answer>"),
        ("<think>a</think> <answer>42", "no </answer>"),
        ("<think>a<think>b</think> <answer>4</answer>", "more than one <think>"),
        ("<think>a</think></think> <answer>4</answer>", "more than one </think>"),
        (f"{GOOD} {GOOD}", "more than one <think>"),
        ("<answer>4</answer> <think>a</think>", "tags out of order"),
        ("<think>a <answer>4</answer></think>", "tags out of order"),
        (f"Sure: {GOOD}", "text outside the tags"),
        ("<think>a</think> so <answer>4</answer>", "text outside the tags"),
        (f"{GOOD}.", "text outside the tags"),
        ("<think>a</think> <answer> \n</answer>", "blank answer"),
        ("<Think>a</Think> <answer>4</answer>", "no <think>"),
    ],
)
def test_a_completion_is_well_formed_or_told_why_not(text: str, problem: str | None) -> None:
    parsed = parse(text)
    assert parsed.problem == problem
    assert parsed.well_formed is (problem is None)


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        (GOOD, "one\ntwo", "42"),
        ("<think>never closed", "never closed", None),
        ("<think>a</think> <answer>cut off", "a", "cut off"),
        ("so <answer>4</answer> no, <answer>5</answer>", None, "5"),
        ("nothing", None, None),
    ],
)
def test_thought_and_answer_are_found_in_malformed_completions_too(
    text: str, think: str | None, answer: str | None
) -> None:
    parsed = parse(text)
    assert (parsed.think, parsed.answer) == (think, answer)


@pytest.mark.parametrize("think", ["a", "{answer}", "{think} {0} {{x}}", "\\frac{1}{2}", "50% of %s"])
@pytest.mark.parametrize("answer", ["7", "{think}", "\\boxed{3}", "f'{x}'"])
def test_what_is_rendered_is_parsed_back_whatever_braces_it_has(think: str, answer: str) -> None:
    assert parse(render(think, answer)) == Parsed(think, answer, None)


def test_another_template_is_filled_in_the_same_way() -> None:
    template = "<think>\n{think}\n</think>\n\n<answer>\n{answer}\n</answer>"
    assert render("t", "a", template) == "<think>\nt\n</think>\n\n<answer>\na\n</answer>"


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        ("\\boxed{7}", "7"),
        ("\\boxed{\\frac{3}{4}}", "\\frac{3}{4}"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{a} and \\boxed{never closed", "a"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{ x \\}", None),
        ("\\boxed{}", ""),
        ("\\boxed 7", None),
        ("no box", None),
    ],
)
def test_the_last_balanced_box_is_taken(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


def joined(parts: list[tuple[tags.Part, str]]) -> list[tuple[tags.Part, str]]:
    """Neighbours of the same part put together."""
    result: list[tuple[tags.Part, str]] = []
    for part, text in parts:
        if result and result[-1][0] == part != "tag":
            result[-1] = (part, result[-1][1] + text)
        else:
            result.append((part, text))
    return result


def streamed(pieces: list[str]) -> list[tuple[tags.Part, str]]:
    stream = TagStream()
    parts = [part for piece in pieces for part in stream.feed(piece)]
    return joined([*parts, *stream.flush()])


def test_a_stream_is_split_into_thought_answer_and_the_rest() -> None:
    assert streamed(["Hi <think>a < b</think> <answer>4</answer>!"]) == [
        ("outside", "Hi "),
        ("tag", "<think>"),
        ("think", "a < b"),
        ("tag", "</think>"),
        ("outside", " "),
        ("tag", "<answer>"),
        ("answer", "4"),
        ("tag", "</answer>"),
        ("outside", "!"),
    ]


@pytest.mark.parametrize("seed", range(30))
def test_how_a_text_arrives_changes_nothing(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice([*tags.TAGS, "<", "</", "think>", "x", " ", "<thin", "answer"]) for _ in range(40))
    pieces, rest = [], text
    while rest:
        size = draw.randint(1, 6)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert streamed(pieces) == streamed([text])
    assert "".join(part for _, part in streamed(pieces)) == text


def test_only_what_may_become_a_tag_is_held_back() -> None:
    stream = TagStream()
    assert list(stream.feed("a <b> <thi")) == [("outside", "a <b> ")]
    assert list(stream.feed("s>")) == [("outside", "<this>")]
    assert list(stream.flush()) == []


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(tags).failed == 0
