"""Closes silent connections after a while, the ones that have been silent for longest first.

uvicorn waits for the rest of a request for ever; enough halves of requests would leave nobody else a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS = 15.0
"""For the head of a request to arrive whole, from the moment that the connection is there or its first byte is."""
BODY_SECONDS = 30.0
"""For a body, and for its next piece; with more bytes come more seconds."""
SLOWEST = 8192
"""Bytes a second that a long body has to come with."""
DISCARD_SECONDS = 3.0
"""For the rest of a body that is too long."""
MOST_SILENT = 300
"""Connections without a whole head at once; one more closes the oldest."""
FRESH_SECONDS = 1.0
"""For which no connection is closed because of others: the heads of many that come at once are on their way."""

Message = MutableMapping[str, Any]
_SILENT: dict[Any, float] = {}  # protocols that wait for a head, the oldest first, and since when


class HurriedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's own protocol, with an end to its patience."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering():
            self._heard()
        elif self._deadline is None:
            self._wait()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        _SILENT[self] = self.loop.time()
        if len(_SILENT) > MOST_SILENT:
            self.loop.call_later(FRESH_SECONDS, _close_oldest)
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _heard(self) -> None:
        _SILENT.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._heard()
        if not self._answering() and not self.transport.is_closing():
            self.transport.close()


def _close_oldest() -> None:
    if len(_SILENT) <= MOST_SILENT:
        return
    oldest, since = next(iter(_SILENT.items()))
    if oldest.loop.time() - since >= FRESH_SECONDS - 0.01:  # a younger one has a call of its own coming
        oldest._give_up()


class Body:
    """Receives a request's body within bounds of size and time, whatever its header says.

    Attributes:
        got: bytes so far.
        failed: whether it was too long or too slow; the application is told that the client has gone.
    """

    def __init__(self, receive: Callable[[], Awaitable[Message]], most: int) -> None:
        self._receive = receive
        self._most = most
        self._whole = False
        self._since: float | None = None
        self.got = 0
        self.failed = False

    async def _discard(self) -> None:
        """Receive the rest for a while and drop it: a client that still sends does not read that it is too much."""
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass

    def _patience(self) -> float:
        now = asyncio.get_running_loop().time()
        self._since = now if self._since is None else self._since
        return min(BODY_SECONDS, self._since + BODY_SECONDS + self.got / SLOWEST - now)

    async def receive(self) -> Message:
        if self.failed:
            return {"type": "http.disconnect"}
        if self._whole:  # from here on it is the client's leaving that is waited for
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._patience())
        except TimeoutError:
            self.failed = True
            return {"type": "http.disconnect"}
        self.got += len(message.get("body", b""))
        self._whole = not message.get("more_body")
        self.failed = self.got > self._most
        if self.failed and not self._whole:
            await self._discard()
        return {"type": "http.disconnect"} if self.failed else message
