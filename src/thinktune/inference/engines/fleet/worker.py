"""One engine of a fleet: an actor of Ray's, which answers in a thread of its own while the driver puts and takes."""

from __future__ import annotations

import os
import socket
import threading
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from thinktune.inference.engines.base import Completion, Likelihood, Pair, Request, RequestSource
from thinktune.inference.engines.settings import EngineSettings
from thinktune.version import __version__

_WAIT = 1.0  # seconds that `take` waits for completions


@dataclass(frozen=True)
class Opening:
    """The arguments of `open_engine` for a worker.

    Attributes:
        folder: the driver's working folder, to which relative references belong.
    """

    reference: str | Path
    settings: EngineSettings
    adapters: Mapping[str, str | Path]
    folder: str


@dataclass(frozen=True)
class Description:
    """An engine that is ready: where it runs, and what the driver has to compare and to know."""

    place: str
    version: str
    fingerprint: str
    context_length: int
    slots: int


class _Inbox(RequestSource):
    """The requests of one call of the driver's, and the completions that it has not yet taken."""

    def __init__(self) -> None:
        self.waiting: deque[Request] = deque()
        self.finished: list[Completion] = []

    def poll(self) -> Request | None:
        return self.waiting.popleft() if self.waiting else None


class Worker:
    """Holds one engine, with its think budgets, so that an answer goes where its thought is cached."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._inbox = _Inbox()
        self._failure: BaseException | None = None

    def open(self, opening: Opening) -> Description:
        """Load the model. Raises as `open_engine` and its engines do."""
        from thinktune.inference.engines.open_engine import open_engine

        with suppress(OSError):  # another machine may not have it, nor need it
            os.chdir(opening.folder)
        opened = open_engine(opening.reference, opening.settings, adapters=opening.adapters)
        self._engine = opened.engine
        self._engine.start()
        threading.Thread(target=self._work, daemon=True).start()
        return Description(
            f"{socket.gethostname()}, process {os.getpid()}",
            __version__,
            opened.fingerprint,
            self._engine.context_length,
            self._engine.slots,
        )

    def put(self, requests: Sequence[Request]) -> None:
        """Let the engine answer more requests of the same call."""
        with self._news:
            self._inbox.waiting.extend(requests)
            self._news.notify_all()

    def take(self) -> list[Completion]:
        """Return the completions since the last time; wait a second for some. Raises what ended the engine."""
        with self._news:
            inbox = self._inbox
            if not inbox.finished and self._failure is None:
                self._news.wait(_WAIT)
            if self._failure is not None:
                raise self._failure
            finished, inbox.finished = inbox.finished, []
            return finished

    def drop(self) -> None:
        """Forget the requests of a call that its caller has left."""
        with self._news:
            self._inbox = _Inbox()

    def likelihoods(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """See `Engine.likelihoods`."""
        return list(self._engine.likelihoods(pairs))

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """See `Engine.logprobs`."""
        return self._engine.logprobs(prompt_ids, continuation_ids)

    def stream(self, request: Request) -> list[str]:
        """See `Engine.stream`; the pieces come together."""
        return list(self._engine.stream(request))

    def close(self) -> None:
        """Give the engine's memory and processes back."""
        self._engine.close()

    def _work(self) -> None:
        try:
            while True:
                with self._news:
                    while not self._inbox.waiting:
                        self._news.wait()
                    inbox = self._inbox
                self._answer(inbox)
        except BaseException as error:  # noqa: BLE001 - the driver has to hear of it, whatever it is
            with self._news:
                self._failure = error
                self._news.notify_all()

    def _answer(self, inbox: _Inbox) -> None:
        with closing(self._engine.generate(inbox)) as completions:
            for completion in completions:
                packed = replace(completion, token_ids=array("i", completion.token_ids))  # a tuple takes thrice as long
                with self._news:
                    if inbox is not self._inbox:
                        return
                    inbox.finished.append(packed)
                    self._news.notify_all()
