"""The bodies that servers answer with, read with care: servers that speak OpenAI's language speak many dialects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from thinktune import tags
from thinktune.tags import valid_text

_REASONS: dict[str, Literal["stop", "length"]] = {"stop": "stop", "eos": "stop", "length": "length"}


class Unreadable(Exception):
    """A body that is no answer, such as half of one, or the page of a proxy. Another request may be answered."""


class Declined(Exception):
    """An answer that is no text: a refusal, a content filter, a call of a tool."""


@dataclass(frozen=True)
class Reply:
    """One completion, with the tokens that the server counts; 0: it does not."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    prompt_tokens: int


def read_reply(body: str, stops: tuple[str, ...]) -> Reply:
    """Read the body of a chat completion (https://platform.openai.com/docs/api-reference/chat/object).

    Args:
        stops: cut the text after the first of these, and keep it.

    Raises:
        Unreadable, Declined: there is no completion in it.
    """
    try:
        values = json.loads(body)
        if isinstance(values, dict) and values.get("error"):
            raise Unreadable(f"an error under status 200: {str(values['error'])[:200]}")
        choice = values["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
        text = joined(message.get("content"), thought_of(message))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise Unreadable(f"not a chat completion ({type(error).__name__}): {body[:80]!r}") from None
    if refusal := message.get("refusal"):
        raise Declined(f"the model refuses: {refusal}")
    if reason not in _REASONS:
        raise Declined(f"it ended with {reason!r}")
    usage = values.get("usage")
    whole = cut(text, stops)
    return Reply(
        valid_text(whole),
        "stop" if whole != text else _REASONS[reason],
        _count(usage, "completion_tokens"),
        _count(usage, "prompt_tokens"),
    )


def thought_of(message: Any) -> str:
    """Return the thought that a server keeps apart from the answer: vLLM, DeepSeek, OpenRouter."""
    return message.get("reasoning_content") or message.get("reasoning") or ""


def joined(content: str | None, thought: str) -> str:
    """Join thought and answer in our format, unless the answer has a thought itself. Without one, the thought is not
    closed: it was cut off.

    >>> joined("<answer>4</answer>", "Two and two.")
    '<think>Two and two.</think> <answer>4</answer>'
    """
    content = content or ""
    opening, closing, *_ = tags.TAGS
    if not thought or opening in content:
        return content
    return f"{opening}{thought}{closing} {content}" if content else f"{opening}{thought}"


def cut(text: str, stops: tuple[str, ...]) -> str:
    """Cut a text right after its first stop string.

    >>> cut("<answer>4</answer> And more.", ("</answer>",))
    '<answer>4</answer>'
    """
    ends = [text.find(stop) + len(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value > 0 else 0
