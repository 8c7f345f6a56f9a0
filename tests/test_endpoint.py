"""A model behind a server: the same verbs, whatever the server does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from thinktune.config import Data, Sampling
from thinktune.config import Endpoint as EndpointSettings
from thinktune.errors import GenerationError, Interrupted, ModelError, UsageError
from thinktune.evaluation.evaluate import evaluate_data
from thinktune.inference.batch import infer
from thinktune.inference.batch_file import read_batch_file
from thinktune.inference.chat_cli import answer
from thinktune.inference.engines import EngineSettings, Opened, Request, open_engine
from thinktune.inference.engines.endpoint.reply import Declined, Unreadable, cut, read_reply
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.shard import journal_of
from thinktune.models import resolve
from thinktune.models.endpoints import read_endpoint
from thinktune.studio.model_pool import Pool

TEXT = "<think>Four and three.</think> <answer>7</answer>"
KEY = "sk-not-to-be-seen"


def body(content: Any = TEXT, reason: str = "stop", **message: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 9}}


class Faulty(ThreadingHTTPServer):
    """Answers as OpenAI's API does, but for the faults that `script` returns.

    Attributes:
        script: from the number of a request and its body to (status, body), to a fault by name, or None: an answer.
        asked: all requests so far.
        owner, status: of the list of models.
    """

    daemon_threads = True

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], Any] = lambda number, asked: None
        self.asked: list[dict[str, Any]] = []
        self.most = self.now = 0
        self.owner, self.status = "somebody", 200
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def reference(self) -> str:
        return f"openai:tiny@http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients leave


class _Handler(BaseHTTPRequestHandler):
    server: Faulty

    def log_message(self, *values: Any) -> None:
        pass

    def do_GET(self) -> None:
        data = json.dumps({"object": "list", "data": [{"id": "tiny", "owned_by": self.server.owner}]}).encode()
        self.send_response(self.server.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        server.asked.append(asked)
        server.now += 1
        server.most = max(server.most, server.now)
        self._answer(server.script(len(server.asked), asked), asked)

    def _answer(self, fault: Any, asked: dict[str, Any]) -> None:
        if fault == "hang up":
            self.close_connection = True
            return
        if asked.get("stream") and fault is None:
            self._stream(asked)
            return
        status, content = fault if isinstance(fault, tuple) else (200, body())
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        while fault == "slow" and len(data) > 20:
            self.wfile.write(data[:20])
            data = data[20:]
            time.sleep(0.02)
        self.server.now -= 1  # before the client has the end, and asks again
        self.wfile.write(data[: len(data) // 2] if fault == "half" else data)

    def _stream(self, asked: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        said = f"{TEXT} And more."
        deltas = [{"reasoning": "Hm."}] if asked["messages"][-1]["content"] == "think apart" else []
        said = "So: 7" if deltas else said
        for delta in [*deltas, *({"content": said[at : at + 7]} for at in range(0, len(said), 7))]:
            chunk = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": "tiny"}
            chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": None}]
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Faulty() as faulty:
        thread = threading.Thread(target=faulty.serve_forever, args=(0.02,))
        thread.start()
        yield faulty
        faulty.shutdown()
        thread.join()


def opened(server: Faulty, **settings: Any) -> Opened:
    endpoint = EndpointSettings(**{"concurrency": 4, "attempts": 3, **settings})
    return open_engine(server.reference, EngineSettings(endpoint=endpoint))


def batch(folder: Path, count: int) -> Path:
    file = folder / "items.jsonl"
    lines = [json.dumps({"id": f"q{at}", "type": "math", "prompt": f"What is {at} + 3?"}) for at in range(count)]
    file.write_text("\n".join(lines))
    return file


def requests(model: Opened, count: int, **sampling: Any) -> list[Request]:
    turns = [[{"role": "user", "content": f"What is {at}?"}] for at in range(count)]
    return [Request(str(at), model.chat.prompt_ids(each), Sampling(**sampling)) for at, each in enumerate(turns)]


def test_a_batch_file_is_answered_item_by_item_many_at_once(server: Faulty, tmp_path: Path) -> None:
    server.script = lambda number, asked: "slow"
    with opened(server) as model:
        items = read_batch_file(batch(tmp_path, 12))
        inferred = infer(model, items, tmp_path / "res.json", form="openai", console=Console(quiet=True))
    assert (inferred.items, inferred.failed, inferred.well_formed) == (12, 0, 12)
    assert 1 < server.most <= 4
    lines = [json.loads(line) for line in (tmp_path / "res.json").read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == [f"q{at}" for at in range(12)]
    assert lines[0]["response"]["body"]["usage"]["completion_tokens"] == 9
    assert server.asked[0]["messages"][0]["content"].startswith("What is ")
    assert "stop" not in server.asked[0]
    written = "".join(file.read_text() for file in tmp_path.iterdir())
    assert KEY not in written


@pytest.mark.parametrize(
    "fault",
    [(429, {"error": "slow down"}), (500, {}), "hang up", "half", (200, b"<html>proxy</html>"), (200, {"choices": []})],
    ids=str,
)
def test_a_fault_that_passes_costs_another_request_and_nothing_else(server: Faulty, fault: Any) -> None:
    server.script = lambda number, asked: fault if number == 1 else None
    with opened(server) as model:
        completions = list(model.engine.generate(requests(model, 3)))
    assert sorted(each.request_id for each in completions) == ["0", "1", "2"]
    assert [(each.text, each.error, each.tokens) for each in completions] == [(TEXT, None, 9)] * 3
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ((400, {"error": {"message": f"too long, {KEY}"}}), "too long"),
        ((200, b"<html>"), "not a chat completion"),
        ((200, {"error": {"message": "overloaded"}}), "overloaded"),
        ((200, body(None, "content_filter")), "content_filter"),
        ((200, body(None, refusal="I will not.")), "the model refuses: I will not."),
        ((200, body("", "tool_calls")), "tool_calls"),
    ],
)
def test_a_fault_that_stays_is_the_error_of_its_item(server: Faulty, fault: Any, says: str) -> None:
    server.script = lambda number, asked: fault if "What is 1?" in str(asked) else None
    with opened(server, attempts=2) as model:
        completions = {each.request_id: each for each in model.engine.generate(requests(model, 3))}
    assert says in str(completions["1"].error)
    assert KEY not in str(completions["1"].error)
    assert completions["0"].text == completions["2"].text == TEXT


@pytest.mark.parametrize(("status", "says"), [(401, "OPENAI_API_KEY"), (404, "has no model tiny")])
def test_a_wrong_key_or_model_ends_the_call_at_once(server: Faulty, status: int, says: str) -> None:
    server.script = lambda number, asked: (status, {"error": {"message": f"no: {KEY}"}})
    with opened(server) as model, pytest.raises(GenerationError) as caught:
        list(model.engine.generate(requests(model, 100)))
    assert says in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.asked) <= 4


def test_a_server_that_is_gone_ends_the_call_and_what_it_answered_is_kept(server: Faulty, tmp_path: Path) -> None:
    server.script = lambda number, asked: "hang up" if number > 5 else None
    items = read_batch_file(batch(tmp_path, 40))
    out = tmp_path / "res.json"
    with opened(server, attempts=1) as model, pytest.raises(GenerationError, match="does not answer any more"):
        infer(model, items, out, console=Console(quiet=True))
    server.script = lambda number, asked: None
    with opened(server) as model:
        inferred = infer(model, items, out, console=Console(quiet=True))
    assert (inferred.items, inferred.failed) == (40, 0)
    assert [json.loads(line)["error"] for line in journal_of(out).read_text().splitlines()].count(None) == 40


def test_a_body_that_never_ends_is_given_up_after_the_timeout(server: Faulty) -> None:
    server.script = lambda number, asked: "slow"
    with opened(server, timeout=0.1) as model:
        (completion,) = model.engine.generate(requests(model, 1))
    assert "no whole answer within 0.1 s" in str(completion.error)


def test_samples_are_requests_of_their_own_with_seeds_that_a_later_call_repeats(server: Faulty) -> None:
    for _ in range(2):
        with opened(server) as model:
            completions = list(model.engine.generate(requests(model, 2, n=3, seed=1, temperature=0.5, top_k=4)))
        assert sorted((each.request_id, each.index) for each in completions) == [
            (name, index) for name in "01" for index in range(3)
        ]
    seeds = [asked["seed"] for asked in server.asked]
    assert len(set(seeds[:6])) == 6
    assert sorted(seeds[:6]) == sorted(seeds[6:])
    assert (server.asked[0]["top_k"], server.asked[0]["temperature"]) == (4, 0.5)
    assert {"min_p", "repetition_penalty", "n"} & server.asked[0].keys() == set()


@pytest.mark.parametrize(("owner", "status", "sent"), [("vllm", 200, True), ("somebody", 200, False), ("", 404, False)])
def test_a_server_that_would_take_the_model_s_own_sampling_is_told_all_of_ours(
    server: Faulty, owner: str, status: int, sent: bool
) -> None:
    server.owner, server.status = owner, status
    with opened(server) as model:
        list(model.engine.generate(requests(model, 1)))
    further = {name: server.asked[0].get(name) for name in ("top_k", "min_p", "repetition_penalty")}
    assert further == ({"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0} if sent else dict.fromkeys(further))
    assert (server.asked[0]["temperature"], server.asked[0]["top_p"]) == (0.0, 1.0)


def test_the_text_is_cut_after_the_stop_string_streamed_or_not(server: Faulty) -> None:
    server.script = lambda number, asked: None if asked.get("stream") else (200, body(f"{TEXT} And more."))
    with opened(server) as model:
        (request,) = requests(model, 1, stop=("</answer>",))
        (completion,) = model.engine.generate([request])
        assert completion.text == "".join(model.engine.stream(request)) == TEXT
        console = Console(quiet=True)
        assert answer(model, "What is 4 + 3?", Sampling(), console, messages=console) == TEXT
        assert "".join(model.engine.stream(Request("x", model.chat.prompt_ids([turn("think apart")]), Sampling()))) == (
            "<think>Hm.</think> So: 7"
        )


def turn(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_problems_are_scored(server: Faulty, tmp_path: Path) -> None:
    rows = [{"question": f"What is {at} + 3?", "answer": str(at + 3)} for at in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with opened(server) as model:
        summary = evaluate_data(
            model, Data(source=str(tmp_path / "rows.jsonl")), tmp_path / "eval", console=Console(quiet=True)
        )
    assert (summary.n, summary.outcomes) == (6, {"right": 1, "wrong": 5})
    assert summary.told_format
    assert "<answer>" in server.asked[0]["messages"][-1]["content"]


def test_the_studio_offers_it_and_stops_when_it_is_told_to(server: Faulty, tmp_path: Path) -> None:
    handle = RequestHandle()
    opened = Pool([server.reference], tmp_path).open(server.reference, handle)
    assert next(iter(opened.engine.generate(requests(opened, 1)))).text == TEXT
    handle.stop()
    with pytest.raises(Interrupted):
        list(opened.engine.generate(requests(opened, 1)))
    with pytest.raises(UsageError, match="budget"):
        next(iter(opened.engine.stream(requests(opened, 1, think_budget=5)[0])))


def test_what_takes_a_tokenizer_or_weights_is_refused_by_name(server: Faulty) -> None:
    with opened(server) as model:
        for refused in (lambda: model.chat.tokenizer, lambda: model.engine.logprobs([1], [2])):
            with pytest.raises(UsageError, match=r"server|openai:"):
                refused()
        with pytest.raises(UsageError, match="no_repeat_ngram_size"):
            model.engine.require_supported(Sampling(no_repeat_ngram_size=3))
    with pytest.raises(ModelError, match="behind a server"):
        resolve(server.reference, EngineSettings().load)
    with pytest.raises(UsageError, match="--engine vllm"):
        open_engine(server.reference, EngineSettings("vllm"))


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("openai:m", "openai:MODEL@URL"),
        ("openai:@http://x/v1", "openai:MODEL@URL"),
        ("openai:m@ftp://x", "openai:MODEL@URL"),
        ("openai:m@https://user:sk-1@host/v1", "OPENAI_API_KEY"),
        ("openai:m@https://host/v1?key=sk-1", "OPENAI_API_KEY"),
    ],
)
def test_a_reference_that_is_none_or_holds_a_secret_is_refused_without_showing_it(reference: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_endpoint(reference)
    assert says in str(caught.value)
    assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "text", "reason"),
    [
        (body("<answer>7</answer>", reasoning_content="So."), "<think>So.</think> <answer>7</answer>", "stop"),
        (body(TEXT, reasoning="Apart."), TEXT, "stop"),
        (body("", "length", reasoning="So far"), "<think>So far", "length"),
        (body(f"{TEXT}!", "length"), TEXT, "stop"),
        (body("<think>so far", "length"), "<think>so far", "length"),
        (body(TEXT) | {"usage": None}, TEXT, "stop"),
    ],
)
def test_replies_of_many_dialects_are_read(values: dict[str, Any], text: str, reason: str) -> None:
    reply = read_reply(json.dumps(values), ("</answer>",))
    assert (reply.text, reply.finish_reason) == (text, reason)


@pytest.mark.parametrize(
    "broken",
    ["", "null", "[]", "{", '{"choices": null}', '{"choices": [{}]}', '{"choices": [{"message": 5}]}', "[" * 9999],
)
def test_a_body_that_is_no_completion_is_unreadable(broken: str) -> None:
    with pytest.raises(Unreadable):
        read_reply(broken, ())
    with pytest.raises(Declined):
        read_reply(json.dumps(body("", "function_call")), ())
    assert cut("a", ("", "b")) == "a"
