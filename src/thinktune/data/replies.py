r"""Replies taken apart into thought, solution and final answer.

Marks of a thought that are understood:

    <|begin_of_thought|>…<|end_of_thought|> <|begin_of_solution|>…<|end_of_solution|>     (Sky-T1, Bespoke-Stratos)
    <think>…</think> …                                                                    (DeepSeek-R1, QwQ, Qwen3)
    <think>…</think> <answer>…</answer>                                                   (ours)

The opening mark may be missing where the closing one has a line's end beside it: chat templates that open the thought
themselves leave replies that begin inside it. `#### 42` as the last line is GSM8K's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from thinktune import tags
from thinktune.boxed import boxed_answer
from thinktune.data.examples import RowFault

_MARKS = ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>")
ANY_MARK = re.compile("|".join(re.escape(mark) for mark in (*_MARKS, *tags.TAGS)))
"""What may stand neither in a thought nor in an answer."""

_MISSING = ("no thought", "thought not closed", "no answer", "answer not closed")
_ON_A_LINES_END = re.compile(r"\n[ \t]*\Z|\A[ \t]*(?:\r?\n|\Z)")
_HEADING = re.compile(r"^####(?!#)[ \t]*([^\n]*)", re.MULTILINE)
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K notes the steps of its authors' calculator: 48/2=<<48/2=24>>24


def split_reply(reply: str) -> tuple[str | None, str]:
    """Split a reply into thought and solution; the thought is None if there are no marks.

    Raises:
        RowFault: marks that are missing, doubled or out of order.
    """
    if any(mark in reply for mark in _MARKS):
        return _split_at(reply, _MARKS)
    if "<answer>" in reply or "</answer>" in reply:
        return _split_at(reply, tags.TAGS)
    if "<think>" not in reply and "</think>" not in reply:
        return None, reply.strip()
    before, opening, rest = _opened(reply, "<think>", "</think>").partition("<think>")
    think, closing, solution = rest.partition("</think>")
    if not opening or not closing or before.strip():
        raise RowFault("thought not closed" if opening and not closing else "stray or nested tags")
    return think, solution.strip()


def _opened(reply: str, opening: str, closing: str) -> str:
    """Put back the opening mark that a chat template wrote in place of the model.

    A closing mark in the middle of a line is as likely prose about it, and stays a fault.
    """
    if opening in reply or reply.count(closing) != 1:
        return reply
    before, _, after = reply.partition(closing)
    return opening + reply if _ON_A_LINES_END.search(before) or _ON_A_LINES_END.match(after) else reply


def _split_at(reply: str, marks: Sequence[str]) -> tuple[str, str]:
    """Split at four marks into thought and solution, with nothing but white space outside."""
    reply = _opened(reply, marks[0], marks[1])
    found = [match.group() for match in re.finditer("|".join(re.escape(mark) for mark in marks), reply)]
    for mark, reason in zip(marks, _MISSING, strict=True):
        if mark not in found:
            raise RowFault(reason)
    if found != list(marks):
        raise RowFault("stray or nested tags")
    pieces = re.split("|".join(re.escape(mark) for mark in marks), reply)
    before, think, between, solution, after = pieces
    if before.strip() or between.strip() or after.strip():
        raise RowFault("text outside the tags")
    return think, solution.strip()


def split_gsm8k(answer: str) -> tuple[str, str] | None:
    r"""Split GSM8K's answer into worked solution and final answer; None unless `#### …` is the last line and the only
    such one.

    >>> split_gsm8k("2+2=<<2+2=4>>4\n#### 4")
    ('2+2=4', '4')
    """
    found = list(_HEADING.finditer(answer))
    if len(found) != 1 or answer[found[0].end() :].strip() or ANY_MARK.search(answer):
        return None  # headings of Markdown, or a reply with a marked thought
    return _CALCULATOR.sub("", answer[: found[0].start()]).strip(), found[0][1].strip()


def extract_answer(solution: str, how: str) -> str:
    r"""Extract the answer of a solution: its boxes, or (`how` is solution, or no box) all of it.

    >>> extract_answer(r"The roots are $\boxed{2}$ and $\boxed{3}$.", "boxed")
    '2, 3'
    """
    boxed = boxed_answer(solution) if how == "boxed" else None
    return solution.strip() if boxed is None else boxed
