"""Multiple choice: one letter, or several if the reference has several (see `letters`), or the text of an option if the
gold record has the options (see `options`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from string import ascii_uppercase
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.scoring.base import TAIL, Score, Task, Verdict, keys_of_equal, reference_fault, reference_of, score_by
from thinktune.scoring.choice_answers.letters import ALPHABET, Reading, read_letters, stated_last
from thinktune.scoring.choice_answers.options import Options, as_text, labelled_text, letter_of_text, options_of

SCORER = "thinktune choice 3"


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    if reference_fault(gold):
        return score_by(text, gold, finish_reason, compare=compare, lenient=lambda _: [], scorer=SCORER)
    options, alphabet = options_of(gold), _alphabet(gold)

    def compare_one(reference: str, answer: str) -> Verdict:
        return compare(reference, answer, options)

    def lenient(text: str) -> list[str]:
        return _lenient_answers(text, options, alphabet)

    return score_by(text, gold, finish_reason, compare=compare_one, lenient=lenient, scorer=SCORER)


def compare(reference: str, answer: str, options: Options | None = None) -> Verdict:
    """Return whether an answer names the letters that the reference names, all of them and no other."""
    wanted = reference_letters(reference, options)
    if wanted is None:
        return Verdict(False, "the reference names no letter")
    reading = _read(answer, options or {}, _widest(wanted, options), len(wanted) > 1)
    return Verdict(reading.letters == wanted, reading.note)


def letter(answer: str) -> str | None:
    """Read the letters that an answer names, if the options are unknown; see `letters.read_letters`."""
    return read_letters(answer).letters


def reference_letters(reference: str, options: Options | None = None) -> str | None:
    """Read the letters that a reference names, in any order, or whose option's text it is.

    >>> reference_letters("CA"), reference_letters("(b)"), reference_letters("K"), reference_letters("1")
    ('AC', 'B', 'K', None)
    """
    text = reference.strip()
    if text.isascii() and text.isalpha() and text.isupper() and len(set(text)) == len(text):
        return "".join(sorted(text))
    return _read(reference, options or {}, "".join(options or ()) or ascii_uppercase, True).letters


def gold_fault(gold: Mapping[str, Any]) -> str | None:
    """Explain why no answer could be right by a gold record; None if one can."""
    if fault := reference_fault(gold):
        return fault
    reference, options = reference_of(gold), options_of(gold)
    letters = reference_letters(reference, options)
    if letters is None:
        return f"the reference {reference[:40]!r} names no letter of an option, and is no option's text"
    if options and not set(letters) <= options.keys():
        return f"the reference {letters} is none of the options {', '.join(options)}"
    return None


def _alphabet(gold: Mapping[str, Any]) -> str:
    options = options_of(gold)
    return _widest(reference_letters(reference_of(gold), options) or "", options)


def _widest(wanted: str, options: Options | None) -> str:
    """Return the letters that options may have: the known ones, else as far as J, or as far as the reference goes."""
    if options:
        return "".join(options)
    last = max(wanted, default="A")
    return ALPHABET if last <= ALPHABET[-1] else ascii_uppercase[: ascii_uppercase.index(last) + 1]


def _read(answer: str, options: Options, alphabet: str, any_order: bool) -> Reading:
    if options:
        reading = _by_text(answer, options)
        if reading is not None:
            return reading
    return _read_cached(answer, alphabet, any_order)


def _by_text(answer: str, options: Options) -> Reading | None:
    """Read an answer that is an option's text, with or without its letter before it; None if it is neither."""
    said = as_text(answer)
    boxed = tags.last_boxed(answer)
    if len(said) > 1 or said.upper() not in options:  # a letter is a letter first, whatever an option's text is
        for text in (answer, boxed):
            if text is not None and (found := letter_of_text(text, options)):
                return Reading(found)
    text = labelled_text(boxed or answer, options)
    if text is None:
        return None
    first = as_text(boxed or answer, fold=False).removeprefix("(").lstrip()[:1].upper()
    own = options.get(first)
    if own is not None and as_text(own) == as_text(text):
        return Reading(first)
    other = letter_of_text(text, options) if len(as_text(text)) > 1 or as_text(text).isdigit() else None
    if own is not None and other and other != first:
        return Reading(None, f"names {first} and says what {other} says")
    return None


@lru_cache(maxsize=4096)
def _read_cached(answer: str, alphabet: str, any_order: bool) -> Reading:
    return read_letters(answer, alphabet, any_order=any_order)


def _lenient_answers(text: str, options: Options, alphabet: str) -> list[str]:
    """Return the first readable answer of a completion: its tag, its last box, its last statement, its last line."""
    answer = tags.parse(text).answer
    tail = (answer or text.rpartition("</think>")[2] or text)[-TAIL:]
    boxed = tags.last_boxed(tail)
    lines = tail.split("\n")
    for candidate in (
        tail,
        boxed,
        stated_last(tail, alphabet),
        next((line for line in reversed(lines) if line.strip()), ""),
    ):
        if candidate and (letters := _read(candidate, options, alphabet, False).letters):
            return [letters]
    return []


TASK = Task(
    "choice",
    Sampling(max_tokens=1024),
    score,
    vote_keys=partial(keys_of_equal, compare=compare),
    gold_fault=gold_fault,
    needs_prompt=True,
)
