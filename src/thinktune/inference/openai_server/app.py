"""The server itself: its routes, who may ask, and answers that end when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from thinktune.errors import ThinktuneError
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.engines.shared_engine import SharedModel
from thinktune.inference.openai_server.request_body import Asked, Refused, read_body, read_request
from thinktune.models.chat import Chat
from thinktune.web.connections import Body
from thinktune.web.hosts import why_foreign

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MOST_BYTES = 4 * 2**20
"""Of a request."""
MOST_ANSWERS = 128
"""Completions that are written or waited for at once; a request beyond them is refused, and may come again."""
_CHARACTERS_A_TOKEN = 16  # more than texts have; a prompt beyond is not even tokenised
_SLOW_SECONDS = 60.0  # for a client to take what it is sent
_JSON = b"application/json"


class Gone(Exception):
    """The client waits no longer."""


@dataclass
class _Choice:
    """One completion that is being written."""

    index: int
    handle: RequestHandle
    text: str = ""


class Endpoint:
    """ASGI application.

    Args:
        model: answers.
        chat: renders conversations for it.
        names: accepted model names; answers carry the first.
        hosts: names of this machine that requests may ask for, besides addresses.
    """

    def __init__(self, model: SharedModel, chat: Chat, names: Sequence[str], hosts: Collection[str]) -> None:
        self._model = model
        self._chat = chat
        self._names = tuple(dict.fromkeys(names))
        self._hosts = frozenset(hosts)
        self._active = 0
        self._created = int(time.time())
        self._tokenising = asyncio.Semaphore(2)
        self._threads = ThreadPoolExecutor(MOST_ANSWERS + 2, thread_name_prefix="thinktune-answer")
        self._routes = {
            "/health": ("GET", self._health),
            "/v1/models": ("GET", self._models),
            "/v1/chat/completions": ("POST", self._chat_completions),
            "/v1/completions": ("POST", self._completions),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = Body(receive, MOST_BYTES)
        connection = _Connection(body, send)
        try:
            await self._answer(scope, connection)
        except Refused as refused:
            await connection.fail(refused)
        except Gone:
            return
        except ThinktuneError as error:
            await connection.fail(Refused(500, error.message))

    async def _answer(self, scope: Message, connection: _Connection) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if foreign := why_foreign(headers, self._hosts):
            raise Refused(*foreign)
        path = scope["path"].rstrip("/")
        if path.startswith("/v1/models/") and path.removeprefix("/v1/models/") in self._names:
            path = "/v1/models"
        if path not in self._routes:
            raise Refused(404, f"there is no such path; there are {', '.join(self._routes)}")
        method, handler = self._routes[path]
        if scope["method"] != method and (scope["method"], method) != ("HEAD", "GET"):
            raise Refused(405, f"this path takes {method}")
        await handler(scope, connection)

    async def _health(self, scope: Message, connection: _Connection) -> None:
        if self._model.failed:
            raise Refused(503, "the model has failed: start the server again")
        await connection.send_json(200, {"status": "ok"})

    async def _models(self, scope: Message, connection: _Connection) -> None:
        name = self._names[0]
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "thinktune"}
        one = scope["path"].rstrip("/") != "/v1/models"
        await connection.send_json(200, card if one else {"object": "list", "data": [card]})

    async def _chat_completions(self, scope: Message, connection: _Connection) -> None:
        await self._complete(connection, chat=True)

    async def _completions(self, scope: Message, connection: _Connection) -> None:
        await self._complete(connection, chat=False)

    async def _complete(self, connection: _Connection, *, chat: bool) -> None:
        asked = read_request(read_body(await connection.read()), self._names, chat=chat)
        count = asked.sampling.n
        if self._active + count > MOST_ANSWERS:
            raise Refused(429, f"{self._active} answers are being written: try again later", code="busy")
        self._active += count
        try:
            ids = await self._tokenise(asked)
            room = self._model.context_length - len(ids)
            if room < 1 or not ids:
                size = f"{len(ids)} tokens, and the model's context {self._model.context_length}"
                raise Refused(400, f"the prompt has {size}: there is no room for an answer", _about(asked))
            await self._write(connection, asked, ids, min(room, asked.most_tokens or room), chat=chat)
        finally:
            self._active -= count

    async def _tokenise(self, asked: Asked) -> list[int]:
        most = max(20_000, _CHARACTERS_A_TOKEN * self._model.context_length)
        length = len(asked.prompt) + sum(len(turn["content"]) for turn in asked.turns or ())
        if length > most:
            raise Refused(400, f"the prompt has {length:,} characters: {most:,} are the most", _about(asked))
        async with self._tokenising:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._ids, asked)
            except ThinktuneError as error:
                raise Refused(400, error.message, _about(asked)) from None

    def _ids(self, asked: Asked) -> list[int]:
        if asked.turns is not None:
            return self._chat.prompt_ids(asked.turns)
        return list(self._chat.tokenizer(asked.prompt).input_ids)

    async def _write(self, connection: _Connection, asked: Asked, ids: list[int], most: int, *, chat: bool) -> None:
        seed = secrets.randbits(31) if asked.sampling.seed is None else asked.sampling.seed
        one = asked.sampling.changed(n=1, max_tokens=most, seed=seed)
        choices = [_Choice(index, RequestHandle()) for index in range(asked.sampling.n)]
        reply = _Reply(self._names[0], len(ids), chat=chat)
        requests = [Request(str(choice.index), ids, one) for choice in choices]
        pieces = self._pieces(choices, requests)
        watch = asyncio.create_task(connection.left())
        try:
            if asked.stream:
                await connection.begin_stream()
            async for choice, piece in _until(pieces, watch):
                choice.text += piece
                if asked.stream and piece:
                    await connection.send_event(reply.chunk(choice, piece))
            if not asked.stream:
                await connection.send_json(200, reply.whole(choices))
                return
            for choice in choices:
                await connection.send_event(reply.chunk(choice, "", ended=True))
            if asked.usage:
                await connection.send_event({**reply.head(stream=True), "choices": [], "usage": reply.usage(choices)})
            await connection.end_stream()
        except ThinktuneError as error:
            if not connection.begun:
                raise
            await connection.send_event(Refused(500, error.message).as_dict())
            await connection.end_stream()
        finally:
            watch.cancel()
            for choice in choices:
                choice.handle.stop()

    async def _pieces(self, choices: list[_Choice], requests: list[Request]) -> AsyncIterator[tuple[_Choice, str]]:
        """Yield the texts of all choices as they grow, each read in a thread of its own."""
        news: asyncio.Queue[tuple[_Choice, str | Exception | None]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(choice: _Choice, what: str | Exception | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server ends
                loop.call_soon_threadsafe(news.put_nowait, (choice, what))

        def read(choice: _Choice, request: Request) -> None:
            held = _HeldBack(request.sampling.stop)
            try:
                for piece in self._model.stream(request, None, choice.handle):
                    tell(choice, held.push(piece))
                tell(choice, held.rest())
                tell(choice, None)
            except Exception as error:  # noqa: BLE001 - whatever it is, the client has to hear of it
                tell(choice, error)

        for choice, request in zip(choices, requests, strict=True):
            self._threads.submit(read, choice, request)
        left = len(choices)
        while left:
            choice, what = await news.get()
            if isinstance(what, ThinktuneError):
                raise what
            if isinstance(what, Exception):
                raise ThinktuneError(f"{type(what).__name__}: {what}")
            if what is None:
                left -= 1
            else:
                yield choice, what


class _HeldBack:
    """Text without the stop string that ended it: a possible beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._most = max(map(len, stops), default=1) - 1
        self._pending = ""

    def push(self, piece: str) -> str:
        self._pending += piece
        keep = next(
            (n for n in range(min(self._most, len(self._pending)), 0, -1) if self._may_stop(self._pending[-n:])), 0
        )
        whole = any(stop in self._pending for stop in self._stops)
        at = 0 if whole else len(self._pending) - keep
        sent, self._pending = self._pending[:at], self._pending[at:]
        return sent

    def rest(self) -> str:
        found = [self._pending.find(stop) for stop in self._stops if stop in self._pending]
        return self._pending[: min(found)] if found else self._pending

    def _may_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)


class _Reply:
    """Answers in OpenAI's form."""

    def __init__(self, model: str, prompt_tokens: int, *, chat: bool) -> None:
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._chat = chat
        self._created = int(time.time())
        self._greeted: set[int] = set()

    def head(self, *, stream: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self._chat else "text_completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def usage(self, choices: list[_Choice]) -> dict[str, int]:
        written = sum(choice.handle.tokens for choice in choices)
        tokens = self._prompt_tokens
        return {"prompt_tokens": tokens, "completion_tokens": written, "total_tokens": tokens + written}

    def whole(self, choices: list[_Choice]) -> dict[str, Any]:
        return {
            **self.head(stream=False),
            "choices": [
                {
                    "index": choice.index,
                    **(
                        {"message": {"role": "assistant", "content": choice.text}}
                        if self._chat
                        else {"text": choice.text}
                    ),
                    "finish_reason": _reason(choice),
                    "logprobs": None,
                }
                for choice in choices
            ],
            "usage": self.usage(choices),
        }

    def chunk(self, choice: _Choice, piece: str, *, ended: bool = False) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": piece} if piece else {}
        if choice.index not in self._greeted:
            self._greeted.add(choice.index)
            delta = {"role": "assistant", "content": piece}
        said = {"delta": delta} if self._chat else {"text": piece}
        reason = _reason(choice) if ended else None
        return {
            **self.head(stream=True),
            "choices": [{"index": choice.index, **said, "finish_reason": reason, "logprobs": None}],
        }


class _Connection:
    """One request and its answer."""

    def __init__(self, body: Body, send: Send) -> None:
        self._body = body
        self._send = send
        self.begun = False

    async def read(self) -> bytes:
        body = b""
        while True:
            message = await self._body.receive()
            if message["type"] == "http.disconnect":
                if not self._body.failed:
                    raise Gone
                if self._body.got > MOST_BYTES:
                    raise Refused(413, f"the request has more than {MOST_BYTES // 2**20} MiB")
                raise Refused(408, "the rest of the request did not come")
            body += bytes(message.get("body", b""))
            if not message.get("more_body"):
                return body

    async def left(self) -> None:
        """Wait until the client has gone."""
        while (await self._body.receive())["type"] != "http.disconnect":
            pass

    async def send_json(
        self, status: int, values: dict[str, Any], further: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        data = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
        head = [(b"content-type", _JSON), (b"content-length", str(len(data)).encode()), *further]
        await self._put({"type": "http.response.start", "status": status, "headers": head})
        await self._put({"type": "http.response.body", "body": data})

    async def fail(self, refused: Refused) -> None:
        if self.begun:
            return
        further = ((b"retry-after", b"5"),) if refused.status == 429 else ()
        if refused.status in (408, 413):  # the rest of the request is not waited for
            further = (*further, (b"connection", b"close"))
        with suppress(Gone):
            await self.send_json(refused.status, refused.as_dict(), further)

    async def begin_stream(self) -> None:
        head = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self._put({"type": "http.response.start", "status": 200, "headers": head})

    async def send_event(self, values: dict[str, Any]) -> None:
        data = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
        await self._put({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def end_stream(self) -> None:
        await self._put({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _put(self, message: Message) -> None:
        self.begun = True
        try:
            await asyncio.wait_for(self._send(message), _SLOW_SECONDS)
        except TimeoutError:
            raise Gone from None


async def _until(pieces: AsyncIterator[Any], watch: asyncio.Task[None]) -> AsyncIterator[Any]:
    """Pass on until the client has gone.

    Raises:
        Gone: it has.
    """
    while True:
        step = asyncio.ensure_future(anext(pieces))
        await asyncio.wait({step, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not step.done():
            step.cancel()
            raise Gone
        try:
            news = step.result()
        except StopAsyncIteration:
            return
        yield news


def _reason(choice: _Choice) -> str:
    return "length" if choice.handle.reason == "length" else "stop"


def _about(asked: Asked) -> str:
    return "prompt" if asked.turns is None else "messages"
