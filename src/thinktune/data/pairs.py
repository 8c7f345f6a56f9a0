"""Pairs of replies to the same prompt, the better and the worse one, for `method: dpo`.

Rows have `chosen` and `rejected`, each a text, a turn or a list of turns, and the prompt in `prompt`, `messages` or
`conversations`, or at the beginning of both lists. Replies are trained as they are written: one may be the worse by its
form alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from thinktune import tags
from thinktune.config import Format
from thinktune.data.examples import Example, Message, Parts, Row, RowFault
from thinktune.data.row_formats import check_encodable, choose_formats, context_of
from thinktune.data.tokens import Renders, Tokens

KEYS = frozenset({"chosen", "rejected"})
FORMATS = "prompt/chosen/rejected, messages/chosen/rejected, or chosen/rejected (two lists of turns that begin alike)"
COLUMNS = KEYS | {"prompt", "messages", "conversations", "system", "provenance"}
"""The columns that are read."""
_AT_ONCE = 64


@dataclass(frozen=True)
class Pair:
    """Two replies to the same messages."""

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    row: int
    source: str


@dataclass(frozen=True)
class TokenPair:
    chosen: Tokens
    rejected: Tokens

    def __len__(self) -> int:
        """Tokens of both."""
        return len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        return max(len(self.chosen), len(self.rejected))


def to_pair(row: Row, source: str, fmt: Format, system: str) -> Pair:
    """Take a row apart and check every part.

    Args:
        system: `data.system`: drop, keep or the text to use.

    Raises:
        RowFault: the row cannot be used; the message is the reason.
    """
    chosen, rejected = (_parts(row.fields, side) for side in ("chosen", "rejected"))
    contexts = [context_of(parts.context, fmt, system) for parts in (chosen, rejected)]
    if contexts[0] != contexts[1]:
        raise RowFault("chosen and rejected have different prompts")
    better, worse = _reply(chosen), _reply(rejected)
    if better == worse:
        raise RowFault("chosen and rejected are the same")
    check_encodable(better, worse, *(message["content"] for message in contexts[0]))
    return Pair(contexts[0], better, worse, row.number, source)


def _parts(fields: Mapping[str, Any], side: str) -> Parts:
    """Read one side as if it were the reply of a row."""
    reply = fields[side]
    reply = [reply] if isinstance(reply, Mapping) else reply
    rest = {key: value for key, value in fields.items() if key not in KEYS}
    for column in ("messages", "conversations"):
        if rest.get(column):
            turns = reply if isinstance(reply, list) else [{"role": "assistant", "content": reply}]
            return _convert("messages", {**rest, "messages": [*rest[column], *turns]})
    if not rest.get("prompt"):
        if not isinstance(reply, list):
            raise RowFault("no prompt")
        return _convert("messages", {**rest, "messages": reply})
    if isinstance(rest["prompt"], str) and isinstance(reply, list):
        rest["prompt"] = [{"role": "user", "content": rest["prompt"]}]
    if isinstance(rest["prompt"], list) and isinstance(reply, str):
        reply = [{"role": "assistant", "content": reply}]
    return _convert("prompt/completion", {**rest, "completion": reply})


def _convert(name: str, fields: dict[str, Any]) -> Parts:
    return choose_formats(name)[0].convert(fields)


def _reply(parts: Parts) -> str:
    text = parts.reply if parts.think is None else f"<think>{parts.think}</think> {parts.reply}"
    if not text.strip():
        raise RowFault("an empty reply")
    return text


def tokenize_pairs(pairs: Iterable[Pair], chat: Renders) -> Iterator[TokenPair]:
    """Yield the tokens of each pair, exactly as the chat template renders prompt and replies."""
    rest = iter(pairs)
    while some := list(islice(rest, _AT_ONCE)):
        replies = iter(chat.replies_ids([text for pair in some for text in (pair.chosen, pair.rejected)]))
        for pair in some:
            prompt = chat.prompt_ids(pair.messages)
            yield TokenPair(*(_tokens(pair, text, prompt, next(replies)) for text in (pair.chosen, pair.rejected)))


def _tokens(pair: Pair, text: str, prompt: list[int], reply: list[int]) -> Tokens:
    parsed = tags.parse(text)
    example = Example(pair.messages, parsed.think or "", parsed.answer or text, pair.row, pair.source)
    return Tokens(array("i", prompt + reply), len(prompt), example)
