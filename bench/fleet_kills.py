"""Kills during batch inference on a Ray cluster of this machine: of nodes, and of the driver.

    python bench/fleet_kills.py MODEL_FOLDER --kills 20

Real engines (transformers, on the CPU) on a tiny model. Nodes are killed without grace while one call answers a batch
file, and replaced. Drivers are killed at random moments, and the same command is given again, until the work is done.
Printed: completions that are missing or there twice, seconds until a killed driver's workers were gone, the longest
pause between two lines of the journal, and the processes that are left at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import psutil

from thinktune.cluster import import_ray
from thinktune.config import Load, Sampling
from thinktune.inference.batch_file import read_batch_file
from thinktune.inference.engines import Completion, Engine, EngineSettings, Request, open_engine
from thinktune.inference.rendering import render
from thinktune.inference.shard import journal_of


class Machines:
    """A Ray cluster whose head has no room for workers, and each node for one."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": 10**8, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=10**8))

    def kill(self) -> None:
        self.cluster.remove_node(self.nodes.pop(random.randrange(len(self.nodes))), allow_graceful=False)
        self.add()


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills during batch inference.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", default="nodes,drivers")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-kills"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "items.jsonl"
    lines = [
        {"id": f"q{at}", "type": "math", "prompt": f"What is {at} times 7?", "sampling": {"max_tokens": 60, "n": 1}}
        for at in range(options.items)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    import_ray()
    machines = Machines(options.workers)
    try:
        for part in options.parts.split(","):
            {"nodes": kill_nodes, "drivers": kill_drivers}[part](options, file, machines)
    finally:
        import_ray().shutdown()
        machines.cluster.shutdown()
    began = time.time()
    while (left := _processes("ray::", "raylet", "gcs_server")) and time.time() - began < 90:
        time.sleep(0.5)
    print(f"processes left {time.time() - began:.0f} s after the end of the cluster: {len(left)}")


def kill_nodes(options: argparse.Namespace, file: Path, machines: Machines) -> None:
    """Kill nodes while one call is at work: the next one when all lost workers have been replaced."""
    out = options.work / "nodes.json"
    journal_of(out).unlink(missing_ok=True)
    load = Load(device="cpu", dtype="float32")
    settings = EngineSettings("transformers", load, workers=options.workers, cluster=machines.cluster.address)
    with open_engine(options.model, settings) as opened:
        items = read_batch_file(file, samplings={"math": Sampling()})
        prompts = render(opened.chat, [item.messages for item in items])
        requests = [Request(str(item.id), ids, item.sampling) for item, ids in zip(items, prompts, strict=True)]
        engine = Killing(opened.engine, machines, options.kills)
        found: dict[str, int] = {}
        round_number = 0
        while engine.kills < options.kills or not round_number:  # as often as it takes for so many kills
            asked = [Request(f"{round_number}/{each.id}", each.prompt_ids, each.sampling) for each in requests]
            for completion in engine.generate(asked):
                assert completion.error is None, completion.error
                found[completion.request_id] = found.get(completion.request_id, 0) + 1
            round_number += 1
    print(
        f"{engine.kills} nodes killed: {len(found)} of {round_number * len(requests)} answered, "
        f"{sum(count > 1 for count in found.values())} twice, longest pause {engine.pause:.1f} s",
        flush=True,
    )


class Killing(Engine):
    """An engine that kills nodes at random moments."""

    def __init__(self, engine: Engine, machines: Machines, most: int) -> None:
        self._engine, self._machines, self._most = engine, machines, most
        self.kills, self.pause, self._next = 0, 0.0, random.randrange(50, 200)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        last = time.monotonic()
        for completion in self._engine.generate(requests):
            self.pause = max(self.pause, time.monotonic() - last)
            yield completion
            self._next -= 1
            if self._next <= 0 and self.kills < self._most:
                self._machines.kill()
                self.kills += 1
                self._next = random.randrange(50, 400)
                print(f"  {self.kills} killed", file=sys.stderr, flush=True)
            last = time.monotonic()

    def stream(self, request: Request) -> Any:
        return self._engine.stream(request)

    def logprobs(self, prompt_ids: Any, continuation_ids: Any) -> list[float]:
        return self._engine.logprobs(prompt_ids, continuation_ids)


def kill_drivers(options: argparse.Namespace, file: Path, machines: Machines) -> None:
    """Kill the driver again and again, at a random moment after it has begun to answer."""
    out = options.work / "drivers.json"
    for old in (out, journal_of(out)):
        old.unlink(missing_ok=True)
    call = [sys.executable, "-m", "thinktune", "infer", str(options.model), str(file), "-o", str(out)]
    call += ["--engine", "transformers", "--load", "device=cpu", "--load", "dtype=float32"]
    call += ["--cluster", machines.cluster.address, "--workers", str(options.workers)]
    gone = []
    for number in range(options.kills):
        before = _lines(out)
        driver = subprocess.Popen(call, stderr=subprocess.DEVNULL)
        _until(lambda before=before, driver=driver: _lines(out) > before or driver.poll() is not None, 600)
        time.sleep(random.random() * 0.2)
        driver.kill()
        driver.wait()
        began = time.time()
        _until(lambda: not _processes("ray::Worker"), 120)  # of this cluster, whose nodes are our children
        gone.append(time.time() - began)
        print(f"  {number + 1} killed at {_lines(out)} lines, {gone[-1]:.1f} s", file=sys.stderr, flush=True)
    subprocess.run(call, check=True)
    keys = [json.loads(line)["key"] for line in journal_of(out).read_text(encoding="utf-8").splitlines()]
    print(
        f"{options.kills} drivers killed: {len(set(keys))} of {options.items} answered, {len(keys) - len(set(keys))} "
        f"twice; workers gone after {sum(gone) / len(gone):.1f} s on average, {max(gone):.1f} at most",
        flush=True,
    )


def _lines(out: Path) -> int:
    journal = journal_of(out)
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def _processes(*names: str) -> list[psutil.Process]:
    return [
        each
        for each in psutil.Process().children(recursive=True)
        if any(name in " ".join(_command(each)) for name in names)
    ]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit("it hangs")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
