"""Rows, examples, and the reasons for which rows are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thinktune import tags

Message = dict[str, str]


@dataclass(frozen=True)
class Row:
    """A raw record: its 1-based number in its source and its fields; or `fault` if it could not even be read."""

    number: int
    fields: dict[str, Any]
    fault: str = ""


@dataclass(frozen=True)
class Parts:
    """The parts of a row as its format separates them, before marks are read and answers extracted.

    Attributes:
        context: turns before the reply, `{"role", "content"}`; the last is the user's, the first may be the system's.
            An assistant's may keep its thought apart, under `think`.
        reply: the assistant's text, with its thought between marks, unless `think` holds it.
        think: the thought, if the row has a field for it.
    """

    context: Sequence[Message]
    reply: str
    think: str | None = None


@dataclass(frozen=True)
class Example:
    """One thing to learn: after these messages, this thought and this answer.

    Attributes:
        messages: context turns, the last is the user's; a system message first only if data.system asks for it.
        row: 1-based number of the row it came from, in `source`.
        boxes_left_out: whether the solution has boxes with other contents than the answer.
    """

    messages: tuple[Message, ...]
    think: str
    answer: str
    row: int
    source: str
    boxes_left_out: bool = False

    @property
    def multi_turn(self) -> bool:
        return sum(message["role"] == "user" for message in self.messages) > 1

    def reply(self, template: str) -> str:
        """Return the assistant's text as it is trained, without the end-of-turn token."""
        return tags.render(self.think, self.answer, template)


class RowFault(Exception):
    """A row that cannot become an example. The message is the reason it is counted under: keep it free of particulars
    of the row, so that equal faults add up."""
