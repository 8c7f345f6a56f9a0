"""Fleets: several engines against one, a worker killed in between, and what one driver and its journal can take.

    python bench/fleet.py gpus TOKENIZER_FOLDER                 # 4 H100: four workers of vLLM against one of them
    python bench/fleet.py gpus --model FOLDER --engine transformers --workers 2 --items 300   # to try it on a CPU
    python bench/fleet.py driver --items 1000000                # scripted engines: items/s and memory of the driver

`gpus` takes Qwen2.5-3B's shape with random weights (bench/infer.py), and completions of 64 to 448 tokens, so that they
do not end in waves. Rates are those between 10% and 90% of the tokens, start and tail left out. `driver` answers a
batch file with engines that answer at once: left are reading, rendering, digests, handing out, journal, result file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from thinktune.config import Load, Sampling, Vllm
from thinktune.inference.batch import infer_files
from thinktune.inference.complete import complete
from thinktune.inference.engines import Completion, Engine, EngineSettings, Opened, Request, open_engine
from thinktune.inference.engines.base import polling
from thinktune.inference.shard import journal_of


def main() -> None:
    parser = argparse.ArgumentParser(description="Fleets of engines.")
    parser.add_argument("part", choices=("gpus", "driver"))
    parser.add_argument("tokenizer", type=Path, nargs="?", help="folder of Qwen2.5's tokenizer")
    parser.add_argument("--model", type=Path, help="a model folder to measure instead")
    parser.add_argument("--shape", default="3b")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-fleet"))
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--items", type=int, default=6000, help="of each engine; with `driver`, of all")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    (measure_gpus if options.part == "gpus" else measure_driver)(options)


def measure_gpus(options: argparse.Namespace) -> None:
    """Print the rate of one of the workers, of all, and the outcome where one is killed."""
    began = time.time()
    if options.model is None:
        import infer as bench

        options.model = options.work / options.shape
        child = get_context("spawn").Process(target=bench.make_model, args=(options,))  # its GPU memory ends with it
        child.start()
        child.join()
        print(f"model made in {time.time() - began:.0f} s", flush=True)
    vllm = Vllm(max_model_len=2048, gpu_memory_utilization=0.8)
    settings = EngineSettings(options.engine, Load(), vllm=vllm, workers=options.workers)
    with open_engine(options.model, settings) as opened:
        fleet = _started(opened)
        print(f"{options.workers} workers started after {time.time() - began:.0f} s", flush=True)
        members = fleet._members
        fleet._members = members[:1]
        one = Watched(opened.engine).answer(opened, options, options.items, "one")
        print(f"one worker            {one:10,.0f} tokens/s", flush=True)
        fleet._members = members
        several = Watched(opened.engine).answer(opened, options, options.items * options.workers, "all")
        share = several / one / options.workers
        times = f"{share:.1%} of {options.workers} times one"
        print(f"{options.workers} workers             {several:10,.0f} tokens/s, {times}", flush=True)
        half = options.items * options.workers // 2
        killed = Watched(opened.engine, kill_at=0.4).answer(opened, options, half, "killed")
        print(f"a worker killed at 40%: {killed:10,.0f} tokens/s until the end", flush=True)
    print(f"{time.time() - began:.0f} s in all", flush=True)


def _started(opened: Opened) -> Any:
    """Return the fleet, when all of its workers are ready."""
    opened.engine.start()
    fleet = opened.engine._engine  # type: ignore[attr-defined]
    while not all(member.is_ready for member in fleet._members):
        time.sleep(0.1)
        fleet._greet()
    return fleet


class Watched(Engine):
    """An engine whose completions are timed, and one of whose workers may be killed."""

    def __init__(self, engine: Engine, kill_at: float | None = None) -> None:
        self._engine, self._kill_at = engine, kill_at
        self.context_length = engine.context_length
        self.context_setting, self.unsupported = engine.context_setting, engine.unsupported

    def answer(self, opened: Opened, options: argparse.Namespace, count: int, name: str) -> float:
        """Answer `count` requests through a journal, and check that each sample is there once; return the tokens/s."""
        text = f"{name}: calculate the area of a circle and explain every step."
        ids = opened.chat.prompt_ids([{"role": "user", "content": text}])
        lengths = [Sampling(temperature=0.3, top_p=0.9, seed=1, max_tokens=length) for length in range(64, 449)]
        requests = [  # no two prompts are alike
            Request(f"{name}{at}", [*ids[:-6], 50 + at % 300, 50 + at // 300, *ids[-6:]], lengths[at * 37 % 385])
            for at in range(count)
        ]
        self._count, self._times = count, [(time.monotonic(), 0)]
        journal = options.work / f"{opened.settings.workers}-{name}.journal.jsonl"
        console = Console(file=io.StringIO())
        done = complete(self, requests, journal, model=name, console=console, overwrite=True)
        lines = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        errors = sum(line["error"] is not None for line in lines)
        distinct = len({line["key"] for line in lines})
        print(f"{name}: {count} asked, {len(lines)} lines, {distinct} distinct, {errors} errors", flush=True)
        assert len(done.completions) == distinct == len(lines) == count
        return self._rate_between(0.45, 1.0) if self._kill_at else self._rate_between(0.1, 0.9)

    def _rate_between(self, low: float, high: float) -> float:
        total = self._times[-1][1]
        inside = [(at, tokens) for at, tokens in self._times if low * total <= tokens <= high * total]
        (start, first), (end, last) = inside[0], inside[-1]
        return (last - first) / (end - start)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        self._times = [(time.monotonic(), 0)]
        for number, completion in enumerate(self._engine.generate(requests)):
            self._times.append((time.monotonic(), self._times[-1][1] + completion.tokens))
            if self._kill_at and number == int(self._kill_at * self._count):
                place = self._engine._engine._members[0].place  # type: ignore[attr-defined]
                os.kill(int(place.rpartition(" ")[2]), signal.SIGKILL)
                print(f"killed {place}", flush=True)
            yield completion

    def stream(self, request: Request) -> Iterator[str]:
        return self._engine.stream(request)

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return self._engine.logprobs(prompt_ids, continuation_ids)


class Scripted(Engine):
    """Answers at once, with 40 tokens that follow from the request."""

    context_length = 32_768
    slots = 512

    def __init__(self, model: Any) -> None:
        pass

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        poll = polling(requests)
        while (request := poll()) is not None:
            text = hashlib.sha256(request.id.encode()).hexdigest()
            for index in range(request.sampling.n):
                answer = f"<think>{text}</think> <answer>{index}</answer>"
                yield Completion(request.id, index, answer, range(40), "stop")

    def stream(self, request: Request) -> Iterator[str]:
        yield from (each.text for each in self.generate([request]))

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return [0.0] * len(continuation_ids)


def measure_driver(options: argparse.Namespace) -> None:
    """Answer a batch file of short items with scripted engines; print the driver's rate and memory."""
    options.work, options.model = options.work.resolve(), options.model.resolve()
    file, out = options.work / "items.jsonl", options.work / "results.json"
    with file.open("w", encoding="utf-8") as stream:
        for at in range(options.items):
            prompt = f"Calculate the area of a circle with radius {at} and explain every step."
            stream.write(json.dumps({"id": f"item-{at}", "type": "math", "prompt": prompt}) + "\n")
    for old in (out, journal_of(out)):
        old.unlink(missing_ok=True)
    os.chdir(Path(__file__).parent)  # where the workers find the engine
    settings = EngineSettings("fleet:Scripted", Load(device="cpu", dtype="float32"), workers=options.workers)
    began, processor = time.time(), time.process_time()
    console = Console(stderr=True)
    (done,) = infer_files(
        options.model, {file: out}, settings, samplings={"math": Sampling()}, overwrite=True, console=console
    )
    seconds = time.time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert (done.completions, done.failed) == (options.items, 0)
    rate = (done.tokens_per_second or 0) / 40
    print(f"{options.items:,} items: {seconds:.0f} s in all, {options.items / seconds:,.0f} items/s")
    print(f"from the first request to the last line of the journal {rate:,.0f} items/s")
    print(f"processor time of the driver {time.process_time() - processor:.0f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
