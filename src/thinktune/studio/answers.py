"""One question to one or two models at once, read while it is answered."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Literal

from thinktune import tags
from thinktune.config import Sampling
from thinktune.errors import ThinktuneError
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.studio.model_pool import Pool, reason

State = Literal["running", "done", "stopped", "error"]
_LOOK_SECONDS = 0.25  # between two looks at the queue's place while nothing comes


@dataclass
class Answer:
    """The text of one model so far. Plain values: it is kept in the browser."""

    model: str
    text: str = ""
    state: State = "running"
    tokens: int = 0
    seconds: float = 0.0
    think_tokens: int = 0
    think_seconds: float = 0.0
    error: str = ""
    verdict: str = ""  # right or wrong, where the answer is known
    waiting: int = field(default=0, compare=False)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_answers(
    pool: Pool,
    models: Sequence[str],
    history: Sequence[Sequence[dict[str, str]]],
    sampling: Sampling,
    handle: RequestHandle,
    *,
    name: str = "ask",
    tell_format: bool = False,
    pause: float = 0.05,
) -> Iterator[list[Answer]]:
    """Yield the answers of all models whenever there is more of them, at most every `pause` seconds after the first
    token; a last time when all have ended.

    Args:
        history: a conversation for each model, ending with the question.
        name: name of the request; another one draws other random numbers.
        tell_format: explain the format to models that were not trained for it.
    """
    readers = [
        _Reader(Answer(model), pool, turns, sampling, handle, name, tell_format)
        for model, turns in zip(models, history, strict=True)
    ]
    news: SimpleQueue[None] = SimpleQueue()
    for reader in readers:
        Thread(target=reader.read, args=(news,), daemon=True).start()
    shown = 0
    while any(reader.now().state == "running" for reader in readers):
        with suppress(Empty):
            news.get(timeout=_LOOK_SECONDS)
        tokens = sum(reader.answer.tokens for reader in readers)
        if shown and tokens > shown:
            time.sleep(pause)
        while not news.empty():
            news.get()
        shown = tokens
        yield [reader.now() for reader in readers]
    yield [reader.now() for reader in readers]


@dataclass
class _Reader:
    """Reads one model in a thread of its own."""

    answer: Answer
    pool: Pool
    turns: Sequence[dict[str, str]]
    sampling: Sampling
    all: RequestHandle
    name: str
    tell_format: bool
    own: RequestHandle = field(default_factory=RequestHandle)  # its place in the queue is its own
    seated: bool = False
    left: Answer | None = None  # as it was when nobody waited for the model any more

    def now(self) -> Answer:
        if self.all.stopped:
            self.own.stop()
        self.answer.waiting = self.own.waiting
        if self.all.stopped and not self.seated and self.answer.state == "running":
            self.left = self.left or replace(self.answer, state="stopped")  # loading goes on, for others
        return self.left or self.answer

    def read(self, news: SimpleQueue[None]) -> None:
        try:
            self._read(news)
        except ThinktuneError as error:
            self.answer.error = reason(error)
            self.answer.state = "error"
        except Exception as error:  # noqa: BLE001 - a thread that dies silently would leave the page waiting for ever
            self.answer.error = f"{type(error).__name__}: {error}"
            self.answer.state = "error"
        news.put(None)

    def _read(self, news: SimpleQueue[None]) -> None:
        answer = self.answer
        opened = self.pool.open(answer.model, self.own)
        self.seated = True
        turns = self.turns
        if self.tell_format and not opened.tuned:
            turns = [*turns[:-1], {**turns[-1], "content": f"{turns[-1]['content']}\n\n{tags.INSTRUCTION}"}]
        request = Request(self.name, opened.chat.prompt_ids(turns), self.sampling)
        started = time.perf_counter()
        for piece in opened.engine.stream(request):
            if self.all.stopped:
                break
            answer.text += piece
            answer.tokens += 1
            answer.seconds = time.perf_counter() - started
            if "</think>" not in answer.text:
                answer.think_tokens, answer.think_seconds = answer.tokens, answer.seconds
            news.put(None)
        answer.state = "stopped" if self.all.stopped else "done"
