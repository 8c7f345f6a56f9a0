"""A training in several processes, killed again and again: no hang, no process left, and in the end the same bits.

    python bench/kills.py --times 20                    # on CPUs, a tiny model, 2 processes
    python bench/kills.py --kinds agent --times 3

For each kind of death one run folder: it is trained with `thinktune train --gpus N`, killed at a random step, resumed,
killed, … and at last resumed to its end. Its adapter and metrics are held against those of a run that nobody killed.
`term-one`: SIGTERM to one rank; `kill-one`: SIGKILL of one rank; `agent`: SIGKILL of the command itself. Printed are
the seconds from the signal until the last process is gone, and the steps that were kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from workload import model_folder

KINDS = ("term-one", "kill-one", "agent")
_EVERY = 5  # steps between checkpoints


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--kinds", default=",".join(KINDS))
    cli.add_argument("--times", type=int, default=20)
    cli.add_argument("--gpus", type=int, default=2)
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    args = cli.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kills-", dir=args.folder) as place:
        whole = Training(Path(place), "whole", args)
        whole.start()
        assert whole.process.wait() == 0, whole.log.read_text()
        print(f"not killed: {whole.steps()} steps", flush=True)
        for kind in args.kinds.split(","):
            run = Training(Path(place), kind, args)
            gone = [run.die(kind, number) for number in range(args.times)]
            run.start()
            assert run.process.wait() == 0, run.log.read_text()
            assert not run.processes(), "a process is left"
            same = run.outcome() == whole.outcome()
            seconds = f"gone after {median(gone):.1f} s, {max(gone):.1f} s at most"
            came_to = "the same bits" if same else "ANOTHER ADAPTER"
            print(f"{kind}: {len(gone)} times, {seconds}; resumed to {came_to}", flush=True)


class Training:
    """`thinktune train` of one run folder, started as often as it takes."""

    def __init__(self, place: Path, name: str, args: argparse.Namespace) -> None:
        self.folder, self.log, self._gpus = place / name, place / f"{name}.log", args.gpus
        self._draw = random.Random(name)
        self._size = 12 * (args.times + 2)
        config = {
            "model": str(model_folder("tiny", args.folder)),
            "output": str(self.folder),
            "load": {"device": args.device, "dtype": "float32"},
            "data": {"source": "builtin:arithmetic", "sample": 400, "max_length": 1024},
            "train": {
                "max_steps": self._size,
                "batch_size": 2,
                "accumulation": 2,
                "packing": False,
                "save_every": _EVERY,
            },
            "ask": {"questions": []},
        }
        self._config = place / f"{name}.yaml"
        self._config.write_text(json.dumps(config), encoding="utf-8")

    def start(self) -> None:
        resumes = ["--resume"] if self.folder.exists() else []
        command = [sys.executable, "-m", "thinktune", "train", str(self._config), "--gpus", str(self._gpus), *resumes]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def die(self, kind: str, number: int) -> float:
        """Train for some steps, kill it, and return the seconds until all its processes are gone."""
        wanted = self.steps() + self._draw.randint(1, 11)  # beyond those that it will cut off
        self.start()
        while self.steps() < wanted:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        ranks = [pid for pid in self.processes() if pid != self.process.pid]
        assert len(ranks) == self._gpus, ranks
        victim = self.process.pid if kind == "agent" else self._draw.choice(ranks)
        began = time.monotonic()
        os.kill(victim, signal.SIGTERM if kind == "term-one" else signal.SIGKILL)
        while self.process.poll() is None or self.processes():
            time.sleep(0.05)
            assert time.monotonic() - began < 300, "it hangs"
        gone = time.monotonic() - began
        kept = max((int(each.name.split("-")[1]) for each in self.folder.glob("checkpoints/checkpoint-*")), default=0)
        print(f"  {kind} {number + 1}: step {self.steps()}, gone after {gone:.1f} s, kept {kept}", flush=True)
        return gone

    def steps(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def processes(self) -> list[int]:
        """List the processes that train in this folder."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdecimal() else []
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0] if words else "Z"
            except OSError:
                continue
            if state == "Z" or b"thinktune" not in words:
                continue
            if str(self._config).encode() in words or self._is_rank(entry):
                found.append(int(entry.name))
        return found

    def _is_rank(self, entry: Path) -> bool:
        """Tell whether a process is a rank of this training: its environment says who has started it."""
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"TORCHELASTIC_RUN_ID=thinktune-{self.process.pid}".encode() in variables

    def outcome(self) -> Any:
        """Return all that has to be the same."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        measured = ("tokens_per_second", "memory_gib")
        kept = [{name: value for name, value in line.items() if name not in measured} for line in lines]
        return kept, (self.folder / "adapter" / "adapter_model.safetensors").read_bytes()


if __name__ == "__main__":
    main()
