"""`<think>…</think> <answer>…</answer>`: rendered, parsed and checked here and nowhere else.

Training renders examples with `render`, engines stop at `STOP`, scoring and the web page read completions with `parse`,
so there is a single definition of a well-formed completion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

TEMPLATE = "<think>{think}</think> <answer>{answer}</answer>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
STOP = TAGS[3]
INSTRUCTION = (
    "First think step by step inside <think> and </think>, "
    "then give only the final answer inside <answer> and </answer>."
)
"""The instruction for a model that was not tuned for the format, so that a comparison with it is fair."""

_ANY_TAG = re.compile("|".join(TAGS))
# Boxes and braces; an escaped brace is text, not structure.
_BRACES = re.compile(r"\\boxed\{|\\(?!\\boxed\{)[^b]|[{}]")


def valid_text(text: str) -> str:
    """Return the text with each half of a surrogate pair, which JSON can smuggle in, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class Parsed:
    """A completion taken apart. `problem` is None exactly when it is well-formed, else a short reason."""

    think: str | None
    answer: str | None
    problem: str | None

    @property
    def well_formed(self) -> bool:
        return self.problem is None


def render(think: str, answer: str, template: str = TEMPLATE) -> str:
    """Render the assistant's text for one example.

    >>> render("1+1 is 2.", "2")
    '<think>1+1 is 2.</think> <answer>2</answer>'
    """
    # str.format would trip over braces in LaTeX, and replacing twice over one in the thought: split once instead.
    head, middle, tail = split_template(template)
    return head + think + middle + answer + tail


def split_template(template: str) -> tuple[str, str, str]:
    """Return the parts of a template before the thought, between thought and answer, and after the answer."""
    head, _, rest = template.partition("{think}")
    middle, _, tail = rest.partition("{answer}")
    return head, middle, tail


def parse(text: str) -> Parsed:
    """Take a completion apart. Thought and answer are returned (stripped) wherever they can be told, also from a
    malformed completion, so that lenient scoring and the page can still show them.

    Well-formed means: each tag once, in order, only white space outside them, an answer that is not blank.

    >>> parse("<think>a</think> <answer> 7 </answer>")
    Parsed(think='a', answer='7', problem=None)
    >>> parse("<think>a</think> 7").problem
    'no <answer>'
    """
    return Parsed(_between(text, "<think>", "</think>"), _between(text, "<answer>", "</answer>"), _problem(text))


def _problem(text: str) -> str | None:
    found = list(_ANY_TAG.finditer(text))
    names = [match.group() for match in found]
    for tag in TAGS:
        if names.count(tag) != 1:
            return f"{'no' if tag not in names else 'more than one'} {tag}"
    if names != list(TAGS):
        return "tags out of order"
    open_think, close_think, open_answer, close_answer = found
    outside = text[: open_think.start()] + text[close_think.end() : open_answer.start()] + text[close_answer.end() :]
    if outside.strip():
        return "text outside the tags"
    if not text[open_answer.end() : close_answer.start()].strip():
        return "blank answer"
    return None


def _between(text: str, start: str, end: str) -> str | None:
    """Return the text of the last such element; an unclosed one runs to the end of the text."""
    at = text.rfind(start)
    if at < 0:
        return None
    inner = text[at + len(start) :]
    return inner.partition(end)[0].strip()


def answer_part(text: str) -> str:
    """Return a completion without its thought: the answer in its tags, else all that follows the thought; of a thought
    without an end, nothing.

    >>> answer_part("<think>a</think> <answer>7</answer>"), answer_part("a</think> It is 7."), answer_part("It is 7.")
    ('7', 'It is 7.', 'It is 7.')
    """
    if (answer := parse(text).answer) is not None:
        return answer
    _, ended, rest = text.rpartition("</think>")
    return rest.strip() if ended or "<think>" not in text else ""


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last balanced `\boxed{…}`, or None.

    >>> last_boxed(r"\boxed{1} so \boxed{\frac{3}{4}}")
    '\\frac{3}{4}'
    """
    start, end = max(_balanced_boxes(text), default=(0, -1))
    return text[start:end].strip() if end >= 0 else None


def boxes(text: str) -> list[tuple[int, int]]:
    r"""Return begin and end of the content of each balanced `\boxed{…}`, in order; of nested boxes, the outer one.

    >>> boxes(r"\boxed{1} or \boxed{2}")
    [(7, 8), (20, 21)]
    """
    outer: list[tuple[int, int]] = []
    for start, end in sorted(_balanced_boxes(text)):
        if not outer or start > outer[-1][1]:
            outer.append((start, end))
    return outer


def _balanced_boxes(text: str) -> Iterator[tuple[int, int]]:
    opened: list[int] = []
    for match in _BRACES.finditer(text):  # once over the text: a model may write a million of them
        if match.group() == "}":
            start = opened.pop() if opened else -1
            if start >= 0:
                yield start, match.start()
        elif match.group() in ("{", r"\boxed{"):
            opened.append(-1 if match.group() == "{" else match.end())


Part = Literal["think", "answer", "outside", "tag"]


class TagStream:
    """Splits streamed text into parts as it arrives, holding back only text that may still become a tag."""

    def __init__(self) -> None:
        self._pending = ""
        self._part: Part = "outside"

    def feed(self, text: str) -> Iterator[tuple[Part, str]]:
        """Yield `(part, text)` for all that is certain now; tags come as their own part `"tag"`."""
        self._pending += text
        while match := _ANY_TAG.search(self._pending):
            yield from self._emit(self._pending[: match.start()])
            self._pending = self._pending[match.end() :]
            yield "tag", match.group()
            opened: dict[str, Part] = {"<think>": "think", "<answer>": "answer"}
            self._part = opened.get(match.group(), "outside")
        keep = _possible_tag_suffix(self._pending)
        yield from self._emit(self._pending[: len(self._pending) - keep])
        self._pending = self._pending[len(self._pending) - keep :]

    def flush(self) -> Iterator[tuple[Part, str]]:
        """Yield the text held back, at the end of the stream."""
        yield from self._emit(self._pending)
        self._pending = ""

    def _emit(self, text: str) -> Iterator[tuple[Part, str]]:
        if text:
            yield self._part, text


def _possible_tag_suffix(text: str) -> int:
    """Return how many last characters could be the beginning of a tag."""
    start = text.rfind("<", max(0, len(text) - max(map(len, TAGS)) + 1))
    return len(text) - start if start >= 0 and any(tag.startswith(text[start:]) for tag in TAGS) else 0
