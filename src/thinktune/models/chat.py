"""Conversations to token ids, for one tokenizer: the only place that applies a chat template.

Training, asking, batch inference and scoring all render their prompts here, so that a model is asked in exactly the
words it was trained on. Prompts of people are text: a `<|im_end|>` inside a question is tokenised as the ten characters
it is, never as the control token. The format's own tags are words of the text too, in questions and replies alike:
where the vocabulary has a token for `<think>`, special or not, that token stands for it.

A template that reads the clock gets one moment for the life of a chat, so that the same conversation has the same ids
on another day.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from thinktune.errors import ModelError
from thinktune.models.template_trial import require_harmless
from thinktune.tags import TAGS, valid_text

# The end of the generation prompt in templates of reasoning models. Our completions open the thought
# themselves, so that they can be checked and scored as one text: the prompt must then not open it too.
_TAG = re.compile(f"({'|'.join(TAGS)})")
_OPENED_THOUGHT = re.compile(r"<think>\s*(</think>\s*)?\Z")


class Chat:
    """Renders conversations for one tokenizer.

    Attributes:
        system_text: the system text that is really rendered, whoever it came from; None where there is none.
        end_of_turn_id: the token that ends the assistant's turn, as the template has it (not always `eos`).
        stop_ids: every token id that ends a generation.
        now: the moment that a template which reads the clock is told, to the second.
        is_dated: that moment was given.
        takes_system: whether the template has a place for a system text.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        *,
        stop_ids: Iterable[int] = (),
        now: datetime | None = None,
    ) -> None:
        """Read the template of a tokenizer.

        Args:
            tokenizer: one of transformers', with a chat template.
            system: the system text to use; None takes the template's own, "" asks for none.
            stop_ids: further ids that end a generation (those of the model's generation config).
            now: for templates that read the clock; None takes the present moment.

        Raises:
            ModelError: no chat template, one that fails, or one that has no place for the system text.
        """
        self.tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template",
                hint="use the model's -Instruct or -Chat variant, or copy the model into a folder and put a "
                "chat_template.jinja from a model of the same family beside its tokenizer.json",
            )
        require_harmless(tokenizer)
        self.now = (now or datetime.now()).replace(microsecond=0)
        self.is_dated = now is not None
        self._dates: dict[str, str] = {}
        self._reads_clock = "strftime_now" in str(tokenizer.chat_template)
        self._read_template()
        self._wanted = system
        self._use_system(system)
        eos = tokenizer.eos_token_id
        self.stop_ids = frozenset([self.end_of_turn_id, *([] if eos is None else [int(eos)]), *stop_ids])

    @property
    def can_be_sent(self) -> bool:
        """Whether other processes can render with it: they do not find tokenizers of a model's own code."""
        return type(self.tokenizer).__module__.startswith("transformers.")

    @property
    def dates(self) -> Mapping[str, str]:
        """Dates that the template has read off the clock, by format; empty if it reads none."""
        return self._dates

    def set_date(self, now: datetime) -> None:
        """Go on as if the chat had been made at another moment."""
        self.now, self.is_dated = now, True
        self._dates.clear()
        self._read_template()
        self._use_system(self._wanted)

    def told_template(self) -> str:
        """Return the chat template for other programs, with this chat's system text, and its date if that is
        settled."""
        template = str(self.tokenizer.chat_template)
        if self.system_text != (self._default_system or None):
            template = with_system_text(template, self.system_text or "")
        return _with_dates(template, self._dates) if self.is_dated else template

    def prompt_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of the conversation, up to and including the generation prompt.

        Halves of surrogate pairs, which no tokenizer takes, count as U+FFFD.

        Args:
            messages: user and assistant turns, `{"role", "content"}`; a leading system message overrides the chat's
                own system text.

        Raises:
            ModelError: the template refuses the conversation.
        """
        turns = [{**message, "content": valid_text(message["content"])} for message in messages]
        if not any(text in turn["content"] for turn in turns for text in self._control):
            return self._ids(self._prompt_text(turns))
        return self._ids_with_plain_control(turns)

    def reply_ids(self, text: str) -> list[int]:
        """Return the token ids of an assistant's reply as it is trained: the text and the token that ends the turn.

        They have to follow the generation prompt. Nothing of it passes through the template, which may trim a reply or
        drop its thought.
        """
        return [*self._text_ids(text), self.end_of_turn_id]

    def replies_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the `reply_ids` of each text; a fast tokenizer spreads them over the cores."""
        if any(control in text for text in texts for control in self._control):
            return [self.reply_ids(text) for text in texts]
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False).input_ids
        return [[*ids, self.end_of_turn_id] for ids in encoded]

    def _read_template(self) -> None:
        """Learn the system text, the end of turn and the control tokens by rendering probes."""
        self._system: str | None = None
        self._opened = ""
        probe = uuid.uuid4().hex
        user = {"role": "user", "content": f"u{probe}"}
        reply = {"role": "assistant", "content": f"a{probe}"}
        self._default_system, self.takes_system = self._find_system(user, f"s{probe}")
        whole = self._render([user, reply], generation_prompt=False)
        control = self._added_tokens(special_only=True).difference(TAGS)
        seen = {text for text in self._added_tokens(special_only=False) if text in whole and text not in TAGS}
        self._control = sorted(control | seen, key=len, reverse=True)
        if self._control:
            self._control_pattern = re.compile("|".join(re.escape(text) for text in self._control))
        self.end_of_turn_id = self._find_end_of_turn(whole.rpartition(f"a{probe}")[2])
        prompt = self._render([user], generation_prompt=True)
        opened = _OPENED_THOUGHT.search(prompt)
        self._opened = opened.group() if opened else ""

    def _find_system(self, user: dict[str, str], probe: str) -> tuple[str | None, bool]:
        """Find the template's own system text, and whether it has a place for another."""
        own = self._render([user], generation_prompt=False)
        try:
            given = self._render([{"role": "system", "content": probe}, user], generation_prompt=False)
        except ModelError:  # some templates raise on a system message
            return None, False
        if probe not in given:
            return None, False
        head, _, tail = given.partition(probe)
        if own.startswith(head) and own.endswith(tail) and len(own) > len(head) + len(tail):
            return own[len(head) : len(own) - len(tail)], True
        return None, True

    def _use_system(self, system: str | None) -> None:
        if system and not self.takes_system:
            raise ModelError(
                "the model's chat template has no place for a system text",
                hint="leave the system text out (data.system: drop), or write it into the prompts",
            )
        # An empty system message is the only way to silence a template that brings its own text.
        self._system = None if system == "" and self._default_system is None else system
        self.system_text = (self._default_system if system is None else system) or None

    def _find_end_of_turn(self, closing: str) -> int:
        """Find the first control token of the template's text after an assistant's reply."""
        for token_id in self._ids(closing):
            if self.tokenizer.convert_ids_to_tokens(token_id) in self._control:
                return int(token_id)
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "neither the chat template nor the tokenizer says which token ends the assistant's turn",
                hint="set eos_token in the model's tokenizer_config.json",
            )
        return int(self.tokenizer.eos_token_id)

    def _added_tokens(self, *, special_only: bool) -> set[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        return {token.content for token in added if token.special or not special_only}

    def _prompt_text(self, turns: list[dict[str, str]]) -> str:
        if self._system is not None and not (turns and turns[0]["role"] == "system"):
            turns = [{"role": "system", "content": self._system}, *turns]
        return self._render(turns, generation_prompt=True).removesuffix(self._opened)

    def _render(self, turns: list[dict[str, str]], *, generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation_prompt, **self._clock()
            )
        # A template is a program of somebody else's: beside raising on purpose it trips over missing roles and keys.
        except (
            TemplateError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
            MemoryError,
            RecursionError,
        ) as error:
            raise ModelError(
                f"the chat template refuses the conversation: {error}",
                hint="turns have to alternate between user and assistant, and begin with user",
            ) from None
        return text

    def _clock(self) -> dict[str, Any]:
        """Stand in for the function of that name which transformers gives templates."""

        def strftime_now(form: str) -> str:
            return self._dates.setdefault(form, self.now.strftime(form))

        return {"strftime_now": strftime_now} if self._reads_clock else {}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _text_ids(self, text: str) -> list[int]:
        """Return the ids of text in which nothing is control."""
        if not any(control in text for control in self._control):
            return self._ids(text)
        # Splitting special tokens would split tags that are some as well.
        return [token_id for piece in _TAG.split(text) for token_id in self._plain_ids(piece)]

    def _plain_ids(self, text: str) -> list[int]:
        if text in TAGS:
            return self._ids(text)
        ids = list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
        if self._is_plain(ids):
            return ids
        # Control tokens that their tokenizer does not flag as special are not split: take them apart ourselves.
        pieces = re.split(f"(?<=.)(?={'|'.join(re.escape(control[1:]) for control in self._control)})", text)
        return [token_id for piece in pieces for token_id in self._ids(piece)]

    def _is_plain(self, ids: Sequence[int]) -> bool:
        return not set(self.tokenizer.convert_ids_to_tokens(list(ids))) & set(self._control)

    def _ids_with_plain_control(self, turns: list[dict[str, str]]) -> list[int]:
        """Render with a marker in the place of every control text, then tokenise around and instead of the markers.

        Only the control text is replaced, because templates look into contents: they trim them, or drop a thought.
        """
        marker = uuid.uuid4().hex
        texts: list[str] = []

        def hide(match: re.Match[str]) -> str:
            texts.append(match.group())
            return f"{marker}{len(texts) - 1};"

        hidden = [{**turn, "content": self._control_pattern.sub(hide, turn["content"])} for turn in turns]
        pieces = re.split(f"{marker}([0-9]+);", self._prompt_text(hidden))
        ids: list[int] = []
        for at, piece in enumerate(pieces):
            ids += self._text_ids(texts[int(piece)]) if at % 2 else self._ids(piece)
        return ids


def date_settings(chat: Chat) -> dict[str, str]:
    """Return the settings that let a later chat render the same. None are needed where the template reads no clock."""
    return {"now": chat.now.isoformat()} if chat.dates else {}


def recorded_date(settings: Mapping[str, Any]) -> datetime | None:
    """Return the moment that `date_settings` recorded; None if there is none.

    Raises:
        ModelError: it is no date.
    """
    if (text := settings.get("now")) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ModelError(f"the recorded date {text!r} is none", hint="it looks like 2026-01-31T12:00:00") from None


def with_system_text(template: str, text: str) -> str:
    """Make a chat template that puts a system text before conversations which bring none."""
    message = f"[{{'role': 'system', 'content': {json.dumps(text)}}}]"
    return (
        "{%- if not messages or messages[0]['role'] != 'system' %}"
        f"{{%- set messages = {message} + messages %}}"
        "{%- endif %}" + template
    )


def _with_dates(template: str, dates: Mapping[str, str]) -> str:
    """Make a chat template that reads these dates, by format, instead of the clock."""
    if not dates:
        return template
    known = ", ".join(f"{json.dumps(form)}: {json.dumps(date)}" for form, date in dates.items())
    return f"{{%- macro strftime_now(form) -%}}{{{{ {{{known}}}[form] }}}}{{%- endmacro -%}}" + template
