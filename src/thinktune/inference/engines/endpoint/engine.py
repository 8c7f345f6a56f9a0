"""A model behind a server, behind the contract of every engine.

OpenAI's client asks, many requests at once: it waits where the server limits the rate, and asks again after faults that
may pass. A completion is a request of its own, with a seed that belongs to (seed, id, sample). Stop strings are not
sent, because servers leave them out of the text, and do not tell whether one ended it: the text is cut here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any
from urllib.parse import urlsplit

from thinktune.config import Endpoint as EndpointSettings
from thinktune.config import Sampling
from thinktune.errors import GenerationError, Interrupted, UsageError
from thinktune.inference.engines.base import Completion, Engine, Request, polling
from thinktune.inference.engines.endpoint.messages_chat import messages_of
from thinktune.inference.engines.endpoint.reply import Declined, Unreadable, cut, joined, read_reply, thought_of
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.models.endpoints import Endpoint

logger = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
_NO_KEY = "none"  # for servers that ask for none; the client wants one
_LOOK_SECONDS = 0.2  # between looks whether the caller still waits
_FURTHER = ("top_k", "min_p", "repetition_penalty")
"""Settings that OpenAI does not have. Servers refuse those they do not know."""
_LOCAL = ("vllm", "sglang", "thinktune")
"""Servers, as they call themselves, that know these, and take the model's own values where one is not sent."""
_CHECK_SECONDS = 60.0


class EndpointEngine(Engine):
    """Generates with a server.

    Args:
        endpoint: the model and where it is.
        settings: how it is asked.
        handle: by which its one caller may stop it.
    """

    reads_tokens = False
    unsupported = frozenset({"no_repeat_ngram_size"})  # and budgets, for which a reply would have to be continued
    context_length = 2**31  # not known: the server refuses what is too long

    def __init__(self, endpoint: Endpoint, settings: EndpointSettings, handle: RequestHandle | None = None) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._handle = handle or RequestHandle()
        self.slots = settings.concurrency
        self._key = os.environ.get(KEY) or _NO_KEY
        self._connection: dict[str, Any] = {
            "base_url": endpoint.url,
            "api_key": self._key,
            "max_retries": settings.attempts - 1,
            "timeout": settings.timeout,
        }
        self._is_local: bool | None = None
        self._silent = 0  # requests without an answer since the last that had one
        self._requests = self._tokens = self._prompt_tokens = 0

    def require_supported(self, sampling: Sampling) -> None:
        """See `Engine.require_supported`."""
        if sampling.think_budget is not None:
            raise UsageError("an endpoint cannot think within a budget", hint="leave out think_budget")
        super().require_supported(sampling)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """See `Engine.generate`.

        Raises:
            GenerationError: the server refuses the key, does not know the model, or does not answer any more.
            Interrupted: the handle was stopped.
        """
        from openai import AsyncOpenAI

        self._find_dialect()
        rows = _rows(requests)
        flying: set[Future[Completion]] = set()
        client = AsyncOpenAI(**self._connection)
        with _Loop(client.close) as loop:
            while True:
                while len(flying) < self.slots and (row := next(rows)) is not None:
                    flying.add(loop.submit(self._complete(client, *row)))
                if not flying:
                    return
                done, flying = wait(flying, _LOOK_SECONDS, FIRST_COMPLETED)
                if self._handle.stopped:
                    raise Interrupted("stopped", hint="it goes on from there when it is started again")
                ended = [future for future in done if future.exception() is None]
                yield from (future.result() for future in ended)  # before an error of others ends the call
                for future in done:
                    future.result()

    def stream(self, request: Request) -> Iterator[str]:
        """See `Engine.stream`."""
        import openai

        shown, text = 0, ""
        stops = [stop for stop in request.sampling.stop if stop]
        held = max(map(len, stops), default=1) - 1  # it may be the beginning of a stop string
        broken: tuple[type[BaseException], ...] = (openai.OpenAIError, *_transport_errors())
        self._find_dialect()
        try:
            with (
                openai.OpenAI(**self._connection) as client,
                client.chat.completions.create(**self._arguments(request, 0), stream=True) as chunks,
            ):
                for text in _growing(chunks):
                    if self._handle.stopped or any(stop in text[max(0, shown - held) :] for stop in stops):
                        break
                    if len(text) - held > shown:
                        yield text[shown : len(text) - held]
                        shown = len(text) - held
        except openai.APIStatusError as error:
            raise self._fatal(error) or GenerationError(self._described(error)) from None
        except broken as error:
            raise GenerationError(f"{self._endpoint.url} does not answer: {self._described(error)}") from None
        whole = cut(text, request.sampling.stop)
        if whole[shown:]:
            yield whole[shown:]

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """Never there.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{self._endpoint.model} is asked through a server, which gives no log-probabilities of given text",
            hint="name a model that is on this machine or on a hub",
        )

    def close(self) -> None:
        """Tell how many tokens were used."""
        if self._requests:
            logger.info(
                f"{self._endpoint.url}: {self._requests:,} completions, {self._prompt_tokens:,} prompt tokens, "
                f"{self._tokens:,} completion tokens"
            )
            self._requests = 0

    def _find_dialect(self) -> None:
        """Ask, once, which server it is: some take the model's own sampling for what is not sent to them.

        Raises:
            GenerationError: the key is refused, or the server does not answer.
        """
        import openai

        if self._is_local is not None:
            return
        try:
            with openai.OpenAI(**self._connection | {"timeout": _CHECK_SECONDS}) as client:
                reply = client.models.with_raw_response.list()
            self._is_local = any(f'"{name}"' in reply.text for name in _LOCAL)
        except openai.APIStatusError as error:
            if error.status_code == 401 and (fatal := self._fatal(error)):
                raise fatal from None
            if error.status_code in (408, 409, 429) or (error.status_code >= 500 and error.status_code != 501):
                raise GenerationError(f"{self._endpoint.url} does not answer: {self._described(error)}") from None
            self._is_local = False  # it has no list of models
        except openai.APIConnectionError as error:
            raise GenerationError(f"{self._endpoint.url} does not answer: {self._described(error)}") from None

    async def _complete(self, client: Any, request: Request, index: int) -> Completion:
        """Make one completion; every fault of its own becomes an error completion.

        Raises:
            GenerationError: a fault that all others have too.
        """
        import openai

        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._ask(client, request, index)
        except openai.APIStatusError as error:
            if fatal := self._fatal(error):
                raise fatal from None
            problem = self._described(error)
        except (TimeoutError, openai.APIConnectionError) as error:
            self._silent += 1
            if self._silent > max(8, self.slots):
                raise GenerationError(
                    f"{self._endpoint.url} does not answer any more: {self._described(error)}",
                    hint="when it does, the same command goes on from there",
                ) from None
            problem = f"{self._endpoint.url} does not answer: {self._described(error)}"
        except (Declined, Unreadable, UsageError) as error:
            problem = str(error)
        except openai.OpenAIError as error:
            problem = self._described(error)
        return Completion(request.id, index, "", finish_reason="error", error=problem)

    async def _ask(self, client: Any, request: Request, index: int) -> Completion:
        arguments = self._arguments(request, index)
        for attempt in range(1, self._settings.attempts + 1):
            answer = await client.chat.completions.with_raw_response.create(**arguments)
            self._silent = 0
            try:
                reply = read_reply(answer.text, request.sampling.stop)
            except Unreadable:
                if attempt == self._settings.attempts:
                    raise
                await asyncio.sleep(min(8.0, 0.5 * 2 ** (attempt - 1)))
                continue
            self._requests += 1
            self._tokens += reply.tokens
            self._prompt_tokens += reply.prompt_tokens
            return Completion(request.id, index, reply.text, finish_reason=reply.finish_reason, tokens=reply.tokens)
        raise AssertionError("the last attempt returns or raises")

    def _arguments(self, request: Request, index: int) -> dict[str, Any]:
        """Return the body of a request (https://platform.openai.com/docs/api-reference/chat/create).

        Raises:
            UsageError: see `require_supported`.
        """
        sampling = request.sampling
        self.require_supported(sampling)
        official = urlsplit(self._endpoint.url).hostname == "api.openai.com"
        arguments: dict[str, Any] = {
            "model": self._endpoint.model,
            "messages": messages_of(request.prompt_ids),
            "max_completion_tokens" if official else "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": _seed(request, index),
        }
        if official:  # its reasoning models refuse even what changes nothing
            none = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
            arguments = {name: value for name, value in arguments.items() if none.get(name) != value}
        unset = Sampling()
        further = {name: getattr(sampling, name) for name in _FURTHER}
        if not self._is_local:
            further = {name: value for name, value in further.items() if value != getattr(unset, name)}
        if further.get("top_k") == 0:
            further["top_k"] = -1  # all of these servers' word for all tokens
        return {**arguments, "extra_body": further} if further else arguments

    def _fatal(self, error: Any) -> GenerationError | None:
        """Return the error of a status that no other request would change."""
        if error.status_code == 401:
            return GenerationError(
                f"{self._endpoint.url} wants another key: {self._described(error)}", hint=f"set {KEY}"
            )
        if error.status_code == 404:
            return GenerationError(
                f"{self._endpoint.url} has no model {self._endpoint.model}: {self._described(error)}",
                hint="check both; most URLs end in /v1",
            )
        return None

    def _described(self, error: BaseException) -> str:
        """Put an error into a line, without the key."""
        if isinstance(error, TimeoutError):
            return f"no whole answer within {self._settings.timeout:g} s"
        text = " ".join(f"{error}{f' ({cause})' if (cause := error.__cause__) and str(cause) else ''}".split())
        return (text if self._key == _NO_KEY else text.replace(self._key, "…"))[:500]


class _Loop:
    """An event loop in a thread of its own, since callers may have one themselves, as notebooks do.

    Args:
        last: what is done at its end, when all that was submitted has ended or is cancelled.
    """

    def __init__(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._last = last
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="thinktune-endpoint", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __enter__(self) -> _Loop:
        return self

    def __exit__(self, *exc: object) -> None:
        self.submit(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._last()


def _rows(requests: Iterable[Request]) -> Iterator[tuple[Request, int] | None]:
    """Yield request and index of every sample; None while no request is ready."""
    poll = polling(requests)
    waiting: deque[tuple[Request, int]] = deque()
    while True:
        if not waiting and (request := poll()) is not None:
            waiting.extend((request, index) for index in range(request.sampling.n))
        yield waiting.popleft() if waiting else None


def _growing(chunks: Iterable[Any]) -> Iterator[str]:
    """Yield the text so far, with each chunk of a stream."""
    content, thought = "", ""
    for chunk in chunks:
        if not chunk.choices:
            continue
        delta = chunk.choices[0].delta.model_dump() if chunk.choices[0].delta else {}
        content += delta.get("content") or ""
        thought += thought_of(delta)
        yield joined(content, thought)


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the client's transport, which it lets through where a body breaks off."""
    import httpx

    try:
        import httpx2
    except ImportError:
        return (httpx.HTTPError,)
    return (httpx.HTTPError, httpx2.HTTPError)


def _seed(request: Request, index: int) -> int:
    """Make the seed of a sample from (seed, id, sample): a resumed run asks for the same. No seed counts as 0."""
    text = f"{request.sampling.seed or 0}/{index}/{request.id}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
