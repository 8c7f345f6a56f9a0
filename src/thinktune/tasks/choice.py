"""Multiple choice: one letter, or several where the reference has several."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.tasks.base import FULL_WIDTH, TAIL, Score, Task, Verdict, score_by

SCORER = "thinktune choice 2"
_HALF_WIDTH = str.maketrans(FULL_WIDTH | {"\u3000": " ", "。": "."})
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf|bf|rm)\b\s?|\$|\*\*|__|`|\\[()\[\]!,; ]")
_LETTERS = r"[A-J](?:\s?(?:,|、|and|和|&|;)?\s?[A-J])*"
# A letter by itself or before a mark that cuts it off from the option's text: `B`, `(B)`, `B. 12`, `B：十二`.
_BARE = re.compile(rf"\(?({_LETTERS})\)?|\[({_LETTERS})\]|([a-j])|\(([a-j])\)|([a-j])[.)]")
_LABEL = re.compile(r"(?:\(([A-Ja-j])\)|\[([A-J])\]|([A-J])(?=\s?[.:)、]))[\s.:)、-]*\S", re.DOTALL)
_NAMED = re.compile(
    rf"(?:option|choice|选项?|选择|故选|应选|应?该选)\s?:?\s?\(?({_LETTERS})\)?\s?\.?"
    rf"|\(?({_LETTERS})\)?\s?(?:选?项|选项|is (?:the )?(?:correct|right).{{0,40}})\.?",
    re.I,
)
# Where a text says that it gives the answer; what follows the letter must show that it was not the start of a word.
_STATED = re.compile(
    r"(?i:\b(?:answer|option|choice)\s?(?:is|:|is:|should be|would be)?\s?(?:option|choice)?"
    r"|答案\s?(?:应该|应)?[是为选:]?:?\s?(?:选项|选)?|[故应]选|正确的?(?:选项|答案)[是为:]?)"
    rf"\s?:?\s?(?:\(({_LETTERS})\)"
    rf"|({_LETTERS})(?=\s?(?:$|[^\w\s'’]|[项选因]|because\b|since\b|as\b|which\b|with\b)))"
)
_SHORT = 2000  # characters of an answer that may be a sentence naming the letter


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    return score_by(text, gold, finish_reason, compare=compare, lenient=_lenient_answers, scorer=SCORER)


def compare(reference: str, answer: str) -> Verdict:
    return Verdict(letter(answer) is not None and letter(answer) == letter(reference))


def letter(answer: str) -> str | None:
    r"""The letter that an answer names (several in the order of the alphabet), or None. A letter of the prose is none.

    >>> letter("(B) 12 apples"), letter(r"\boxed{\text{C}}"), letter("The answer is D."), letter("故选ＡＣ")
    ('B', 'C', 'D', 'AC')
    >>> letter("A train leaves"), letter("Plan B failed"), letter("A. is wrong, B. is right")
    (None, None, None)
    """
    text = answer.strip()
    if len(text) > _SHORT:
        return None
    boxed = tags.last_boxed(text)
    text = _MARKUP.sub("", (text if boxed is None else boxed).translate(_HALF_WIDTH))
    text = " ".join(text.replace("{", " ").replace("}", " ").split()).strip(" \"'").removesuffix(".").strip()
    for pattern in (_BARE, _NAMED):
        if match := pattern.fullmatch(text):
            return _sorted(next(group for group in match.groups() if group))
    stated = {_sorted(first or second) for first, second in _STATED.findall(text)}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    labels = re.findall(r"(?<![A-Za-z])\(?[A-J](?:\)|[.:、])", text)
    match = _LABEL.match(text)
    return _sorted(next(group for group in match.groups() if group)) if match and len(set(labels)) <= 1 else None


def _sorted(letters: str) -> str | None:
    found = re.findall(r"[A-J]", letters if len(letters) > 1 and re.search("[A-J]", letters) else letters.upper())
    # `BAD` and `ACE` are words before they are lists of options: glued letters count in rising order only.
    return None if letters.isalpha() and letters.isascii() and found != sorted(found) else "".join(sorted(set(found)))


def _lenient_answers(text: str) -> list[str]:
    answer, tail = tags.parse(text).answer, text[-TAIL:]
    said = answer or tags.last_boxed(tail) or tail
    if letter(said):
        return [said]
    spaced = re.sub(r"\s+", " ", _MARKUP.sub("", (answer or tail)[-TAIL:].translate(_HALF_WIDTH)))
    stated = [first or second for first, second in _STATED.findall(spaced)]
    return stated[-1:]


TASK = Task("choice", Sampling(max_tokens=1024), score)
