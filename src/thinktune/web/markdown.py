"""A completion as messages of a chat: the thought folded away, the answer rendered, and no tag of it becomes HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from thinktune import tags
from thinktune.web.texts import Words

LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]
"""How formulas are marked in what models write."""

# Fenced blocks, also one that is still being written, and code within a line: there, Markdown escapes by itself.
_CODE = re.compile(
    r"(?:^|\n)[ ]{0,3}(`{3,})[^`\n]*\n.*?(?:\n[ ]{0,3}\1`*[ \t]*(?=\n|\Z)|\Z)|(?<!`)(`+)(?!`)[^\n]+?(?<!`)\2(?!`)",
    re.DOTALL,
)


def escaped(text: str) -> str:
    """Markdown in which HTML is text.

    >>> escaped("1 < 2 and `a<b>`: <script>")
    '1 &lt; 2 and `a<b>`: &lt;script>'
    """
    parts, at = [], 0
    for code in _CODE.finditer(text):
        parts += [_escape(text[at : code.start()]), code.group()]
        at = code.end()
    return "".join([*parts, _escape(text[at:])])


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def messages(question: str, answer: dict[str, Any] | None, words: Words) -> Iterator[dict[str, Any]]:
    """One turn: the question, and as much of the answer as there is."""
    yield {"role": "user", "content": escaped(question)}
    if answer is None:
        return
    yield from reply(answer, words)
    if remark := _remark(answer, words):
        yield {"role": "assistant", "content": f"*{escaped(remark)}*"}


def reply(answer: dict[str, Any], words: Words, *, thinking: bool = True) -> Iterator[dict[str, Any]]:
    """What a model wrote: thoughts as folded messages (or left out), the rest as Markdown."""
    running = answer["state"] == "running"
    parts = list(_parts(answer["text"], whole=not running))
    for number, (part, text) in enumerate(parts):
        if part != "think":
            yield {"role": "assistant", "content": escaped(text)}
        elif thinking:
            goes_on = running and number == len(parts) - 1
            facts = {"tokens": answer["think_tokens"], "seconds": answer["think_seconds"]}
            title = words("thinking" if goes_on else "thought", **facts)
            status = "pending" if goes_on else "done"
            yield {"role": "assistant", "content": escaped(text), "metadata": {"title": title, "status": status}}


def _parts(text: str, *, whole: bool) -> Iterator[tuple[tags.Part, str]]:
    """The parts of a completion, without tags and blank ones; what may still become a tag is left out."""
    stream = tags.TagStream()
    pieces = [*stream.feed(text), *(stream.flush() if whole else ())]
    for part, group in groupby(pieces, key=lambda piece: piece[0]):
        joined = "".join(piece for _, piece in group).strip()
        if part != "tag" and joined:
            yield part, joined


def _remark(answer: dict[str, Any], words: Words) -> str:
    if answer["state"] == "running":
        return ""
    if answer["state"] == "stopped":
        return words("stopped")
    if answer["error"]:
        return str(answer["error"])
    problem = tags.parse(answer["text"]).problem
    return words("malformed", problem=problem) if problem else ""
