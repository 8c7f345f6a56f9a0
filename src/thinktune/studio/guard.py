"""Access to the studio, and the rights of its pages.

In front of everything that Gradio serves: names that do not belong to this server (DNS rebinding) and other sites'
pages (cross-site requests) are refused, nobody is answered who has not come in by the door, uploads are bounded, files
are served from the studio's own temporary folder only, and pages run no script but the ones that the server sent.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from thinktune.studio.sign_in import Door
from thinktune.studio.sign_in_page import let_in
from thinktune.web.connections import Body
from thinktune.web.hosts import why_foreign

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST_UPLOADED = 32 * 2**20
"""Bytes of one request."""
_FILE = re.compile(r"/file(?:=|/)(.*)\Z", re.DOTALL)
_SCRIPT = re.compile(rb"<script(?=[\s>])")
_POLICY = (
    "default-src 'self'; "
    # Gradio compiles its own handlers and plots; without this word 'nonce' no script gets into the page to do so.
    "script-src 'self' 'nonce-{nonce}' 'unsafe-eval' 'wasm-unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware.

    Args:
        app: the guarded application.
        names: allowed host names, besides localhost and addresses.
        suffix: suffix of further allowed names, such as that of a tunnel; "" for none.
        files: the only folder that files are served from.
        door: decides who is answered. None: everybody.
    """

    def __init__(self, app: App, *, names: Iterable[str], suffix: str, files: Path, door: Door | None = None) -> None:
        self._app = app
        self._door = door
        self._names = frozenset({"localhost", *names})
        self._suffix = suffix
        self._files = files.resolve()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self._problem(scope, headers):
            await _refuse(scope, send, *problem)
            return
        nonce = secrets.token_urlsafe(16)
        page = _Page(send, nonce)
        if scope["type"] == "http":
            receive = Body(receive, MOST_UPLOADED).receive
        if self._door is None or await let_in(self._door, scope, headers, receive, page.send):
            await self._app(_without_compression(scope), receive, page.send)

    def _problem(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        navigates = headers.get("sec-fetch-mode") == "navigate" and scope.get("method") == "GET"
        if foreign := why_foreign(headers, self._names, self._suffix, navigates=navigates):
            return foreign
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return 400, "content-length is no number"
        if int(length) > MOST_UPLOADED:
            return 413, f"more than {MOST_UPLOADED // 2**20} MiB"
        if (found := _FILE.search(unquote(scope["path"]))) and not self._is_served(found.group(1)):
            return 403, "this file is not served"
        return None

    def _is_served(self, path: str) -> bool:
        try:
            return Path(unquote(path)).resolve().is_relative_to(self._files)
        except (OSError, ValueError):  # a zero byte, a name too long
            return False


class _Page:
    """Passes a response on with our headers, and pages with the nonce in their scripts."""

    def __init__(self, send: Send, nonce: str) -> None:
        self._send = send
        self._nonce = nonce
        self._start: Message | None = None  # held back while a page is collected
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_headers(self._nonce)]}
            if dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                self._start = message
                return
        if message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = _SCRIPT.sub(b'<script nonce="%s"' % self._nonce.encode(), self._body)
            kept = [pair for pair in self._start["headers"] if pair[0] != b"content-length"]
            await self._send({**self._start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
            message = {"type": "http.response.body", "body": body}
        await self._send(message)


def _headers(nonce: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-security-policy", _POLICY.format(nonce=nonce).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),  # without one, a form would be sent as from another site
        (b"cross-origin-opener-policy", b"same-origin"),
    ]


def _without_compression(scope: Message) -> Message:
    """Return the scope without Accept-Encoding: a compressed page could not be given its nonce."""
    return {**scope, "headers": [pair for pair in scope["headers"] if pair[0].lower() != b"accept-encoding"]}


async def _refuse(scope: Message, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    plain = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
