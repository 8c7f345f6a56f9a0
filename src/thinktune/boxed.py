r"""The answer that a text states in `\boxed{…}`: one box, or those that name an answer together."""

from __future__ import annotations

import re

from thinktune import tags

# The text between boxes that are one answer together, once dollars and the like are gone: x = [2] or x = [3].
_JOINT = re.compile(
    r"[\s,;、，；.]*(?:and|or|和|或者?|及|与)?[\s,;、，；]*"
    r"|\s*(?:[,;、，；]|[,;]?\s*(?:and|or|和|或者?|及|与))\s*[A-Za-z](?:_\{?\d\}?)?\s*=\s*",
    re.IGNORECASE,
)
_DRESS = re.compile(r"\\\(|\\\)|\\\[|\\\]|\\text\{\s*(and|or)\s*\}|\\q?quad|\\[,;:! ]|[$*]")
# The beginning of a part of an exercise: (a), b), 1., ii), Part 2, 第一问.
_PART = re.compile(
    r"^[\s>*#-]*(?:\(?(?:[a-h]|[ivx]{1,4}|\d{1,2})[).:]|part\s+\w{1,3}\b|第\w{1,2}[问题]|[（(]\w{1,3}[)）])", re.I
)


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last boxes that name one answer together ("\boxed{2} and \boxed{3}", parts (a) and
    (b)), else of the last one; None without a box.

    >>> boxed_answer(r"So it is \boxed{\frac{3}{4}}."), boxed_answer("It is 7.")
    ('\\frac{3}{4}', None)
    >>> boxed_answer(r"Not \boxed{1}: the roots are $\boxed{2}$ and $\boxed{3}$.")
    '2, 3'
    """
    contents = _together(text)
    return ", ".join(dict.fromkeys(contents)) if len(set(contents)) > 1 else tags.last_boxed(text)


def leaves_boxes_out(text: str) -> bool:
    r"""Return whether a box holds anything else than the answer: a step, a part, or a discarded result.

    >>> leaves_boxes_out(r"First \boxed{1}? No. It is \boxed{2}.")
    True
    """
    stated = _together(text)
    return bool({text[start:end].strip() for start, end in tags.boxes(text)} - {*stated, ""})


def _together(text: str) -> list[str]:
    """Return the contents of the last boxes that belong together, blank ones left out."""
    boxes = tags.boxes(text)
    lines = [text[text.rfind("\n", 0, start) + 1 : start] for start, _ in boxes]
    first = len(boxes) - 1
    if len(set(lines)) == len(lines) and all(_PART.match(line) for line in lines):
        first = 0
    while first > 0 and _JOINT.fullmatch(_between(text, boxes[first - 1], boxes[first])):
        first -= 1
    return [content for start, end in boxes[max(first, 0) :] if (content := text[start:end].strip())]


def _between(text: str, one: tuple[int, int], other: tuple[int, int]) -> str:
    between = text[one[1] + 1 : other[0]].removesuffix("\\boxed{")
    return _DRESS.sub(lambda cut: cut[1] or "", between)
