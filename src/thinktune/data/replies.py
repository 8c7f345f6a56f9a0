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
from itertools import pairwise

from thinktune import tags
from thinktune.data.examples import RowFault

_MARKS = ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>")
ANY_MARK = re.compile("|".join(re.escape(mark) for mark in (*_MARKS, *tags.TAGS)))
"""What may stand neither in a thought nor in an answer."""

_MISSING = ("no thought", "thought not closed", "no answer", "answer not closed")
_ON_A_LINES_END = re.compile(r"\n[ \t]*\Z|\A[ \t]*(?:\r?\n|\Z)")
_HEADING = re.compile(r"^####(?!#)[ \t]*([^\n]*)", re.MULTILINE)
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K notes the steps of its authors' calculator: 48/2=<<48/2=24>>24
# The text between boxes that are one answer together, once dollars and the like are gone.
_JOINT = re.compile(r"[\s,;、，；.]*(?:and|or|和|或者?|及|与)?[\s,;、，；]*", re.IGNORECASE)
_DRESS = re.compile(r"\\\(|\\\)|\\\[|\\\]|\\text\{\s*(and|or)\s*\}|\\q?quad|\\[,;:! ]|[$*]")
# The beginning of a part of an exercise: (a), b), 1., ii), Part 2, 第一问.
_PART = re.compile(
    r"^[\s>*#-]*(?:\(?(?:[a-h]|[ivx]{1,4}|\d{1,2})[).:]|part\s+\w{1,3}\b|第\w{1,2}[问题]|[（(]\w{1,3}[)）])", re.I
)


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

    Boxes that name one answer together ("\boxed{2} and \boxed{3}", parts (a) and (b)) are all of it; of others, it is
    the last.

    >>> extract_answer(r"So it is \boxed{\frac{3}{4}}.", "boxed")
    '\\frac{3}{4}'
    >>> extract_answer(r"The roots are $\boxed{2}$ and $\boxed{3}$.", "boxed")
    '2, 3'
    """
    boxes = tags.boxes(solution) if how == "boxed" else []
    if not boxes:
        return solution.strip()
    contents = _contents(solution, boxes)
    if len(set(contents)) > 1 and _belong_together(solution, boxes):
        return ", ".join(dict.fromkeys(contents))
    return tags.last_boxed(solution) or ""


def leaves_boxes_out(solution: str, how: str) -> bool:
    r"""Return whether a box holds anything else than the answer: a step, a part, or a discarded result.

    >>> leaves_boxes_out(r"First \boxed{1}? No. It is \boxed{2}.", "boxed")
    True
    """
    boxes = tags.boxes(solution) if how == "boxed" else []
    return len(set(_contents(solution, boxes))) > 1 and not _belong_together(solution, boxes)


def _contents(solution: str, boxes: Sequence[tuple[int, int]]) -> list[str]:
    return [content for start, end in boxes if (content := solution[start:end].strip())]


def _belong_together(solution: str, boxes: Sequence[tuple[int, int]]) -> bool:
    between = [solution[end + 1 : start] for (_, end), (start, _) in pairwise(boxes)]
    between = [_DRESS.sub(lambda cut: cut[1] or "", text.removesuffix("\\boxed{")) for text in between]
    if all(_JOINT.fullmatch(text) for text in between):
        return True
    lines = [solution[solution.rfind("\n", 0, start) + 1 : start] for start, _ in boxes]
    return len(set(lines)) == len(lines) and all(_PART.match(line) for line in lines)
