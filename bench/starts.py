"""Seconds from a command to its first work: `thinktune train` to its first optimizer step by parts, other verbs whole.

    python bench/starts.py                            # the built-in model and data, in float32
    python bench/starts.py CONFIG load.device=cuda    # another config, with settings over it
    python bench/starts.py --verbs                    # plan, data, doctor, ask, infer and eval, to their ends
    python bench/starts.py --vllm MODEL               # vLLM, as `infer` starts it, by the lines of its log

Every call is a process of its own, and the one before the first is not counted: it fills the caches of files. Medians,
with the least and the most; a call that shares its cores with other work is better told by its CPU seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from tempfile import TemporaryDirectory, gettempdir

from parts import Parts, watch_training

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
QUESTION = [{"role": "user", "content": "Calculate the area of a circle with radius 3 and explain every step."}]
_LONG = 0.5  # seconds
BEGAN = "THINKTUNE_BENCH_BEGAN"  # the time of the command, for the process that it starts


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("config", nargs="?", default=str(CONFIG))
    cli.add_argument("overrides", nargs="*", help="KEY=VALUE")
    cli.add_argument("--repeats", type=int, default=5)
    cli.add_argument("--verbs", action="store_true", help="other verbs instead of train")
    cli.add_argument("--vllm", metavar="MODEL", help="the start of vLLM on this model instead")
    cli.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = cli.parse_args()
    overrides = options.overrides or (["load.dtype=float32"] if options.config == str(CONFIG) else [])
    if options.child:
        train_one_step(options.config, overrides)
    elif options.vllm:
        print_vllm(options.vllm, options.repeats)
    elif options.verbs:
        print_verbs(options.repeats)
    else:
        print_train(options.config, overrides, options.repeats)


def print_train(config: str, overrides: list[str], repeats: int) -> None:
    """Print the seconds of each part of a training's start."""
    runs = []
    for _ in range(repeats + 1):
        command = [sys.executable, __file__, config, *overrides, "--child"]
        environment = {**os.environ, BEGAN: str(time.time())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode or not done.stdout:
            sys.exit(done.stderr)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    for part in runs[0]:
        print_seconds(part, [run[part] for run in runs[1:]])


def print_vllm(model: str, repeats: int) -> None:
    """Print the seconds until vLLM is ready, a digest of an answer, and the log's lines that were long in coming."""
    from thinktune.config import Sampling, Vllm
    from thinktune.inference.engines import EngineSettings, Request, open_engine
    from thinktune.inference.engines.vllm.process import LOGS

    for number in range(repeats + 1):
        began = time.perf_counter()
        with open_engine(model, EngineSettings("vllm", vllm=Vllm(max_model_len=2048))) as opened:
            lines = LogLines(LOGS, began)
            opened.engine.start()
            seconds = time.perf_counter() - began
            lines.end()
            (greedy,) = opened.engine.generate(
                [Request("a", opened.chat.prompt_ids(QUESTION), Sampling(max_tokens=64))]
            )
        digest = hashlib.sha256(repr(greedy.token_ids).encode()).hexdigest()[:8]
        print(f"{'start' if number else 'first start'} of vLLM: {seconds:.1f} s; greedy tokens {digest}", flush=True)
    for waited, line in lines.long(_LONG):
        print(f"{waited:6.1f} s until  {line[:160]}", flush=True)


class LogLines:
    """The lines of vLLM's log, with the time at which each was seen."""

    def __init__(self, prefix: str, began: float) -> None:
        logs = Path(gettempdir()).glob(f"{prefix}{os.getpid()}-*.log")
        self._file = max(logs, key=lambda path: path.stat().st_mtime)
        self._began = began
        self._lines: list[tuple[float, str]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def long(self, least: float) -> list[tuple[float, str]]:
        """Return the lines that came so many seconds or more after the one before."""
        times = [self._began, *(seen for seen, _ in self._lines)]
        waits = [later - earlier for earlier, later in pairwise(times)]
        return [(wait, line) for wait, (_, line) in zip(waits, self._lines, strict=True) if wait >= least]

    def _follow(self) -> None:
        with self._file.open(encoding="utf-8", errors="replace") as stream:
            ended = False
            while not ended:
                ended = self._ended.wait(0.02)
                self._lines += [(time.perf_counter(), line.strip()) for line in stream if line.strip()]


def print_verbs(repeats: int) -> None:
    """Print the seconds, and the CPU seconds, that whole calls of other verbs take."""
    with TemporaryDirectory() as folder:
        items = Path(folder, "items.jsonl")
        items.write_text('{"id": "a", "type": "math", "prompt": "What is 2 + 3?"}\n')
        short = ["--load", "dtype=float32"]
        for arguments in (
            ["plan", str(CONFIG)],
            ["data", str(CONFIG)],
            ["doctor"],
            ["ask", "builtin:smollm2", "Hello", "--max-tokens", "1", *short],
            ["infer", "builtin:smollm2", str(items), "-o", str(Path(folder, "results.json")), "--overwrite", *short],
            ["eval", "builtin:smollm2", "builtin:arithmetic", "--sample", "1", "--max-tokens", "1", "--overwrite",
             "--out", str(Path(folder, "eval")), *short],
        ):  # fmt: skip
            runs = [whole_call(arguments) for _ in range(repeats + 1)][1:]
            print_seconds(arguments[0], [seconds for seconds, _ in runs])
            print_seconds("  of CPU", [cpu for _, cpu in runs])


def whole_call(arguments: list[str]) -> tuple[float, float]:
    """Return seconds and CPU seconds of a call."""
    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "thinktune", *arguments], capture_output=True, text=True)
    seconds, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def print_seconds(name: str, seconds: list[float]) -> None:
    print(f"{name:28} {median(seconds):6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})", flush=True)


def train_one_step(config: str, overrides: list[str]) -> None:
    """Run `thinktune train` to the end of its first optimizer step, and print the seconds of its parts as JSON."""
    from thinktune.cli import app

    def end(parts: Parts) -> None:
        print(json.dumps({**parts.seconds, "all": parts.all}), flush=True)
        os._exit(0)

    watch_training(float(os.environ[BEGAN]), end)
    with TemporaryDirectory() as folder:
        quick = ["train.max_steps=1", "ask.questions=[]", f"output={folder}/run"]
        app(["train", config, *overrides, *quick])


if __name__ == "__main__":
    main()
