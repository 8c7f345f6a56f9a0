"""What pages are told of work that they follow, and events that are sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pandas
import pytest

from test_compare import write_run
from thinktune.studio.app import open_page
from thinktune.studio.follower import Follower, Mark
from thinktune.studio.model_pool import Pool
from thinktune.studio.once import HEADER, Once
from thinktune.studio.state import Studio


@pytest.fixture
def follower() -> Iterator[Follower]:
    with gr.Blocks():
        yield Follower("run")


def test_a_page_is_sent_what_it_does_not_show_yet(follower: Follower) -> None:
    curve = {"value": pandas.DataFrame({"step": [1], "value": [2.0]}), "__type__": "update"}
    *first, shown = follower.told(["head", curve, "facts"], "mine", "1")
    assert first == ["head", curve, "facts"]
    *second, shown = follower.told(["head 2", {**curve, "value": curve["value"].copy()}, gr.skip()], "mine", "2", shown)
    assert second == ["head 2", gr.skip(), gr.skip()]
    *third, shown = follower.told(["head 2", curve, "facts"], "mine", "3", shown)
    assert third == [gr.skip(), gr.skip(), gr.skip()]
    *other, _ = follower.told(["head 2", curve, "facts"], "other", "3", shown)
    assert other == ["head 2", curve, "facts"]


def test_a_mark_is_read_back(follower: Follower) -> None:
    mark = Mark("a/b-1.x", "training 1", ("ab", "-"))
    assert Mark.read(mark.html("run")) == mark
    assert Mark.read("") == Mark.read("<b>") == Mark()


def test_pages_are_told_versions_of_what_there_is_and_whether_it_moves(tmp_path: Path, tiny_model: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "one", tuned="rw")
    studio = Studio(Pool([str(tiny_model)], runs), runs, may_train=True)
    server = open_page(studio)
    try:
        with httpx.Client(follow_redirects=True) as client:
            page = client.get(server.address).url

            def versions(**asked: str) -> tuple[dict[str, str], bool]:
                found = client.get(page.join("studio/versions"), params=asked).json()
                return found["versions"], found["moves"]

            asked = {"run": "one", "runs": "", "model": "", "collect": "", "batch": "none", "nonsense": "x"}
            first, moves = versions(**asked)
            assert (set(first), moves) == ({"run", "runs", "model", "collect"}, False)
            assert versions(run="../one") == versions(run="") == ({}, False)
            assert versions(**asked)[0] == first
            (runs / "one/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
            assert versions(**asked)[0]["runs"] != first["runs"]
            studio.pool.loading = "a model"
            assert versions(model="") == ({"model": "a model"}, True)
    finally:
        server.close()


class _Counter:
    """An application that takes a moment to count its calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, _scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        body = (await receive())["body"]
        await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d %s" % (self.calls, body)})


async def _sent(app: Once, name: str, *messages: dict[str, Any], patience: float = 5.0) -> bytes:
    waiting, got = list(messages), []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        got.append(message.get("body", b""))

    scope = {"type": "http", "method": "POST", "headers": [(HEADER.encode(), name.encode())]}
    try:
        async with asyncio.timeout(patience):
            await app(scope, receive, send)
    except TimeoutError:
        return b"cut"
    return b"".join(got)


def test_a_request_that_is_sent_again_is_carried_out_once_and_answered() -> None:
    async def act() -> None:
        whole: dict[str, Any] = {"type": "http.request", "body": b"go"}
        counter = _Counter()
        app = Once(counter)
        assert await _sent(app, "a", whole, patience=0.01) == b"cut"
        assert await _sent(app, "a", whole) == b"1 go"
        assert await asyncio.gather(*(_sent(app, "a", whole) for _ in range(3))) == [b"1 go"] * 3
        assert await _sent(app, "b", whole) == b"2 go"
        half = {"type": "http.request", "body": b"g", "more_body": True}
        assert await _sent(app, "c", half, {"type": "http.disconnect"}) == b""
        assert await _sent(app, "c", half, {"type": "http.request", "body": b"o"}) == b"3 go"
        assert counter.calls == 3

    asyncio.run(act())
