"""The answers that a completion states outside of the format: in tags, in boxes, else as its last number."""

from __future__ import annotations

import re

from thinktune import tags
from thinktune.boxed import boxed_answer
from thinktune.scoring.base import TAIL
from thinktune.scoring.math_answers.last_number import last_number
from thinktune.scoring.math_answers.normalize import tight
from thinktune.scoring.math_answers.plain_text import is_prose


def lenient_answers(text: str) -> list[str]:
    r"""Return the probable answers: the tags, else the last box, else the last number; in prose its last number.

    What follows the thought comes first: a box in the thought counts if no other answer is stated behind it.

    >>> lenient_answers(r"<think>\boxed{7}</think> No, it is 8."), lenient_answers(r"x=\boxed{2} or x=\boxed{3}")
    (['8'], ['2, 3'])
    """
    parsed = tags.parse(text)
    text = text[-TAIL:]
    said = (parsed.answer or _boxed_after_thought(text) or "")[-TAIL:]
    candidates = [said, last_number(said) if is_prose(said) else None] if said else [last_number(text)]
    return [candidate for candidate in candidates if candidate]


def _boxed_after_thought(text: str) -> str | None:
    after, anywhere = tags.answer_part(text), boxed_answer(text)
    if not after or anywhere is None:
        return anywhere
    if (boxed := boxed_answer(after)) is not None:
        return boxed
    restated = re.search(rf"(?<![\w.]){re.escape(tight(anywhere))}(?!\w)", tight(after))
    if restated and not anywhere.isdecimal():
        return anywhere
    return last_number(after) or anywhere
