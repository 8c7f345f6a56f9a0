r"""Mathematics: a reference answer and one that may be written differently.

Numbers (with or without a unit), words and equal strings are decided here, after `forms` has written both in one way;
everything else goes to math-verify, in a process that can be killed, because it hangs on some inputs (see `worker`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.tasks.base import TAIL, Score, Task, Verdict, score_by
from thinktune.tasks.forms import equal_quantities, normalise, quantity
from thinktune.tasks.worker import verify

_LONGEST = 1000  # characters of an answer worth a symbolic comparison; a final answer is a fraction of that
_DEEPEST = 20  # braces or parentheses in each other; parsers take exponential time over them
_NUMBER_IN_TEXT = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_WORDS = re.compile(r"[^\W\d_][^\W\d_'’-]*(?: [^\W\d_'’-]+)*")


@cache
def scorer_name() -> str:
    try:
        return f"thinktune math 2, math-verify {version('math-verify')}"
    except PackageNotFoundError:
        return "thinktune math 2, without math-verify"


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    return score_by(text, gold, finish_reason, compare=compare, lenient=lenient_answers, scorer=scorer_name())


def compare(reference: str, answer: str) -> Verdict:
    r"""Whether an answer equals the reference.

    >>> compare("1250", "$1,250.00").equal
    True
    >>> compare("3/4", r"\boxed{\frac{3}{4}}").equal
    True
    """
    if reference.strip() == answer.strip():
        return Verdict(True)
    if len(answer) > _LONGEST or not answer.strip():
        return Verdict(False, f"an answer of {len(answer)} characters is not compared" if answer.strip() else None)
    reference, answer = normalise(reference), normalise(answer)
    if _tight(reference) == _tight(answer):
        return Verdict(bool(answer))
    left, right = quantity(reference), quantity(answer)
    if left is not None and right is not None:
        return Verdict(equal_quantities(left, right))
    # To math-verify a word is a product of letters, so that anagrams are equal, and a set is an interval.
    if _WORDS.fullmatch(_untexted(reference)) and _WORDS.fullmatch(_untexted(answer)):
        return Verdict(_untexted(reference).casefold() == _untexted(answer).casefold())
    if not answer or (_is_set(reference) != _is_set(answer) and _is_bracketed(reference) and _is_bracketed(answer)):
        return Verdict(False)
    if _depth(answer) > _DEEPEST:
        return Verdict(False, "an answer nested so deeply is not compared")
    return verify(reference, answer)


def _depth(text: str) -> int:
    return max(accumulate((char in "({[") - (char in ")}]") for char in text), default=0)


def _tight(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _untexted(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1", text).strip()


def _is_set(text: str) -> bool:
    return text.startswith(r"\{") and text.endswith(r"\}")


def _is_bracketed(text: str) -> bool:
    return _is_set(text) or (text[:1] in "([" and text[-1:] in ")]")


def lenient_answers(text: str) -> list[str]:
    """Where the answer probably stands, the best guess first: the tags, the last box, the last number."""
    parsed = tags.parse(text)
    text = text[-TAIL:]
    said = (parsed.answer or tags.last_boxed(text) or "")[-TAIL:]
    candidates = [said, last_number(said) or last_number(text)]
    return [candidate for candidate in candidates if candidate]


def last_number(text: str) -> str | None:
    """The last number or simple fraction in a text.

    >>> last_number("So 3 x $1,200 = $3,600.")
    '3600'
    """
    found = _NUMBER_IN_TEXT.findall(text)
    return found[-1].replace(",", "").replace("$", "") if found else None


TASK = Task("math", Sampling(max_tokens=1024), score)
