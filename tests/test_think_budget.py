"""Thinking within a budget: two passes over any engine, and every completion well-formed."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import make_tiny_tokenizer
from scripted import ScriptedModel
from thinktune import tags
from thinktune.config import Load, Sampling
from thinktune.errors import ConfigError, UsageError
from thinktune.inference.engines.base import Completion, Engine, Request
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.think_budget import NO_ANSWER, ThinkBudgetEngine
from thinktune.models import Chat, load_model

LIMITED = Sampling(max_tokens=60, think_budget=40)


def prepare(reply: Callable[[str], str], template: str = tags.TEMPLATE) -> tuple[ThinkBudgetEngine, Chat]:
    tokenizer = make_tiny_tokenizer()
    chat = Chat(tokenizer)
    return ThinkBudgetEngine(TransformersEngine(ScriptedModel(tokenizer, reply), tokenizer, [2]), chat, template), chat


def ask(reply: str, sampling: Sampling = LIMITED, template: str = tags.TEMPLATE) -> Completion:
    engine, chat = prepare(lambda prompt: reply, template)
    (completion,) = engine.generate([Request("a", chat.prompt_ids([{"role": "user", "content": "q"}]), sampling)])
    return completion


def test_a_model_that_keeps_the_format_writes_what_it_would_have_written() -> None:
    completion = ask("<think>3 and 4 are 7.</think> <answer>7</answer>")
    assert completion.text == "<think>3 and 4 are 7.</think> <answer>7</answer>"
    assert completion.finish_reason == "stop"


def test_a_thought_is_closed_at_its_budget_and_the_answer_follows() -> None:
    completion = ask("<think>" + "on and " * 90)
    assert completion.text.startswith("<think>on and")
    assert completion.finish_reason == "length"
    assert tags.parse(completion.text).well_formed
    assert len(completion.token_ids) == 60


def test_tokens_are_shared_out_between_thought_and_answer() -> None:
    completion = ask("x" * 400, Sampling(max_tokens=30, think_budget=10))
    parsed = tags.parse(completion.text)
    assert (len(parsed.think or ""), len(parsed.answer or "")) == (10, 20)


@pytest.mark.parametrize(
    "reply",
    [
        "", " ", "no tags at all", "</think>", "<answer>", "</answer>", "<think><think><think>", "<answer>7</answer>",
        "<think></think> <answer></answer>", "<answer><answer></answer>", "</answer></think><answer><think>",
        "<thi<think>nk> <<</think", "<think>a</think> <answer>", "小明<think>有</thi", "<ans<answer>wer>x",
    ],
)  # fmt: skip
def test_whatever_a_model_says_is_well_formed(reply: str) -> None:
    engine, chat = prepare(lambda prompt: reply)
    request = Request("a", chat.prompt_ids([{"role": "user", "content": "q"}]), LIMITED)
    (completion,) = engine.generate([request])
    assert tags.parse(completion.text).problem is None
    assert "".join(engine.stream(request)) == completion.text


def test_a_model_without_an_answer_is_given_none() -> None:
    assert tags.parse(ask("<think>well</think> <answer>").text).answer == NO_ANSWER


def test_the_format_the_model_was_trained_in_is_kept() -> None:
    template = "<think>\n{think}\n</think>\n\n<answer>\n{answer}\n</answer>"
    said = tags.render("a", "7", template)
    assert ask(said, template=template).text == said


def test_custom_stops_still_count() -> None:
    assert tags.parse(ask("a b STOP c", LIMITED.changed(stop=("STOP",))).text).think == "a b STOP"


def test_an_answer_does_not_wait_for_the_thoughts_of_others() -> None:
    engine, chat = prepare(
        lambda prompt: "<think>on" + " and on" * ("long" in prompt) * 60 + "</think> <answer>7</answer>"
    )
    sampling = Sampling(max_tokens=400, think_budget=380)
    requests = [
        Request(text, chat.prompt_ids([{"role": "user", "content": text}]), sampling) for text in ("long", "a", "b")
    ]
    completions = engine.generate(requests)
    first = [next(completions), next(completions)]
    written = len(engine._engine._model.batches)  # type: ignore[attr-defined]
    assert {each.request_id for each in first} == {"a", "b"}
    (last,) = completions
    assert tags.parse(last.text).answer == "7"
    assert len(engine._engine._model.batches) > 3 * written  # type: ignore[attr-defined]


def test_no_more_thoughts_are_begun_than_the_engine_writes_at_once() -> None:
    engine, chat = prepare(lambda prompt: "<think>on and on</think> <answer>7</answer>")
    engine._engine.slots = 4
    ids = chat.prompt_ids([{"role": "user", "content": "q"}])
    completions = engine.generate([Request(str(at), ids, LIMITED.changed(n=2)) for at in range(20)])
    next(completions)
    written = len(engine._engine._model.batches)  # type: ignore[attr-defined]
    assert len(list(completions)) == 39
    assert len(engine._engine._model.batches) > 5 * written  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def noisy(tiny_model: Path) -> Any:
    loaded = load_model(tiny_model, load=Load(dtype="float32"))
    torch.manual_seed(1)
    for parameter in loaded.model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return loaded


def test_noise_becomes_well_formed_and_repeats_itself(noisy: Any) -> None:
    engine = ThinkBudgetEngine(TransformersEngine(noisy.model, noisy.tokenizer, noisy.chat.stop_ids), noisy.chat)
    sampling = Sampling(temperature=1.5, max_tokens=24, think_budget=12, n=3, seed=5)
    prompts = [noisy.chat.prompt_ids([{"role": "user", "content": f"question {number}"}]) for number in range(20)]
    requests = [Request(f"r{number}", ids, sampling) for number, ids in enumerate(prompts)]
    found = {(each.request_id, each.index): each.text for each in engine.generate(requests)}
    assert len(found) == 60
    assert [text for text in found.values() if not tags.parse(text).well_formed] == []
    assert len(set(found.values())) > 50
    random.Random(0).shuffle(requests)
    assert {(each.request_id, each.index): each.text for each in engine.generate(requests[:7])}.items() <= found.items()


@pytest.mark.slow
@pytest.mark.parametrize("length", [1900, 2000, 2040])
def test_thought_and_answer_share_what_the_context_leaves(noisy: Any, length: int) -> None:
    engine = ThinkBudgetEngine(TransformersEngine(noisy.model, noisy.tokenizer, noisy.chat.stop_ids), noisy.chat)
    ids = [5] * length
    request = Request("a", ids, Sampling(temperature=1, max_tokens=800, think_budget=700))
    (completion,) = engine.generate([request])
    if length == 2040:
        assert "no room" in (completion.error or "")
    else:
        assert tags.parse(completion.text).problem is None


def test_requests_without_a_budget_and_faulty_ones_pass_through() -> None:
    engine, chat = prepare(lambda prompt: "plain")
    ids = chat.prompt_ids([{"role": "user", "content": "q"}])
    requests = [Request("a", ids, Sampling()), Request("b", ids, LIMITED), Request("c", [5] * 600, LIMITED)]
    found = {each.request_id: each for each in engine.generate(requests)}
    assert found["a"].text == "plain"
    assert tags.parse(found["b"].text).well_formed
    assert "context of 512" in (found["c"].error or "")


class Echo(Engine):
    """Another engine altogether: says its prompt's length, a request after the other."""

    context_length = 10_000

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        for request in requests:
            for index in range(request.sampling.n):
                yield Completion(request.id, index, str(len(request.prompt_ids)), (1,), "length")

    def stream(self, request: Request) -> Iterator[str]:
        yield str(len(request.prompt_ids))

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return [0.0] * len(continuation_ids)


def test_more_requests_than_a_window_are_answered_each_once() -> None:
    chat = Chat(make_tiny_tokenizer())
    engine = ThinkBudgetEngine(Echo(), chat)
    requests = [Request(str(n), [7] * (n + 1), LIMITED.changed(n=2)) for n in range(600)]
    completions = list(engine.generate(iter(requests)))
    assert len({(each.request_id, each.index) for each in completions}) == len(completions) == 1200
    assert all(tags.parse(each.text).think == str(int(each.request_id) + 1) for each in completions)


def test_a_budget_that_leaves_no_answer_is_refused() -> None:
    with pytest.raises(ConfigError, match="think_budget 60 leaves no tokens for the answer"):
        LIMITED.changed(think_budget=60)


def test_an_engine_names_the_field_it_cannot_honour() -> None:
    engine = Echo()
    with pytest.raises(UsageError, match=r"sampling\.think_budget"):
        engine.require_supported(LIMITED)
    engine.require_supported(Sampling())
    ThinkBudgetEngine(engine, Chat(make_tiny_tokenizer())).require_supported(LIMITED)
