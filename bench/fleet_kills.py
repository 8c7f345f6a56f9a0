"""Kills during batch inference with Ray on this machine: of nodes, and of the driver.

    python bench/fleet_kills.py MODEL_FOLDER --kills 20

Real engines (transformers, on the CPU) on a tiny model. `nodes` are killed without grace while one call answers a batch
file, and replaced, the next one when all workers are there again; `frozen` ones are stopped, as one is that cannot
be reached any more. `drivers` on a cluster are killed at random moments, and the same command is given again, until the
work is done; those of `alone` have started Ray for themselves. Printed: completions that are missing or there twice,
the longest pause between two of them, seconds until a killed driver's processes were gone, and those that are left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
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
        self._frozen: list[psutil.Process] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=10**8))

    def kill(self) -> None:
        self.cluster.remove_node(self.nodes.pop(random.randrange(len(self.nodes))), allow_graceful=False)
        self.add()

    def freeze(self) -> None:
        """Stop all processes of a node for good; Ray's own checks take a minute to find that out."""
        self._kill_frozen()  # they hold memory
        node = self.nodes.pop(random.randrange(len(self.nodes)))
        for info in (each for several in node.all_processes.values() for each in several):
            process = psutil.Process(info.process.pid)
            self._frozen += [process, *process.children(recursive=True)]
        for process in self._frozen:
            process.suspend()
        self.add()

    def close(self) -> None:
        self._kill_frozen()
        self.cluster.shutdown()

    def _kill_frozen(self) -> None:
        for process in self._frozen:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._frozen = []


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills during batch inference.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", default="nodes,frozen,drivers,alone")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-kills"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / "items.jsonl"
    lines = [
        {"id": f"q{at}", "type": "math", "prompt": f"What is {at} times 7?", "sampling": {"max_tokens": 60, "n": 1}}
        for at in range(options.items)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    parts = options.parts.split(",")
    if "alone" in parts:
        parts.remove("alone")
        kill_drivers(options, file, None)
    if not parts:
        return
    import_ray()
    machines = Machines(options.workers)
    try:
        for part in parts:
            if part == "drivers":
                kill_drivers(options, file, machines)
            else:
                kill_nodes(options, file, machines, part)
    finally:
        import_ray().shutdown()
        machines.close()
    began = time.time()
    while (left := _processes("ray::", "raylet", "gcs_server")) and time.time() - began < 90:
        time.sleep(0.5)
    print(f"processes left {time.time() - began:.0f} s after the end of the cluster: {len(left)}")


def kill_nodes(options: argparse.Namespace, file: Path, machines: Machines, part: str) -> None:
    """Kill or freeze nodes while calls are at work."""
    load = Load(device="cpu", dtype="float32")
    settings = EngineSettings("transformers", load, workers=options.workers, cluster=machines.cluster.address)
    with open_engine(options.model, settings) as opened:
        items = read_batch_file(file, samplings={"math": Sampling()})
        prompts = render(opened.chat, [item.messages for item in items])
        requests = [Request(str(item.id), ids, item.sampling) for item, ids in zip(items, prompts, strict=True)]
        opened.engine.start()
        engine = Killing(opened.engine._engine, machines.kill if part == "nodes" else machines.freeze, options.kills)
        found: dict[str, int] = {}
        round_number = 0
        while engine.kills < options.kills or not round_number:  # as often as it takes for so many kills
            asked = [Request(f"{round_number}/{each.id}", each.prompt_ids, each.sampling) for each in requests]
            for completion in engine.generate(asked):
                assert completion.error is None, completion.error
                found[completion.request_id] = found.get(completion.request_id, 0) + 1
            round_number += 1
    print(
        f"{part}: {engine.kills} lost: {len(found)} of {round_number * len(requests)} answered, "
        f"{sum(count > 1 for count in found.values())} twice; noticed after {max(engine.noticed):.1f} s at most, "
        f"longest pause {engine.pause:.1f} s; load {os.getloadavg()[1]:.0f}",
        flush=True,
    )


class Killing(Engine):
    """A fleet that loses a node at random moments, when it has all of its workers."""

    def __init__(self, fleet: Any, kill: Callable[[], None], most: int) -> None:
        self._engine, self._kill, self._most = fleet, kill, most
        self.kills, self.pause, self.noticed = 0, 0.0, [0.0]
        self._next, self._killed = random.randrange(50, 200), 0.0
        lose = fleet._lose

        def notice(*arguments: Any) -> Any:
            self.noticed.append(time.monotonic() - self._killed)
            return lose(*arguments)

        fleet._lose = notice

    def _is_whole(self) -> bool:
        return len(self.noticed) > self.kills and all(member.is_ready for member in self._engine._members)

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        last = time.monotonic()
        for completion in self._engine.generate(requests):
            self.pause = max(self.pause, time.monotonic() - last)
            yield completion
            self._next -= 1
            if self._next <= 0 and self.kills < self._most and self._is_whole():
                self._kill()
                self.kills += 1
                self._next, self._killed = random.randrange(50, 400), time.monotonic()
                print(
                    f"  {self.kills}: pause {self.pause:.1f} s, noticed {self.noticed[-1]:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
            last = time.monotonic()

    def stream(self, request: Request) -> Any:
        return self._engine.stream(request)

    def logprobs(self, prompt_ids: Any, continuation_ids: Any) -> list[float]:
        return self._engine.logprobs(prompt_ids, continuation_ids)


def kill_drivers(options: argparse.Namespace, file: Path, machines: Machines | None) -> None:
    """Kill the driver again and again, at a random moment after it has begun to answer."""
    out = options.work / "drivers.json"
    for old in (out, journal_of(out)):
        old.unlink(missing_ok=True)
    call = [sys.executable, "-m", "thinktune", "infer", str(options.model), str(file), "-o", str(out)]
    call += ["--engine", "transformers", "--load", "device=cpu", "--load", "dtype=float32"]
    call += ["--workers", str(options.workers)]
    call += ["--cluster", machines.cluster.address] if machines else []
    gone = []
    for number in range(options.kills):
        before = _lines(out)
        driver = subprocess.Popen(call, stderr=subprocess.DEVNULL)
        _until(lambda before=before, driver=driver: _lines(out) > before or driver.poll() is not None, 600)
        time.sleep(random.random() * 0.2)
        own = psutil.Process(driver.pid).children(recursive=True)  # Ray, where the driver has started it
        driver.kill()
        driver.wait()
        began = time.time()
        # Of a cluster the workers; its nodes are our children.
        _until(lambda own=own: not (psutil.wait_procs(own, 0)[1] or _processes("ray::Worker")), 120)
        gone.append(time.time() - began)
        print(f"  {number + 1} killed at {_lines(out)} lines, {gone[-1]:.1f} s", file=sys.stderr, flush=True)
    subprocess.run(call, check=True)
    keys = [json.loads(line)["key"] for line in journal_of(out).read_text(encoding="utf-8").splitlines()]
    print(
        f"{options.kills} drivers {'' if machines else 'with a Ray of their own '}killed: {len(set(keys))} of "
        f"{options.items} answered, {len(keys) - len(set(keys))} twice; all processes gone after "
        f"{sum(gone) / len(gone):.1f} s on average, {max(gone):.1f} at most; load {os.getloadavg()[1]:.0f}",
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
