"""Seconds from a command to its first work: `thinktune train` to its first optimizer step by parts, other verbs whole.

    python bench/starts.py                            # the built-in model and data, in float32
    python bench/starts.py CONFIG load.device=cuda    # another config, with settings over it
    python bench/starts.py --shape 3b                 # configs/article.yaml on random weights of Qwen2.5-3B's shape
    python bench/starts.py --verbs                    # plan, data, doctor, ask, infer and eval, to their ends
    python bench/starts.py --vllm MODEL               # vLLM, as `infer` starts it, by the lines of its log

Every call is a process of its own. The first one, which has no compiled kernels yet and fills the caches of files, is
told apart from the later ones: of these medians, with the least and the most. `--calls 0.3` adds, for the first and the
last training, the calls in which the main thread was seen for so many seconds, within each part. A call that shares its
cores with other work is better told by its CPU seconds.
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

from calls import CallTree
from parts import Parts, watch_training

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
ARTICLE = CONFIG.with_name("article.yaml")
QUESTION = [{"role": "user", "content": "Calculate the area of a circle with radius 3 and explain every step."}]
_LONG = 0.5  # seconds
BEGAN = "THINKTUNE_BENCH_BEGAN"  # the time of the command, for the process that it starts


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("config", nargs="?", default=str(CONFIG))
    cli.add_argument("overrides", nargs="*", help="KEY=VALUE")
    cli.add_argument("--shape", help="configs/article.yaml on a model of bench/workload.py with random weights")
    cli.add_argument("--repeats", type=int, default=5, help="calls after the first")
    cli.add_argument("--calls", type=float, default=0.0, metavar="SECONDS", help="the calls that took so long")
    cli.add_argument("--verbs", action="store_true", help="other verbs instead of train")
    cli.add_argument("--vllm", metavar="MODEL", help="the start of vLLM on this model instead")
    cli.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = cli.parse_intermixed_args()
    config, overrides = options.config, options.overrides
    if options.shape and not options.child:
        config, overrides = str(ARTICLE), [*shipped(options.shape), *overrides]
    elif not overrides and config == str(CONFIG):
        overrides = ["load.dtype=float32"]
    if options.child:
        train_one_step(config, overrides, options.calls)
    elif options.vllm:
        print_vllm(options.vllm, options.repeats)
    elif options.verbs:
        print_verbs(options.repeats)
    else:
        print_train(config, overrides, options.repeats, options.calls)


def shipped(shape: str) -> list[str]:
    """Make a model and 400 rows of 1,500 tokens where they are not there, and return the settings that name them."""
    made = "from pathlib import Path; import sys; from workload import model_folder, write_rows; "
    made += "folder = model_folder(sys.argv[1]); print(folder); rows = folder.parent / 'starts.jsonl'; "
    made += "rows.exists() or write_rows(rows, [1500] * 400)"
    command = [sys.executable, "-c", made, shape]
    folder = subprocess.run(command, cwd=Path(__file__).parent, check=True, stdout=subprocess.PIPE, text=True).stdout
    model = Path(folder.splitlines()[-1])
    return [f"model={model}", f"data.source={model.parent / 'starts.jsonl'}", "data.sample=null"]


def print_train(config: str, overrides: list[str], repeats: int, calls: float) -> None:
    """Print the seconds of each part of a training's start: of the first one, and of later ones."""
    runs = []
    with TemporaryDirectory() as kernels:
        for number in range(repeats + 1):
            command = [sys.executable, __file__, config, *overrides, "--child", f"--calls={calls}"]
            environment = {**os.environ, "TRITON_CACHE_DIR": kernels, BEGAN: str(time.time())}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode or not done.stdout:
                sys.exit(done.stderr)
            *found, last = done.stdout.splitlines()
            runs.append(json.loads(last))
            print(f"training {number + 1}: {runs[-1]['all']:.1f} s to the end of its first step", flush=True)
            if calls and number in (0, repeats):
                print("\n".join(found), flush=True)
    print(f"{'':28}  first   later")
    for part, first in runs[0].items():
        later = [run[part] for run in runs[1:]] or [first]
        print(f"{part:28} {first:6.2f}  {median(later):6.2f} s  ({min(later):.2f} to {max(later):.2f})", flush=True)


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


def train_one_step(config: str, overrides: list[str], calls: float) -> None:
    """Run `thinktune train` to the end of its first optimizer step, and print the seconds of its parts as JSON.

    Args:
        calls: print calls that took so many seconds, too; 0: none.
    """
    tree = CallTree() if calls else None
    from thinktune.cli import app

    def end(parts: Parts) -> None:
        if tree is not None:
            tree.end()
            for part in parts.seconds:
                print(f"{part}\n" + "\n".join(f"    {line}" for line in tree.lines(part, calls)))
        print(json.dumps({**parts.seconds, "all": parts.all}), flush=True)
        os._exit(0)

    parts = watch_training(float(os.environ[BEGAN]), end)
    if tree is not None:
        parts.at_mark = tree.end_part
    with TemporaryDirectory() as folder:
        quick = ["train.max_steps=1", "ask.questions=[]", f"output={folder}/run"]
        app(["train", config, *overrides, *quick])


if __name__ == "__main__":
    main()
