"""The studio's door: nothing is answered without token or password, and guesses are slow."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from thinktune.studio.app import USER, Server, open_page
from thinktune.studio.model_pool import Pool
from thinktune.studio.sign_in import Door
from thinktune.studio.state import Studio
from thinktune.web import connections


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    runs = tmp_path_factory.mktemp("door") / "runs"
    server = open_page(Studio(Pool([str(tiny_model)], runs), runs, may_train=False))
    yield server
    server.close()


def base(server: Server) -> str:
    return server.address.partition("?")[0]


@pytest.mark.parametrize("cookie", ["", "thinktune-studio-{port}=x", "access-token-unsecure=x"])
def test_no_route_of_gradio_answers_without_the_token(server: Server, cookie: str) -> None:
    headers = {"cookie": cookie.format(port=httpx.URL(base(server)).port)} if cookie else {}
    with httpx.Client(base_url=base(server), headers=headers) as client:
        for path in (
            "cancel",
            "reset",
            "queue/join",
            "upload",
            "run/predict",
            "call/x",
            "component_server",
            "stream/x",
        ):
            assert client.post(f"gradio_api/{path}", json={"session_hash": "x"}).status_code == 401, path
        for path in (
            "", "config", "theme.css", "assets/x.js", "static/x", "logout", "monitoring", "docs", "openapi.json",
            "gradio_api/info", "gradio_api/heartbeat/x", "gradio_api/queue/data", "gradio_api/queue/status",
            "gradio_api/app_id", "gradio_api/user", "gradio_api/token", "?token=wrong", "?token=", "?deep_link=x",
            "//config", "%63onfig", "gradio_api/deep_link", "gradio_api/startup-events/",
        ):  # fmt: skip
            assert client.get(path).status_code in (401, 403), path
        assert client.put("gradio_api/startup-events").status_code == 401
        assert "chat-send" not in client.get("", headers={"accept": "text/html"}).text


def test_the_printed_address_gives_a_cookie_that_scripts_cannot_read(server: Server) -> None:
    answer = httpx.get(server.url)
    assert answer.status_code == 303
    assert "token" not in answer.headers["location"]
    flags = answer.headers["set-cookie"].lower()
    assert "httponly" in flags
    assert "samesite=lax" in flags
    assert server.url.partition("token=")[2] not in flags
    with httpx.Client(base_url=base(server), cookies=answer.cookies) as client:
        assert "chat-send" in client.get("").text
        assert client.get("config").status_code == 200


def test_programs_may_send_the_token_as_they_send_keys(server: Server) -> None:
    token = server.url.partition("token=")[2]
    for headers, status in (({"authorization": f"Bearer {token}"}, 200), ({"authorization": "Bearer x"}, 401)):
        assert httpx.get(f"{base(server)}config", headers=headers).status_code == status


def test_a_form_that_is_filled_in_with_the_token_lets_in(server: Server) -> None:
    page = {"accept": "text/html", "origin": base(server).rstrip("/")}
    token = server.url.partition("token=")[2]
    for given, status in ((token, 303), ("é\ud800"[:1], 400), ("", 400)):
        answer = httpx.post(f"{base(server)}login", data={"username": USER, "password": given}, headers=page)
        assert answer.status_code == status
    assert httpx.post(f"{base(server)}login", content=b"x" * 10_000).status_code == 413
    assert httpx.post(f"{base(server)}login", content=b"\xff\x00&;=").status_code == 400


def test_two_studios_of_one_machine_do_not_take_each_others_cookie(server: Server) -> None:
    doors = Door(port=7860), Door(port=7861)
    assert doors[0].cookie_name != doors[1].cookie_name
    assert doors[0].token != doors[1].token
    cookie = doors[0].cookie(secure=True).partition(";")[0]
    assert doors[0].knows({"cookie": cookie})
    assert not doors[1].knows({"cookie": cookie.replace("7860", "7861")})


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_guesses_slow_down_and_the_right_one_is_heard_nevertheless() -> None:
    clock = Clock()
    door = Door("open sesame", now=lambda: clock.now, sleep=clock.sleep)
    for _ in range(20):
        assert asyncio.run(door.guess("a", "wrong")) == "wrong"
    assert clock.slept[-1] == 5.0
    assert sum(clock.slept) > 60
    assert asyncio.run(door.guess("b", "open sesame")) == "in"
    assert asyncio.run(door.guess("a", "open sesame")) == "in"
    assert asyncio.run(door.guess("a", "wrong")) == "wrong"
    assert clock.slept[-1] == 5.0  # that of the last but one: signing in has cleared the slate


def test_many_guesses_at_once_are_not_looked_at_faster_and_never_bar_the_token() -> None:
    clock = Clock()
    door = Door("open sesame", now=lambda: 1000.0, sleep=clock.sleep)  # everything in the same moment
    verdicts = [asyncio.run(door.guess("a", "wrong")) for _ in range(100)]
    assert verdicts.count("wrong") < 15
    assert verdicts[-1] == "later"
    spread = [asyncio.run(door.guess(f"client {n}", "wrong")) for n in range(1000)]
    assert spread.count("wrong") < 60
    assert asyncio.run(door.guess("a", door.token)) == "in"
    assert clock.slept


def test_connections_that_say_nothing_do_not_keep_others_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(connections, "MOST_SILENT", 20)
    monkeypatch.setattr(connections, "FRESH_SECONDS", 0.1)
    place = httpx.URL(base(server))
    heads = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x",
        b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\nab",
    ]
    held = []
    for number in range(60):
        held.append(socket.create_connection((place.host, place.port)))
        held[-1].sendall(heads[number % 3])
    assert httpx.get(f"{base(server)}config").status_code == 401
    for each in held:
        each.settimeout(10)
        try:
            while each.recv(4096):
                pass
        except ConnectionResetError:
            pass
        each.close()
    assert httpx.get(f"{base(server)}config").status_code == 401


def test_many_connections_at_once_are_all_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_SILENT", 5)
    place = httpx.URL(base(server))
    held = [socket.create_connection((place.host, place.port)) for _ in range(40)]
    for each in held:
        each.sendall(b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    for each in held:
        each.settimeout(10)
        assert each.recv(4096).startswith(b"HTTP/1.1 401")
        each.close()


@pytest.mark.parametrize(("piece", "failed"), [(b"x", True), (b"x" * 8192, False)])
def test_a_body_that_trickles_is_not_waited_for_and_a_long_one_is(
    piece: bytes, failed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 0.5)
    left = [True] * 19 + [False]

    async def read() -> bool:
        async def receive() -> connections.Message:
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": piece, "more_body": left.pop(0)}

        body = connections.Body(receive, 2**20)
        while (await body.receive()).get("more_body"):
            pass
        return body.failed

    assert asyncio.run(read()) is failed
