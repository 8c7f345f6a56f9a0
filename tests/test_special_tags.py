"""Models whose tags are special tokens: kept and matched, whole, streamed, stopped and within a budget."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import make_tiny_tokenizer
from scripted import ScriptedModel
from thinktune import tags
from thinktune.config import Sampling
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.detokenizer import Detokenizer, TextStream
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.think_budget import ThinkBudgetEngine
from thinktune.models import Chat
from thinktune.models.tokenizer import set_pad_token

REPLY = "<think>3 and 4 make 7.</think> <answer>7</answer>"


def special(*tokens: str) -> Any:
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def ask(tokenizer: Any, said: str, **settings: Any) -> tuple[str, str, str]:
    """Text and finish reason of a scripted reply, and the same streamed."""
    chat = Chat(tokenizer)
    engine = TransformersEngine(ScriptedModel(tokenizer, lambda _: said), tokenizer, chat.stop_ids)
    layer = ThinkBudgetEngine(engine, chat)
    prompt = chat.prompt_ids([{"role": "user", "content": "3 + 4?"}])
    request = Request("a", prompt, Sampling(max_tokens=100).changed(**settings))
    (completion,) = layer.generate([request])
    return completion.text, completion.finish_reason, "".join(layer.stream(request))


@pytest.mark.parametrize(
    "tokens",
    [tags.TAGS, ("<think>", "</think>"), ("</answer>",), (*tags.TAGS, "<|reserved|>"), ("<answer>", "</think>")],
)
def test_tags_that_are_special_tokens_are_kept_and_end_the_answer(tokens: tuple[str, ...]) -> None:
    text, reason, streamed = ask(special(*tokens), f"{REPLY} and on and on", stop=(tags.STOP,))
    assert (text, reason) == (REPLY, "stop")
    assert streamed == text


@pytest.mark.parametrize("stop", ["<|done|>", "7<|done|>", "<|done|> so"])
def test_a_stop_string_may_be_a_special_token_or_hold_one(stop: str) -> None:
    text, reason, streamed = ask(special("<|done|>"), "It is 7<|done|> so be it", stop=(stop,))
    assert reason == "stop"
    assert text == streamed == "It is 7<|done|> so be it".partition(stop)[0] + stop


@pytest.mark.parametrize(
    "said", [REPLY, "3 and 4 make 7.</think> <answer>7</answer>", "<think>on and on and on and on"]
)
def test_a_budget_counts_and_closes_them(said: str) -> None:
    text, _, streamed = ask(special(*tags.TAGS), said, think_budget=20, stop=())
    assert tags.parse(text).well_formed
    assert streamed == text


def test_what_begins_ends_and_pads_a_turn_is_no_text() -> None:
    tokenizer = special(*tags.TAGS)
    ids = [1, *tokenizer(REPLY, add_special_tokens=False).input_ids, 0, 0, 2]
    detokenizer = Detokenizer(tokenizer, frozenset([2]), len(tokenizer))
    assert detokenizer.decode(ids) == REPLY
    stream = TextStream(detokenizer)
    assert "".join(map(stream.push, ids)) == REPLY


def test_a_tag_never_becomes_the_padding() -> None:
    tokenizer = special("<answer>", "</answer>")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template + "<|endoftext|><|im_start|>"
    set_pad_token(tokenizer, {2})
    assert tokenizer.pad_token not in tags.TAGS
