"""Our own OpenAI-compatible server: what it answers, what it refuses, and that it stops for those who leave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from thinktune.config import Load
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.shared_engine import SharedModel
from thinktune.inference.openai_server.app import MOST_BYTES, Endpoint, _HeldBack
from thinktune.models import load_model

TURNS = [{"role": "user", "content": "Hi"}]
OK: dict[str, Any] = {"model": "tiny", "messages": TURNS, "max_tokens": 6}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[tuple[SharedModel, Any]]:
    loaded = load_model(tiny_model, load=Load(device="cpu", dtype="float32"))
    shared = SharedModel(TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids))
    yield shared, loaded.chat
    shared.close()


@pytest.fixture
def endpoint(model: tuple[SharedModel, Any]) -> Endpoint:
    return Endpoint(*model, ["tiny"], {"localhost"})


def ask(
    endpoint: Endpoint, body: Any = OK, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=endpoint)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(send())


def problem(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def test_an_answer_has_openais_form_and_counts_its_tokens(endpoint: Endpoint) -> None:
    answer = ask(endpoint).json()
    (choice,) = answer["choices"]
    assert (answer["object"], answer["model"], choice["message"]["role"]) == ("chat.completion", "tiny", "assistant")
    assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["completion_tokens"] <= 6
    assert answer["usage"]["total_tokens"] == sum(
        answer["usage"][key] for key in ("prompt_tokens", "completion_tokens")
    )


def test_n_is_honoured_and_a_seed_repeats_what_it_drew(endpoint: Endpoint) -> None:
    texts = [
        [choice["message"]["content"] for choice in ask(endpoint, {**OK, "n": 4, "seed": seed}).json()["choices"]]
        for seed in (1, 1, 2)
    ]
    assert len(set(texts[0])) == 4
    assert texts[0] == texts[1] != texts[2]


def test_a_stream_says_the_same_and_ends_as_openais_does(endpoint: Endpoint) -> None:
    asked = {**OK, "n": 2, "seed": 3, "max_tokens": 12}
    lines = ask(endpoint, {**asked, "stream": True, "stream_options": {"include_usage": True}}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    *chunks, last = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    said = {0: "", 1: ""}
    ended = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        said[choice["index"]] += choice["delta"].get("content", "")
        ended[choice["index"]] = choice["finish_reason"]
    whole = ask(endpoint, asked).json()
    assert [said[each["index"]] for each in whole["choices"]] == [
        each["message"]["content"] for each in whole["choices"]
    ]
    assert [ended[each["index"]] for each in whole["choices"]] == [each["finish_reason"] for each in whole["choices"]]
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


def test_a_prompt_is_continued_as_it_stands(endpoint: Endpoint) -> None:
    answer = ask(endpoint, {"prompt": "2 + 2", "max_tokens": 4, "temperature": 0}, "/v1/completions").json()
    assert answer["object"] == "text_completion"
    assert isinstance(answer["choices"][0]["text"], str)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\xff\xfe",
        b'{"temperature": NaN}',
        b'{"seed": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"9" * 5000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b"{'a': 1}",
        b'{"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}',
    ],
)
def test_a_body_that_is_no_request_is_400_with_a_sentence(endpoint: Endpoint, body: bytes) -> None:
    answer = ask(endpoint, body)
    assert answer.status_code == 400
    assert len(problem(answer)) > 10


@pytest.mark.parametrize(
    "changed",
    [
        {"messages": None},
        {"messages": []},
        {"messages": "Hi"},
        {"messages": {}},
        {"messages": [1]},
        {"messages": [[]]},
        {"messages": [{}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "god", "content": "x"}]},
        {"messages": [{"role": ["user"], "content": "x"}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": TURNS * 1001},
        {"model": 3},
        {"temperature": "hot"},
        {"temperature": -1},
        {"temperature": True},
        {"temperature": 1e999},
        {"top_p": 0},
        {"n": 0},
        {"n": 17},
        {"n": 1.5},
        {"n": True},
        {"max_tokens": 0},
        {"max_tokens": "8"},
        {"max_tokens": 10**30},
        {"seed": 1.5},
        {"stop": ""},
        {"stop": [1]},
        {"stop": ["a"] * 17},
        {"stream": "yes"},
        {"stream_options": {}},
        {"logprobs": True},
        {"tools": [{}]},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"1": 5}},
        {"foo": 1},
        {"": 1},
        {"generation_config": "{}"},
        {"chat_template_kwargs": {}},
        {"trust_remote_code": True},
        {"best_of": 3},
    ],
)
def test_what_cannot_be_honoured_is_refused_and_not_dropped(endpoint: Endpoint, changed: dict[str, Any]) -> None:
    answer = ask(endpoint, json.dumps({**OK, **changed}).replace("Infinity", "1e999").encode())
    assert answer.status_code == 400
    assert len(problem(answer)) > 10


@pytest.mark.parametrize(
    "changed",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False},
        {"n": 1.0},
        {"tools": []},
        {"logprobs": False},
        {"stop": None},
        {"response_format": {"type": "text"}},
        {"max_tokens": None, "max_completion_tokens": 4},
        {"temperature": 0, "top_k": -1},
        {"messages": [{"role": "developer", "content": "Be brief."}, *TURNS]},
        {"max_tokens": 10**8, "stop": ["e", "a", " "]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {"messages": [{"role": "user", "content": "x", "name": "me", "tool_calls": None}]},
        {"model": None},
    ],
)
def test_what_changes_nothing_or_can_be_honoured_is_taken(endpoint: Endpoint, changed: dict[str, Any]) -> None:
    assert ask(endpoint, {**OK, **changed}).status_code == 200


def test_there_are_no_other_routes_and_no_other_models(endpoint: Endpoint) -> None:
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/audio/transcriptions", "/docs", "/openapi.json", "/"):
        for method in ("GET", "POST"):
            assert ask(endpoint, {"model": "x"}, path, method).status_code == 404, path
    assert ask(endpoint, {**OK, "model": "owner/other"}).status_code == 404
    assert ask(endpoint, method="GET").status_code == 405
    assert [each["id"] for each in ask(endpoint, path="/v1/models", method="GET").json()["data"]] == ["tiny"]
    assert ask(endpoint, path="/v1/models/tiny", method="GET").json()["id"] == "tiny"
    assert ask(endpoint, path="/health", method="GET").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": "evil.example:8000"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://127.0.0.1:9"}, 403),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 200),
    ],
)
def test_foreign_names_and_other_sites_are_refused(endpoint: Endpoint, headers: dict[str, str], status: int) -> None:
    assert ask(endpoint, **headers).status_code == status


def test_bodies_and_prompts_have_an_end_before_they_are_tokenised(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(endpoint, b" " * (MOST_BYTES + 1)).status_code == 413
    monkeypatch.setattr(endpoint, "_ids", lambda asked: pytest.fail("it was tokenised"))
    answer = ask(endpoint, {**OK, "messages": [{"role": "user", "content": "x " * 300_000}]})
    assert answer.status_code == 400
    assert "characters" in problem(answer)


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(endpoint: Endpoint) -> None:
    answer = ask(endpoint, {**OK, "messages": [{"role": "user", "content": "word " * 3000}]})
    assert answer.status_code == 400
    assert "context" in problem(answer)


@pytest.mark.parametrize("stream", [False, True])
def test_generation_ends_when_the_client_leaves(
    endpoint: Endpoint, model: tuple[SharedModel, Any], stream: bool
) -> None:
    body = json.dumps({**OK, "max_tokens": 10**6, "n": 8, "stream": stream}).encode()
    sent: list[Any] = []

    async def run() -> None:
        begun = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            while not model[0].busy:
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            begun.set()

        headers = [(b"host", b"127.0.0.1")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        await endpoint(scope, receive, send)

    asyncio.run(run())
    deadline = time.monotonic() + 20
    while model[0].busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert stream or sent == []
    assert b"[DONE]" not in b"".join(each.get("body", b"") for each in sent)
    assert endpoint._active == 0
    assert ask(endpoint).status_code == 200


def test_more_than_can_be_held_is_a_clear_no_and_the_others_are_answered(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinktune.inference.openai_server.app.MOST_ANSWERS", 10)

    async def many() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=endpoint)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", timeout=60) as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=OK) for _ in range(30)))

    answers = asyncio.run(many())
    assert {answer.status_code for answer in answers} == {200, 429}
    assert sum(answer.status_code == 200 for answer in answers) >= 10
    assert all(answer.headers.get("retry-after") for answer in answers if answer.status_code == 429)


@pytest.mark.parametrize(
    ("pieces", "stops", "text"),
    [
        (["ab", "cd"], ["cd"], "ab"),
        (["ab", "c", "d"], ["cd"], "ab"),
        (["a", "b"], [], "ab"),
        (["abc"], ["cx"], "abc"),
        (["a\n", "\nQ:"], ["\n\n"], "a"),
        (["x</ans", "wer>"], ["</answer>", "zzz"], "x"),
        (["aa", "b"], ["b", "ab"], "a"),
    ],
)
def test_a_stop_string_is_left_out_also_where_it_comes_in_pieces(
    pieces: list[str], stops: list[str], text: str
) -> None:
    held = _HeldBack(stops)
    assert "".join([*map(held.push, pieces), held.rest()]) == text
