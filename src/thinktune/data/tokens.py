"""Examples to token ids and their loss mask: only the assistant's text and its end of turn are trained."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

from thinktune.data.examples import Example, Message

IGNORED = -100
"""The label of a position that is not trained, as PyTorch's cross entropy has it."""


_AT_ONCE = 64
"""Examples the tokenizer gets at once: enough to keep all cores busy."""


class Renders(Protocol):
    """The part of `models.chat.Chat` that tokenising needs."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]: ...

    def replies_ids(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class Tokens:
    """One example as tokens: `context` positions that are only read, then positions that are trained.

    Kept as 4 bytes a token, because lists of a large data set would need gigabytes; `input_ids` and `labels` are made
    when asked for.
    """

    ids: array[int]
    context: int
    example: Example
    cut: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        return len(self.ids) - self.context

    @property
    def input_ids(self) -> list[int]:
        return self.ids.tolist()

    @property
    def labels(self) -> list[int]:
        """The id at each trained position, -100 elsewhere. Not shifted: the model's loss does that."""
        return [IGNORED] * self.context + self.ids[self.context :].tolist()

    def shorten(self, length: int) -> Tokens:
        """Keep the first `length` tokens; the end of the answer is lost, and the end of the turn with it."""
        return replace(self, ids=self.ids[:length], context=min(self.context, length), cut=True)


def tokenize(examples: Iterable[Example], chat: Renders, template: str) -> Iterator[Tokens]:
    """Yield the tokens of each example, exactly as the chat template renders prompt and reply."""
    rest = iter(examples)
    while some := list(islice(rest, _AT_ONCE)):
        replies = chat.replies_ids([example.reply(template) for example in some])
        for example, reply in zip(some, replies, strict=True):
            prompt = chat.prompt_ids(example.messages)
            yield Tokens(array("i", prompt + reply), len(prompt), example)


def fingerprint(tokens: Iterable[Tokens]) -> str:
    """Compute the SHA-256 over ids and labels, in order: equal exactly if training would see the same numbers."""
    digest = hashlib.sha256()
    for item in tokens:
        digest.update(array("i", [len(item), item.context]).tobytes())
        digest.update(item.ids.tobytes())
    return digest.hexdigest()
