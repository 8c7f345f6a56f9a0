"""Our worker process of vLLM (`engines/vllm/worker.py`) that also runs vLLM's own `LLM.generate` over its engine.

`infer.py` starts it in the worker's place, so that both sides of the comparison have the very same engine, and asks it
for the times of what the engine did. Beside the worker's messages it takes

    {"alone": {"id", "prompts": [ids, …], "samplings": [arguments of SamplingParams, …], "adapter"}}
    {"times": {"id"}}   answered with the seconds on the system's monotonic clock since the last such message
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

WORKER = Path(__file__).parents[1] / "src/thinktune/inference/engines/vllm/worker.py"

if TYPE_CHECKING:
    from thinktune.inference.engines.vllm import worker
else:  # loaded by its path: the interpreter may be that of another environment, without thinktune
    spec = importlib.util.spec_from_file_location("worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)


class WorkerAndLLM(worker.Worker):
    """Our worker, over the engine of a `vllm.LLM`."""

    def _open(self, arguments: worker.Message) -> Any:
        from vllm import LLM

        self._llm = LLM(**arguments)
        engine = self._llm.llm_engine
        self._times = Times(engine)
        return engine

    def _take(self, message: worker.Message) -> None:
        super()._take(message)
        if "alone" in message:
            self._post([self._generate(message["alone"])])
        if "times" in message:
            self._post([{"id": message["times"]["id"], **self._times.read()}])

    def _generate(self, asked: worker.Message) -> worker.Message:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
        samplings = [SamplingParams(**arguments) for arguments in asked["samplings"]]
        adapter = self._adapters.get(asked["adapter"])
        started = time.monotonic()
        outputs = self._llm.generate(prompts, samplings, use_tqdm=False, lora_request=adapter)
        ended = time.monotonic()
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return {"id": asked["id"], "tokens": tokens, "started": started, "ended": ended}


class Times:
    """The times at which an engine was asked and had answered, whoever asks it."""

    def __init__(self, engine: Any) -> None:
        self._clear()
        engine.add_request = self._noting("add", engine.add_request)
        engine.step = self._noting("step", engine.step)
        engine.engine_core.get_output = self._noting("wait", engine.engine_core.get_output)

    def read(self) -> dict[str, float]:
        noted = self._noted
        self._clear()
        return noted

    def _clear(self) -> None:
        self._noted: dict[str, float] = {}

    def _noting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function that notes when `function` was called first and returned last, how often, and its seconds."""

        def noting(*args: Any, **kwargs: Any) -> Any:
            called = time.monotonic()
            value = function(*args, **kwargs)
            returned, noted = time.monotonic(), self._noted
            noted.setdefault(f"{name} first", called)
            noted[f"{name} last"] = returned
            noted[f"{name} seconds"] = noted.get(f"{name} seconds", 0.0) + returned - called
            noted[f"{name} calls"] = noted.get(f"{name} calls", 0) + 1
            return value

        return noting


if __name__ == "__main__":  # vLLM's own processes import this file too
    worker.main(WorkerAndLLM)
