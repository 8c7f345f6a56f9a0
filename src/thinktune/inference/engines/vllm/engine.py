"""vLLM behind the contract of every engine, in a process of its own (`worker`).

Its crash is an error that we report, and not our end: the requests in flight are halved and tried again until the one
that brings it down is found. Closing leaves no process behind, nor does our being killed. Several adapters share one
engine. The text of a completion is decoded here, as for every engine, and all samples of a request are rows of their
own, each with noise that belongs to (seed, id, sample).
"""

from __future__ import annotations

import gc
import hashlib
import logging
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinktune.config import Sampling, Vllm
from thinktune.errors import GenerationError
from thinktune.inference.engines.base import Completion, Engine, Request, polling, why_refused
from thinktune.inference.engines.detokenizer import Detokenizer, TextStream
from thinktune.inference.engines.vllm.model import OWN, VllmModel, engine_arguments, vllm_environment
from thinktune.inference.engines.vllm.process import Crashed, Event, InFlight, WorkerProcess
from thinktune.inference.engines.vllm.worker import pack_ids

logger = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("worker.py")
VLLM_CANNOT = Engine.unsupported | {"no_repeat_ngram_size"}
_MOST_CRASHES = 12  # enough to halve all that is in flight down to one request


@dataclass(frozen=True)
class _Row:
    """One sample of a request."""

    request: Request
    index: int


class _Rows:
    """All samples of requests, as far as these are ready."""

    def __init__(self, requests: Iterable[Request] = (), rows: Iterable[_Row] = ()) -> None:
        self._poll = polling(requests)
        self._next = deque(rows)

    def take(self, count: int) -> list[_Row]:
        """Take so many rows, or those that are ready."""
        while len(self._next) < count and (request := self._poll()) is not None:
            self._next.extend(_Row(request, index) for index in range(request.sampling.n))
        return [self._next.popleft() for _ in range(min(count, len(self._next)))]


class VllmEngine(Engine):
    """Generates with vLLM.

    Args:
        model: the model to run.
        settings: of vLLM itself.
        process: one begun by `begin_process`, for this model; None: a new one.

    Attributes:
        settings: as given; `per_request_seed` may be exchanged while it runs.

    Raises:
        MissingExtra: vLLM is not installed.
        ModelError: an adapter that vLLM cannot run.
        GenerationError: vLLM does not start; its reason is given.
    """

    unsupported = VLLM_CANNOT

    def __init__(
        self,
        model: VllmModel,
        settings: Vllm,
        process: WorkerProcess | None = None,
    ) -> None:
        self._model = model
        self.settings = settings
        self.slots = settings.max_num_seqs
        self._first = {
            "engine": engine_arguments(model, settings),
            "adapters": {
                name: [number, str(folder)] for number, (name, folder) in enumerate(model.adapters.items(), start=1)
            },
        }
        self._crashes = 0
        self._process: WorkerProcess | None = self._start(process or begin_process(model))
        ready = self._process.ready
        self.context_length: int = ready["context_length"]
        self._vocabulary: int = ready["vocabulary"]
        self._detokenizer = Detokenizer(model.tokenizer, model.stop_ids, self._vocabulary)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """See `Engine.generate`. Requests are taken from the iterable as there is room for them.

        Raises:
            GenerationError: vLLM ends again and again.
        """
        self._crashes = 0
        yield from self._answer(_Rows(requests))

    def stream(self, request: Request) -> Iterator[str]:
        """See `Engine.stream`. The pieces join to the text that `generate` gives for the same request.

        Raises:
            GenerationError: the request cannot be answered, or vLLM has ended.
        """
        if problem := self._problem(request):
            raise GenerationError(problem)
        text, shown = TextStream(self._detokenizer), ""
        ids: list[int] = []
        with InFlight(self._running()) as in_flight:
            in_flight.add([self._wire_request(_Row(request, 0), streamed=True)])
            while (event := in_flight.next_event()).get("finish_reason") is None:
                if "error" in event:
                    raise GenerationError(event["error"])
                ids += event["token_ids"]
                for token in event["token_ids"]:
                    if piece := text.push(token):
                        shown += piece
                        yield piece
        last = {**event, "token_ids": [*ids, *event["token_ids"]]}
        (completion,) = self._complete([(_Row(request, 0), last)])
        if completion.error is not None:
            raise GenerationError(completion.error)
        if rest := completion.text[len(shown) :]:
            yield rest

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """See `Engine.logprobs`.

        Raises:
            GenerationError: vLLM refuses the prompt, or has ended.
        """
        request = Request("score", [*prompt_ids, *continuation_ids], Sampling())
        if problem := self._problem(request):
            raise GenerationError(problem)
        with InFlight(self._running()) as in_flight:
            in_flight.score(request.prompt_ids, len(continuation_ids), self._adapter(request))
            event = in_flight.next_event()
        if "error" in event:
            raise GenerationError(event["error"])
        return [float(value) for value in event["logprobs"]]

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _running(self) -> WorkerProcess:
        """Return the process, started anew where there is none or it has ended."""
        if self._process is None or self._process.ended:
            self.close()
            self._process = self._start(begin_process(self._model))
        return self._process

    def _start(self, process: WorkerProcess) -> WorkerProcess:
        """Let a process that was begun run the model."""
        _release_gpu_memory()
        unmerged = f", {len(self._model.adapters)} adapters beside it" if self._model.adapters else ""
        logger.info(f"starting vLLM on {self._model.folder}{unmerged}")
        started = time.perf_counter()
        process.run(self._first)
        logger.info(f"vLLM {process.ready['version']} is ready after {time.perf_counter() - started:.0f} s")
        return process

    def _answer(self, rows: _Rows, *, alone: bool = False) -> Generator[Completion, None, None]:
        """Keep as many rows in flight as vLLM can use. Where it ends, halve the rows in flight, and go on.

        A row is blamed only where it was `alone`: vLLM may have been killed from outside.
        """
        most = 2 * self.settings.max_num_seqs  # those that decode, and as many waiting at the door
        suspects: list[_Row] | None = []
        while suspects is not None:
            half = (len(suspects) + 1) // 2
            for part in filter(None, (suspects[:half], suspects[half:])):
                yield from self._answer(_Rows(rows=part), alone=len(part) == 1)
            suspects = None
            flying: dict[str, _Row] = {}
            leaving: list[_Row] = []  # on their way to the process
            with InFlight(self._running()) as in_flight:
                try:
                    while (taken := rows.take(most - len(flying))) or flying:
                        problems = [self._problem(row.request) for row in taken]
                        yield from (_failed(row, each) for row, each in zip(taken, problems, strict=True) if each)
                        leaving = [row for row, each in zip(taken, problems, strict=True) if not each]
                        flying.update(zip(in_flight.add(map(self._wire_request, leaving)), leaving, strict=True))
                        leaving = []
                        if flying:
                            events = in_flight.next_events()
                            yield from self._complete([(flying.pop(event["id"]), event) for event in events])
                except Crashed as crash:
                    self._note_crash(crash)
                    suspects = [*flying.values(), *leaving]
                    if alone and suspects:
                        yield _failed(suspects.pop(), f"vLLM ended at this request: {crash.message}")

    def _note_crash(self, crash: Crashed) -> None:
        self.close()
        self._crashes += 1
        if self._crashes > _MOST_CRASHES:
            raise GenerationError(f"vLLM ended {self._crashes} times: {crash.message}", hint=crash.hint)

    def _problem(self, request: Request) -> str | None:
        if request.adapter is not None and request.adapter not in self._model.adapters:
            return f"there is no adapter {request.adapter!r} in this engine"
        return why_refused(request.prompt_ids, self.context_length, self._vocabulary)

    def _complete(self, answered: Sequence[tuple[_Row, Event]]) -> Iterator[Completion]:
        """Make the completions of rows by their last events."""
        texts = self._detokenizer.final_texts(
            [(event.get("token_ids", ()), row.request.sampling.stop) for row, event in answered]
        )
        for (row, event), text in zip(answered, texts, strict=True):
            if "error" in event:
                yield _failed(row, event["error"])
            elif (reason := event["finish_reason"]) not in ("stop", "length"):
                yield _failed(row, f"vLLM ended it with {reason!r}")
            else:
                yield Completion(row.request.id, row.index, text, tuple(event["token_ids"]), reason)

    def _wire_request(self, row: _Row, *, streamed: bool = False) -> dict[str, Any]:
        return {
            "prompt_ids": pack_ids(row.request.prompt_ids),
            "sampling": self._sampling_arguments(row),
            "adapter": self._adapter(row.request),
            "streamed": streamed,
        }

    def _adapter(self, request: Request) -> str | None:
        """Return the adapter's name for vLLM; None: the model itself."""
        if request.adapter is None and OWN in self._model.adapters:
            return OWN
        return request.adapter

    def _sampling_arguments(self, row: _Row) -> dict[str, Any]:
        """Translate a sampling into vLLM's SamplingParams."""
        sampling = row.request.sampling
        stop = [text for text in sampling.stop if text]
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "max_tokens": min(sampling.max_tokens, self.context_length - len(row.request.prompt_ids)),
            "seed": _seed(row) if sampling.temperature > 0 and self.settings.per_request_seed else None,
            "stop": stop,
            "detokenize": bool(stop),  # there it looks for stop strings; the text itself is decoded here
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # a stop string may be one: tags are, in many vocabularies
            "spaces_between_special_tokens": False,
            "stop_token_ids": sorted(self._model.stop_ids),
            "ignore_eos": True,  # our stop ids have it, where it is one
        }


def _failed(row: _Row, problem: str) -> Completion:
    return Completion(row.request.id, row.index, "", (), "error", problem)


def _seed(row: _Row) -> int:
    """Make the seed of a sample from (seed, id, sample), so that a resumed run draws the same. No seed counts as 0."""
    text = f"{row.request.sampling.seed or 0}/{row.index}/{row.request.id}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 1


def begin_process(model: VllmModel) -> WorkerProcess:
    """Begin a process that imports vLLM, and then waits to be told which model to run. Of `model`, its tokenizer and
    its stop ids need not be known yet."""
    return WorkerProcess(WORKER, vllm_environment(model))


def _release_gpu_memory() -> None:
    """Empty PyTorch's cache of the memory of earlier models, which vLLM would find taken."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
