"""Mathematics: a reference answer and one that may be written differently.

Numbers and equal strings are decided here; everything else goes to math-verify, in a process that can be killed,
because it hangs on some inputs (see `worker`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.tasks.base import Score, Task, Verdict, score_by
from thinktune.tasks.worker import verify

_LONGEST = 1000  # characters of an answer worth a symbolic comparison; a final answer is a fraction of that
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_NUMBER_IN_TEXT = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"([-+]?)\\[dt]?frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d))|([-+]?\d+)/(\d+)")


@cache
def scorer_name() -> str:
    try:
        return f"thinktune math 1, math-verify {version('math-verify')}"
    except PackageNotFoundError:
        return "thinktune math 1, without math-verify"


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    return score_by(text, gold, finish_reason, compare=compare, lenient=lenient_answers, scorer=scorer_name())


def compare(reference: str, answer: str) -> Verdict:
    r"""Whether an answer equals the reference.

    >>> compare("1250", "$1,250.00").equal
    True
    >>> compare("3/4", r"\boxed{\frac{3}{4}}").equal
    True
    """
    reference, answer = normalise(reference), normalise(answer)
    if reference == answer:
        return Verdict(True)
    left, right = as_number(reference), as_number(answer)
    if left is not None and right is not None:
        return Verdict(left == right)
    if not answer or len(answer) > _LONGEST:
        return Verdict(False, f"an answer of {len(answer)} characters is not compared" if answer else None)
    return verify(reference, answer)


def lenient_answers(text: str) -> list[str]:
    """Where the answer probably stands, the best guess first: the tags, the last box, the last number."""
    parsed = tags.parse(text)
    said = parsed.answer or tags.last_boxed(text)
    candidates = [said, last_number(said or "") or last_number(text)]
    return [candidate for candidate in candidates if candidate]


def last_number(text: str) -> str | None:
    """The last number or simple fraction in a text.

    >>> last_number("So 3 x $1,200 = $3,600.")
    '3600'
    """
    found = _NUMBER_IN_TEXT.findall(text)
    return normalise(found[-1]) if found else None


def normalise(answer: str) -> str:
    """Take off what does not change an answer: a box, dollars, thousands separators, a last full stop, spaces."""
    text = answer.strip()
    boxed = tags.last_boxed(text)
    if boxed is not None and text.startswith(r"\boxed{") and text.endswith("}"):
        text = boxed
    for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if len(text) > len(start) + len(end) and text.startswith(start) and text.endswith(end):
            text = text[len(start) : -len(end)]
    text = text.strip().removesuffix(".").replace(r"\$", "$").replace("$", "").replace(r"\!", "")
    return _THOUSANDS.sub("", text).strip()


def as_number(text: str) -> Fraction | None:
    """A normalised answer as an exact number, if it is a plain one: an integer, a decimal or a simple fraction."""
    if len(text) > 100:  # exact arithmetic on longer ones is no longer quick
        return None
    if _NUMBER.fullmatch(text):
        return Fraction(text)
    match = _FRACTION.fullmatch(text)
    if not match:
        return None
    sign, *parts = match.groups()
    over, under = (part for part in parts if part is not None)
    return Fraction(int(over), int(under)) * (-1 if sign == "-" else 1) if int(under) else None


TASK = Task("math", Sampling(max_tokens=1024), score)
