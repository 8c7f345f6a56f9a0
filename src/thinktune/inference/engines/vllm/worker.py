"""The process that vLLM runs in: `python -P worker.py FD`, started by `process`.

It may be run by the interpreter of another environment, one that has vLLM and no thinktune, and therefore imports
nothing of ours. It reads JSON lines from the socket FD and writes JSON lines to it:

    first     {"engine": arguments of vLLM's EngineArgs, "adapters": {name: [number, folder]}}
    answered  {"ready": {"context_length", "vocabulary", "version"}}
    then      {"add": [{"id", "prompt_ids", "sampling": arguments of SamplingParams, "adapter", "streamed"}, …], "more"}
              with "more", others follow at once: no step of the engine comes between
              {"score": {"id", "prompt_ids", "last", "adapter"}}  the log-probabilities of the last so many ids
              {"abort": [id, …]}
    events    {"id", "token_ids", "finish_reason"}, which is null while a streamed one goes on
              {"id", "logprobs"}, {"id", "error"}

Token ids are packed (`pack_ids`): numbers in JSON take both sides three times as long.

The end of the input ends the process, and with it everything that vLLM has started.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

Message = dict[str, Any]
_GRACE = 20.0  # seconds for vLLM to shut down by itself
_AT_ONCE = 16  # events of a step that the other side gets while further ones are written


def pack_ids(ids: Iterable[int]) -> str:
    """Write token ids as base64 of 32 bits each."""
    return base64.b64encode(array("i", ids).tobytes()).decode()


def unpack_ids(text: str) -> Sequence[int]:
    """Read the token ids that `pack_ids` wrote."""
    return array("i", base64.b64decode(text))


class Worker:
    """vLLM's engine, stepped as long as it has something to do."""

    def __init__(self, settings: Message, inbox: queue.SimpleQueue[Message | None], send: Callable[[bytes], None]):
        from vllm.lora.request import LoRARequest

        self._engine = self._open(settings["engine"])
        self._adapters = {
            name: LoRARequest(name, number, folder) for name, (number, folder) in settings["adapters"].items()
        }
        self._inbox = inbox
        self._send = send
        self._scored: dict[str, int] = {}
        self._more = False  # requests are on their way

    def describe(self) -> Message:
        """Return the facts about the model that the other side needs."""
        import vllm

        config = self._engine.vllm_config.model_config
        return {
            "context_length": config.max_model_len,
            "vocabulary": config.get_vocab_size(),
            "version": vllm.__version__,
        }

    def run(self) -> None:
        """Serve until the input ends."""
        self._post([{"ready": self.describe()}])
        while True:
            for message in self._messages():
                if message is None:
                    return
                self._take(message)
            self._post(event for output in self._engine.step() for event in self._events(output))

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def _open(self, arguments: Message) -> Any:
        from vllm import EngineArgs, LLMEngine
        from vllm.usage.usage_lib import UsageContext

        # Batches as large as those of `LLM`, vLLM's own class for many prompts; without a context they are an eighth.
        return LLMEngine.from_engine_args(EngineArgs(**arguments), UsageContext.LLM_CLASS)

    def _messages(self) -> Iterator[Message | None]:
        """Return all messages that have come; wait for one if there is nothing else to do."""
        while True:
            try:
                yield self._inbox.get(block=self._more or not self._engine.has_unfinished_requests())
            except queue.Empty:
                return

    def _take(self, message: Message) -> None:
        self._more = message.get("more", False)
        for request in message.get("add", ()):
            self._guarded(self._add, request)
        if "score" in message:
            self._guarded(self._score, message["score"])
        if "abort" in message:
            self._engine.abort_request(message["abort"])

    def _guarded(self, enter: Callable[[Message], None], request: Message) -> None:
        try:
            enter(request)
        # vLLM has many ways to refuse a request, which then is not in the engine: the others are none the worse.
        except Exception as error:  # noqa: BLE001
            self._post([{"id": request["id"], "error": str(error) or type(error).__name__}])

    def _add(self, request: Message) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if request["streamed"] else RequestOutputKind.FINAL_ONLY
        # Copying it, as vLLM does with one that may be used again, is a third of the work of adding a request.
        self._enter(request, SamplingParams(**request["sampling"], output_kind=kind, skip_clone=True))

    def _score(self, request: Message) -> None:
        from vllm import SamplingParams

        self._enter(request, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False))
        self._scored[request["id"]] = request["last"]

    def _enter(self, request: Message, params: Any) -> None:
        prompt = {"prompt_token_ids": list(unpack_ids(request["prompt_ids"]))}
        adapter = self._adapters.get(request["adapter"])
        self._engine.add_request(request["id"], prompt, params, lora_request=adapter)

    def _events(self, output: Any) -> Iterator[Message]:
        if output.request_id in self._scored:
            if output.finished:
                last = self._scored.pop(output.request_id)
                pairs = zip(output.prompt_token_ids[-last:], output.prompt_logprobs[-last:], strict=True)
                yield {"id": output.request_id, "logprobs": [seen[token].logprob for token, seen in pairs]}
            return
        (completion,) = output.outputs
        yield {
            "id": output.request_id,
            "token_ids": pack_ids(completion.token_ids),
            "finish_reason": completion.finish_reason,
        }

    def _post(self, events: Iterable[Message]) -> None:
        lines = (json.dumps(event) + "\n" for event in events)
        while some := "".join(islice(lines, _AT_ONCE)):
            self._send(some.encode())


def _read(connection: socket.socket, inbox: queue.SimpleQueue[Message | None]) -> None:
    """Pass lines on as they come. Their end is the other process's, however that ended.

    Not through a buffered file: it would hold its lock for ever in the processes that vLLM forks.
    """
    pending = b""
    with suppress(ConnectionError):
        while data := connection.recv(1 << 20):
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                inbox.put(json.loads(line))
    inbox.put(None)
    time.sleep(_GRACE)  # this thread is a daemon: it gets no further where vLLM shuts down in time
    _kill_group()


def _import_vllm() -> None:
    """Import what `Worker` takes of vLLM, without looking for garbage, which takes an eighth of the time.

    Nor is garbage looked for among it later, in the processes that vLLM forks either: one look at its 600,000 objects
    takes a second, and vLLM takes four while it starts.
    """
    gc.disable()
    import vllm

    for name in ("EngineArgs", "LLMEngine", "SamplingParams"):
        getattr(vllm, name)
    gc.freeze()
    gc.enable()


def _kill_group() -> None:
    """Kill this process and all that vLLM started from it; `process` made it the leader of a group of its own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.killpg(os.getpgid(0), signal.SIGKILL)


def main(kind: type[Worker] = Worker) -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        _import_vllm()
        settings = inbox.get()
        if settings is None:
            os._exit(0)
        worker = kind(settings, inbox, connection.sendall)
        worker.run()
    # Whatever it is, the other side reads it in the log, and must not wait for processes that will never answer.
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        _kill_group()
    worker.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # Python would take two seconds to let go of things that end with it anyway


if __name__ == "__main__":  # vLLM's own processes import this file too
    main()
