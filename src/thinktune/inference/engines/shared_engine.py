"""One model in memory for many callers at once.

A thread of its own decodes for all of them: streams of one adapter share a batch, which new ones join at the next
token; those of another adapter, and long lists of requests, take turns with them, token by token. Each has a cache of
its own, so that a switch of adapters finds nothing stale. Requests that cannot run yet wait in a queue and know their
place.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from peft.tuners.tuners_utils import BaseTunerLayer

from thinktune.errors import GenerationError, Interrupted, ModelError, ThinktuneError
from thinktune.inference.engines.base import Completion, Engine, Request
from thinktune.inference.engines.hf.engine import TransformersEngine, Writer
from thinktune.inference.engines.hf.scheduler import Scheduler
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.models.adapters import put_adapter

Result = TypeVar("Result")
_MOST_STREAMS = 16  # at once, each then as fast as a reader on a small CPU; more wait in the queue


class _Stream:
    """One request whose text is read while it grows. None ends the pieces."""

    def __init__(self, writer: Writer, adapter: str | None, handle: RequestHandle) -> None:
        self.writer = writer
        self.adapter = adapter
        self.handle = handle
        self.pieces: SimpleQueue[str | Exception | None] = SimpleQueue()

    def deliver(self) -> bool:
        """Pass on new text; return False after the last."""
        try:
            for piece in self.writer.written():
                self.pieces.put(piece)
        except GenerationError as error:
            self.pieces.put(error)
            return False
        if self.writer.row.reason is not None:
            self.pieces.put(None)
        return self.writer.row.reason is None


class _Streams:
    """The streams of one adapter, in one batch."""

    def __init__(self, scheduler: Scheduler, adapter: str | None) -> None:
        self.adapter = adapter
        self.members: list[_Stream] = []
        self._scheduler = scheduler

    def join(self, stream: _Stream) -> None:
        self.members.append(stream)
        self._scheduler.waiting.append(stream.writer.row)

    def advance(self) -> bool:
        for stream in self.members:
            if stream.handle.stopped and stream.writer.row.reason is None:
                stream.writer.row.reason = "stop"  # the batch drops it at its next change
        self._scheduler.advance()
        self.members = [stream for stream in self.members if stream.deliver()]
        return bool(self.members)

    def fail(self, error: Exception) -> None:
        for stream in self.members:
            stream.pieces.put(error)


class _Bulk:
    """A list of requests, answered in a batch of its own, as the command line would."""

    def __init__(
        self, steps: Generator[list[Completion], None, None], adapter: str | None, handle: RequestHandle
    ) -> None:
        self.adapter = adapter
        self.finished: SimpleQueue[Completion | Exception | None] = SimpleQueue()
        self._steps = steps
        self._handle = handle

    def advance(self) -> bool:
        if self._handle.stopped:
            self._steps.close()
            self.fail(Interrupted("stopped", hint="it goes on from there when it is started again"))
            return False
        try:
            completions = next(self._steps, None)
        except ThinktuneError as error:
            self.fail(error)
            return False
        for completion in completions or ():
            self.finished.put(completion)
        if completions is None:
            self.finished.put(None)
        return completions is not None

    def fail(self, error: Exception) -> None:
        self.finished.put(error)


class SharedModel:
    """A model that answers many callers, with adapters that are switched on it.

    Args:
        engine: of a model without adapters, for this object alone from now on.
        most_streams: that decode at once.
    """

    def __init__(self, engine: TransformersEngine, *, most_streams: int = _MOST_STREAMS) -> None:
        self._model = engine.model
        self._engine = engine
        self._most_streams = most_streams
        self._tuned: Any = None  # the PeftModel around the model, from the first adapter on
        self._layers: list[Any] = []  # those that adapters change
        self._active: str | None = None
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._queue: deque[_Stream] = deque()
        self._work_items: list[_Streams | _Bulk] = []
        self._failure: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="thinktune-decode", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        return self._engine.context_length

    @property
    def busy(self) -> bool:
        """Whether it decodes, or is about to."""
        return bool(self._work_items or self._queue or self._commands)

    @property
    def failed(self) -> bool:
        """Whether it has to be loaded anew: its device or an adapter has spoilt it."""
        return self._failure is not None

    def add_adapter(self, name: str, folder: Path) -> None:
        """Hold one more adapter beside the model, under a name without dots.

        Raises:
            ModelError: it does not fit this model.
        """
        self._run(lambda: self._put(name, folder))

    def engine(self, adapter: str | None = None, handle: RequestHandle | None = None) -> Engine:
        """Return this model, with that adapter, as an engine for one caller."""
        return _View(self, adapter, handle or RequestHandle())

    def stream(self, request: Request, adapter: str | None, handle: RequestHandle) -> Iterator[str]:
        """See `Engine.stream`; it ends early when the handle is stopped."""
        stream = _Stream(self._engine.writer(request), adapter, handle)
        handle.waiting = len(self._queue) + 1
        self._submit(lambda: self._queue.append(stream))
        try:
            while (piece := stream.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            handle.tokens, handle.reason = len(stream.writer.row.ids), stream.writer.row.reason
            if stream.writer.row.reason is None:  # whoever listened has gone
                handle.stop()

    def generate(
        self, requests: Iterable[Request], adapter: str | None, handle: RequestHandle
    ) -> Generator[Completion, None, None]:
        """See `Engine.generate`.

        Raises:
            Interrupted: the handle was stopped.
        """
        bulk = _Bulk(self._engine.steps(list(requests)), adapter, handle)
        self._submit(lambda: self._work_items.append(bulk))
        try:
            while (completion := bulk.finished.get()) is not None:
                if isinstance(completion, Exception):
                    raise completion
                yield completion
        except GeneratorExit:
            handle.stop()
            raise

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int], adapter: str | None) -> list[float]:
        """See `Engine.logprobs`."""

        def score() -> list[float]:
            self._switch(adapter)
            return self._engine.logprobs(prompt_ids, continuation_ids)

        return self._run(score)

    def close(self) -> None:
        """End everything and let go of the model. Safe to call twice."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, command: Callable[[], None]) -> None:
        """Let the decoding thread do something between two tokens."""
        with self._changed:
            if self._failure is not None or self._closing:
                raise GenerationError(f"the model is not running any more: {self._failure or 'it was closed'}")
            self._commands.append(command)
            self._changed.notify()

    def _run(self, work: Callable[[], Result]) -> Result:
        future: Future[Result] = Future()

        def command() -> None:
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the caller's to handle
                future.set_exception(error)

        self._submit(command)
        return future.result()

    def _work(self) -> None:
        failure: Exception = GenerationError("the model was closed")
        try:
            with self._engine.ready():
                while self._wait():
                    self._admit()
                    for work_item in list(self._work_items):
                        self._switch(work_item.adapter)
                        if not work_item.advance():
                            self._work_items.remove(work_item)
        except Exception as error:  # noqa: BLE001 - every caller has to hear of it, whatever it is
            failure = self._failure = error
        with self._changed:
            self._closing = True
            for command in self._commands:
                command()
        for work_item in self._work_items:
            work_item.fail(failure)
        for stream in self._queue:
            stream.pieces.put(failure)

    def _wait(self) -> bool:
        """Wait for something to do, commands first; return False when it is time to end."""
        with self._changed:
            while not (self._commands or self._work_items or self._queue or self._closing):
                self._changed.wait()
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        return not self._closing

    def _admit(self) -> None:
        for stream in [each for each in self._queue if each.handle.stopped]:
            self._queue.remove(stream)
            stream.pieces.put(None)
        batches = [work_item for work_item in self._work_items if isinstance(work_item, _Streams)]
        running = sum(len(batch.members) for batch in batches)
        while self._queue and running < self._most_streams:
            stream = self._queue.popleft()
            batch = next((each for each in batches if each.adapter == stream.adapter), None)
            if batch is None:
                batch = _Streams(self._engine.scheduler(eager=True), stream.adapter)
                batches.append(batch)
                self._work_items.append(batch)
            batch.join(stream)
            stream.handle.waiting = 0
            running += 1
        for place, stream in enumerate(self._queue, start=1):
            stream.handle.waiting = place

    def _put(self, name: str, folder: Path) -> None:
        try:
            self._tuned = put_adapter(self._tuned or self._model, folder, merge=False, name=name)
        except ModelError:
            # Half-read, it lies in the layers already, and must not speak for the base model.
            if self._tuned is None:
                self._failure = GenerationError(f"the adapter {folder} did not fit, and has spoilt the model in memory")
            raise
        self._tuned.eval()
        self._layers = [module for module in self._tuned.modules() if isinstance(module, BaseTunerLayer)]
        self._active = None  # PEFT has changed the active one
        self._switch(name)

    def _switch(self, adapter: str | None) -> None:
        if adapter == self._active:
            return
        # As PEFT's own methods do, without their walk over every parameter's requires_grad: that takes longer than
        # a token, and this may happen between any two.
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            layer._active_adapter = adapter or layer._active_adapter
        self._active = adapter


class _View(Engine):
    def __init__(self, model: SharedModel, adapter: str | None, handle: RequestHandle) -> None:
        self._model = model
        self._adapter = adapter
        self._handle = handle

    @property
    def context_length(self) -> int:  # type: ignore[override]
        return self._model.context_length

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        return self._model.generate(requests, self._adapter, self._handle)

    def stream(self, request: Request) -> Iterator[str]:
        return self._model.stream(request, self._adapter, self._handle)

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return self._model.logprobs(prompt_ids, continuation_ids, self._adapter)
