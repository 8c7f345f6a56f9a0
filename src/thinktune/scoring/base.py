"""The contract of every task: the sampling of its items and the score of a completion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from thinktune import tags
from thinktune.config import Sampling

Outcome = Literal["right", "wrong", "no answer", "malformed", "cut off", "error", "measured", "not scored"]
"""Of a well-formed completion: right or wrong; "measured" if there are only degrees; "not scored" for want of a usable
reference in the gold record."""

UNFINISHED: tuple[Outcome, ...] = ("cut off", "error")
"""Outcomes of unfinished completions, which accuracy over the completed leaves out."""

TAIL = 20_000
"""Number of characters at the end of a completion in which lenient scoring looks for an answer."""

FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
"""Table for `str.translate` from the East Asian full-width forms of ASCII."""

_COMPARED = 200  # comparisons that the vote on one problem may take; what is left then is compared as text


@dataclass(frozen=True)
class Score:
    """The score of a completion.

    Attributes:
        correct: strict: the answer inside the tags of a well-formed completion is right. None: not known.
        value: 1 or 0 for right or wrong, a measure between for tasks that have one. None: not scored.
        outcome: why; "cut off" and "malformed" are never right.
        extracted: the compared answer; None: there was none.
        lenient: right with the format forgiven, as is fair to models that were not trained for it.
        scorer: name and version of the scorer.
        note: remark for the reader of the score, for example that the comparison ran out of time.
        stated: the answer that lenient scoring took; None: there was none.
    """

    correct: bool | None
    value: float | None
    outcome: Outcome
    extracted: str | None
    lenient: bool | None
    scorer: str
    note: str | None = None
    stated: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The equality of two answers, with a note if it could not be found out as usual."""

    equal: bool
    note: str | None = None
    failed: bool = False

    @property
    def outcome(self) -> Outcome:
        """The outcome of a well-formed completion."""
        return "error" if self.failed else "right" if self.equal else "wrong"


Scorer = Callable[[str, Mapping[str, Any], str], Score]
"""`score(completion, gold, finish_reason)`, with the whole gold record."""


def reference_of(gold: Mapping[str, Any]) -> str:
    """Return the reference answer, a text or a number, of a gold record in which `reference_fault` finds no fault."""
    value = _reference(gold)
    # Without an exponent, as answers write numbers: 1e-07 is Python's way.
    return f"{Decimal(repr(value)):f}" if isinstance(value, float) else str(value)


def reference_fault(gold: Mapping[str, Any]) -> str | None:
    """Explain why a gold record has no reference answer that a text may be compared with; None if it has one.

    A list of one counts as its element. Of several it cannot be told whether all are asked for or any would do, and
        other values have no unique spelling: neither is compared as Python happens to print it.
    """
    value = _reference(gold)
    if value is None:
        present = [key for key in ("reference", "answer") if key in gold]
        return f"{present[0]} is null" if present else "has no reference"
    if isinstance(value, str):
        return None if value.strip() else "the reference is blank"
    if isinstance(value, bool):
        return f'the reference is {str(value).lower()}: write it as the text that answers have, such as "True" or "Yes"'
    if isinstance(value, (int, float)):
        return None if math.isfinite(value) else "the reference is no finite number"
    if isinstance(value, list):
        count = f"a list of {len(value)}" if value else "an empty list"
        return f'the reference is {count}: write one text, such as "2, 3" or "AC" where all are asked for'
    return "the reference is an object, not a text"


@dataclass(frozen=True)
class Task:
    """An item type: all that the rest of thinktune knows of it.

    Attributes:
        sampling: the default. Above one completion, a result file has a list of them for each item.
        metrics: measures of all samples (lines of samples.jsonl) together, if answers have degrees. None: answers
            are right or wrong, which gives pass@k.
        vote_keys: a key for each answer of a problem, the same for equal answers, which gives maj@n. None: no vote.
        gold_fault: explains why a gold record cannot be used; None if it can.
        needs_prompt: the score depends on the item's prompt, such as on the options in it.
        is_unfinished: given a gold record and a right answer, returns whether that leaves a computation to its reader,
            which a grade lets pass and a reward does not. None: no answer does.
    """

    name: str
    sampling: Sampling
    score: Scorer
    metrics: Callable[[Sequence[Mapping[str, Any]]], dict[str, float]] | None = None
    vote_keys: Callable[[Sequence[str]], list[int]] | None = None
    gold_fault: Callable[[Mapping[str, Any]], str | None] = reference_fault
    needs_prompt: bool = False
    is_unfinished: Callable[[Mapping[str, Any], str], bool] | None = None


def _reference(gold: Mapping[str, Any]) -> Any:
    value = gold.get("reference") if gold.get("reference") is not None else gold.get("answer")
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def format_outcome(text: str, finish_reason: str) -> Outcome | None:
    """Return why a completion has no answer to compare, or None if it is well-formed.

    >>> format_outcome("<think>so far", "length")
    'cut off'
    >>> format_outcome("It is 7.", "stop")
    'no answer'
    """
    if finish_reason == "error":
        return "error"
    parsed = tags.parse(text)
    if parsed.well_formed:
        return None
    if finish_reason == "length":
        return "cut off"
    return "malformed" if parsed.answer else "no answer"


def score_by(
    text: str,
    gold: Mapping[str, Any],
    finish_reason: str,
    *,
    compare: Callable[[str, str], Verdict],
    lenient: Callable[[str], list[str]],
    scorer: str,
) -> Score:
    """Score with a comparison of two answers.

    Args:
        compare: reference, answer → verdict.
        lenient: the answers that a completion may be taken to give when its format is forgiven; the first that is
            equal to the reference makes it right.
    """
    outcome = format_outcome(text, finish_reason)
    if outcome == "error":
        return Score(False, 0.0, "error", None, False, scorer)
    if fault := reference_fault(gold):
        answer = tags.parse(text).answer if outcome is None else None
        return Score(None, None, outcome or "not scored", answer, None, scorer, fault)
    reference = reference_of(gold)
    if outcome is None:
        answer = tags.parse(text).answer or ""
        verdict = compare(reference, answer)
        outcome = verdict.outcome
    else:
        answer, verdict = None, Verdict(False)
    candidates = [] if verdict.equal else [each for each in lenient(text) if each != answer]
    right = answer if verdict.equal else next((each for each in candidates if compare(reference, each).equal), None)
    stated = right or answer or next(iter(candidates), None)
    return Score(verdict.equal, float(verdict.equal), outcome, answer, right is not None, scorer, verdict.note, stated)


def score_of(verdict: Verdict, malformed: Outcome | None, answer: str | None, scorer: str) -> Score:
    """Score by one verdict, which is the lenient one of a completion that is malformed (see `format_outcome`)."""
    strict = malformed is None and verdict.equal
    extracted = answer if malformed is None else None
    return Score(
        strict, float(strict), malformed or verdict.outcome, extracted, verdict.equal, scorer, verdict.note, answer
    )


def keys_of_equal(
    answers: Sequence[str], *, compare: Callable[[str, str], Verdict], most_unclear: int | None = None
) -> list[int]:
    """Return a number for each answer, the same for equal answers. The effort is bounded, see `_COMPARED`.

    Args:
        most_unclear: comparisons that may end with a note, if those take long. None: any number.
    """
    first: list[str] = []
    numbers: dict[str, int] = {}
    left, unclear = _COMPARED, 0
    for answer in answers:
        if (text := " ".join(answer.split())) in numbers:
            continue
        for number, other in enumerate(first):
            if left <= 0 or (most_unclear is not None and unclear >= most_unclear):
                break
            verdict = compare(other, answer)
            left, unclear = left - 1, unclear + bool(verdict.note)
            if verdict.equal:
                numbers[text] = number
                break
        if text not in numbers:
            numbers[text] = len(first)
            first.append(answer)
    return [numbers[" ".join(answer.split())] for answer in answers]
