"""Multiple choice: one letter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.tasks.base import Score, Task, Verdict, score_by

SCORER = "thinktune choice 1"
# A letter by itself, or before a mark that cuts it off from the option's text: `B`, `(B)`, `B. 12`, `B：十二`.
_LETTER = re.compile(r"[(（\[]?([A-Z])[)）\]]?(?:\s*[.:,;)。．：、，；].*)?", re.DOTALL)
_STATED = re.compile(
    r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*[(（]?([A-Z])\b(?!['’])|答案\s*[是为：:]*\s*[(（]?([A-Z])"
)


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    return score_by(text, gold, finish_reason, compare=compare, lenient=_lenient_answers, scorer=SCORER)


def compare(reference: str, answer: str) -> Verdict:
    return Verdict(letter(answer) is not None and letter(answer) == letter(reference))


def letter(answer: str) -> str | None:
    r"""The letter that an answer names, or None. A letter that begins a sentence is not one.

    >>> letter("(B) 12 apples"), letter(r"\boxed{\text{C}}"), letter("A train leaves")
    ('B', 'C', None)
    """
    text = tags.last_boxed(answer) or answer
    text = re.sub(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}", r"\1", text).strip(" $*\n\t")
    if re.match(r"[(（\[][A-Z][)）\]]", text):
        return text[1]
    match = _LETTER.fullmatch(text)
    return match[1] if match else text.upper() if re.fullmatch(r"[a-z]", text) else None


def _lenient_answers(text: str) -> list[str]:
    parsed = tags.parse(text)
    stated = [first or second for first, second in _STATED.findall(parsed.answer or text)]
    candidates = [parsed.answer or tags.last_boxed(text) or text, *stated[-1:]]
    return [candidate for candidate in candidates if letter(candidate)][:1]


TASK = Task("choice", Sampling(max_tokens=1024), score)
