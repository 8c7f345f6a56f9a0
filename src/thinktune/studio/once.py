"""A request that is sent again, because its answer did not arrive, is carried out once.

The page's script sends each event of Gradio's under a name of its own, and again under that name until it is answered
(`follow_script`): a connection that was cut, or a proxy that lost its patience, costs neither the event nor the page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADER = "x-once"
"""Name of a request, which nobody can guess."""
_KEPT_SECONDS = 120.0  # that an answer is kept for somebody who asks again


class Once:
    """ASGI middleware.

    Args:
        app: answers each named request once, whether or not anybody still waits for it.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._answers: dict[str, asyncio.Task[list[Message]]] = {}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        names = [value for name, value in scope.get("headers", ()) if name.lower() == HEADER.encode()]
        if scope["type"] != "http" or scope["method"] != "POST" or not names:
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:
            return
        name = names[0].decode("latin-1")
        if name not in self._answers:
            self._answers[name] = task = asyncio.create_task(self._answer(scope, body))
            task.add_done_callback(lambda _: self._forget_later(name))
        for message in await asyncio.shield(self._answers[name]):
            await send(message)

    async def _answer(self, scope: Message, body: bytes) -> list[Message]:
        messages: list[Message] = []
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return parts.pop() if parts else await asyncio.Future()

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._app(scope, receive, keep)
        return messages

    def _forget_later(self, name: str) -> None:
        asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._answers.pop, name, None)


async def _whole(receive: Receive) -> bytes | None:
    """Return the body of a request; None of one whose client has gone before its end."""
    body: bytes = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body
    return None
