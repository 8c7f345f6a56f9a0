"""The chat of an endpoint: its prompts are messages, which the server renders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from thinktune.errors import UsageError
from thinktune.models import Chat
from thinktune.tags import valid_text


class MessagesChat(Chat):
    """Makes prompts of the bytes of their messages, as JSON, so that these pass for token ids in requests and journals.

    All else that a chat can do takes a tokenizer, which an endpoint does not have.
    """

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._dates = {}
        self.is_dated = False
        self.system_text = None
        self.stop_ids = frozenset()

    @property
    def can_be_sent(self) -> bool:
        return False  # it is as quick as sending would be

    @property
    def tokenizer(self) -> Any:
        """Never there.

        Raises:
            UsageError: always.
        """
        self._refuse()

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the bytes of the messages."""
        turns = [{"role": turn["role"], "content": valid_text(turn["content"])} for turn in messages]
        return list(json.dumps(turns, ensure_ascii=False).encode())

    def reply_ids(self, text: str) -> list[int]:
        """See `tokenizer`."""
        self._refuse()

    def replies_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """See `tokenizer`."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(
            f"this takes the tokenizer of a model, which {self._reference} does not give",
            hint="name a model that is on this machine or on a hub",
        )


def messages_of(prompt_ids: Iterable[int]) -> Any:
    """Return the messages that `MessagesChat` made a prompt of."""
    return json.loads(bytes(prompt_ids))
