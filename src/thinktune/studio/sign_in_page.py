"""Responses before sign-in: the page that asks for the token or the password, and a sentence."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

from thinktune.studio.sign_in import Door

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MOST_BYTES = 4096  # of a form that is filled in
_STARTING = "/gradio_api/startup-events"  # Gradio asks itself for it when it starts; it tells nothing
_TEXTS = {
    "title": ("Sign in to the studio", "登录 Studio"),
    "password": ("Password", "密码"),
    "token": ("Token of the printed address", "启动时打印的地址中的令牌"),
    "name": ("Name", "用户名"),
    "enter": ("Sign in", "登录"),
    "wrong": ("That is not it.", "不正确。"),
    "later": ("Too many wrong guesses: try again in a few seconds.", "错误次数过多，请稍后再试。"),
    "hint": (
        "Open the address that the studio has printed where it was started, with its ?token=…",
        "请打开启动 Studio 时打印的地址，其中带有 ?token=…",
    ),
}
_PAGE = """<!doctype html><html lang="{lang}"><meta charset="utf-8"><title>thinktune</title>
<meta name="viewport" content="width=device-width">
<style>:root {{ color-scheme: light dark; font: 16px system-ui, sans-serif; }}
form {{ max-width: 20rem; margin: 15vh auto; }}
label, button {{ display: block; margin: 1rem 0; }}
input {{ box-sizing: border-box; width: 100%; padding: .5rem; }}</style>
<form method="post" action="login"><h1>{title}</h1><p role="alert">{problem}</p>
<label>{name}<input name="username" value="studio" autocomplete="username"></label>
<label>{secret}<input name="password" type="password" autocomplete="current-password" required autofocus></label>
<button>{enter}</button><p>{hint}</p></form></html>"""


async def let_in(door: Door, scope: Message, headers: dict[str, str], receive: Receive, send: Send) -> bool:
    """Return whether a request may go on; one that may not, or that is about signing in, is answered here."""
    if scope["type"] == "websocket":
        if not door.knows(headers):
            await send({"type": "websocket.close", "code": 1008})
            return False
        return True
    method, path = scope["method"], scope["path"]
    query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
    token = next((value for name, value in query if name == "token"), None)
    right = token is not None and door.is_token(token)
    if right and method in ("GET", "HEAD") and path == "/":  # the address that was printed: the token leaves the bar
        rest = urlencode([pair for pair in query if pair[0] != "token"])
        await _redirect(door, headers, send, f"./?{rest}" if rest else "./")
        return False
    if right or door.knows(headers) or (method == "GET" and path == _STARTING):
        return True
    if method == "POST" and path.rstrip("/") == "/login":
        await _sign_in(door, scope, headers, receive, send)
    else:
        await _ask(door, headers, send, 401, "wrong" if token else "")
    return False


async def _sign_in(door: Door, scope: Message, headers: dict[str, str], receive: Receive, send: Send) -> None:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message.get("body", b"")
        if len(body) > _MOST_BYTES:
            await _ask(door, headers, send, 413, "wrong")
            return
        if not message.get("more_body"):
            break
    given = parse_qs(body.decode("utf-8", "replace"), max_num_fields=None).get("password", [""])[0]
    verdict = await door.guess((scope.get("client") or ("",))[0], given)
    if verdict != "in":
        await _ask(door, headers, send, 400 if verdict == "wrong" else 429, verdict)
    elif _wants_page(headers):
        await _redirect(door, headers, send, "./")
    else:
        await _answer(send, 200, b'{"success": true}', b"application/json", _cookie(door, headers))


async def _ask(door: Door, headers: dict[str, str], send: Send, status: int, problem: str) -> None:
    chinese = headers.get("accept-language", "").lower().startswith("zh")
    words = {key: pair[chinese] for key, pair in _TEXTS.items()}
    told = words.get(problem, "")
    later = [(b"retry-after", b"5")] if status == 429 else []
    if not _wants_page(headers):
        detail = json.dumps({"detail": told or _TEXTS["hint"][0]}).encode()
        await _answer(send, status, detail, b"application/json", later)
        return
    page = _PAGE.format(
        lang="zh" if chinese else "en", title=escape(words["title"]), problem=escape(told), name=escape(words["name"]),
        secret=escape(words["password" if door.asks_for_password else "token"]), enter=escape(words["enter"]),
        hint="" if door.asks_for_password else escape(words["hint"]),
    )  # fmt: skip
    await _answer(send, status, page.encode(), b"text/html; charset=utf-8", later)


async def _redirect(door: Door, headers: dict[str, str], send: Send, to: str) -> None:
    await _answer(send, 303, b"", b"text/plain", [(b"location", to.encode()), *_cookie(door, headers)])


def _cookie(door: Door, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    # The tunnel's end is https, whatever arrives here; this machine's own address is not.
    secure = headers.get("host", "").endswith(".gradio.live")
    return [(b"set-cookie", door.cookie(secure=secure).encode())]


def _wants_page(headers: dict[str, str]) -> bool:
    return "text/html" in headers.get("accept", "")


async def _answer(
    send: Send, status: int, body: bytes, kind: bytes, further: list[tuple[bytes, bytes]] | None = None
) -> None:
    head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": [*head, *(further or [])]})
    await send({"type": "http.response.body", "body": body})
