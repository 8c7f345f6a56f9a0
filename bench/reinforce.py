"""Reinforcement on one GPU: seconds of a step by phase, and what 60 steps teach the built-in model.

    python bench/reinforce.py                       # a: built-in model, b: 3B, c: 3B within 16 GiB (nf4 and fp8)
    python bench/reinforce.py --cells a,b --steps 6
    python bench/reinforce.py --learn --seeds 3     # strict greedy accuracy on 400 unseen problems, before and after
    python bench/reinforce.py --cells tiny --steps 3        # on a CPU

Every cell is `thinktune train` with `method: grpo` in a process of its own. Cell a trains quickstart's adapter first
(not counted), and goes on from it: built-in problems, 32 prompts x 16 completions. Cells b and c have random weights
of Qwen2.5-3B's shape, 32 prompts of about 100 tokens x 8 completions of exactly 512 tokens: no token ends one, and
rewards are drawn, so that every group is trained. Seconds are of the median step after two to warm up, `step` from one
step's end to the next, optimizer included; `peak` is the allocator's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import fmean, median
from typing import Any

from thinktune.files import write_json_lines
from workload import TARGETS, model_folder

CELLS: dict[str, dict[str, Any]] = {
    "tiny": {"shape": "tiny", "prompts": 4, "completions": 4, "length": 16},
    "a": {"shape": None, "prompts": 32, "completions": 16, "length": 200},
    "b": {"shape": "3b-drawn", "prompts": 32, "completions": 8, "length": 512},
    "c-nf4": {"shape": "3b-drawn", "prompts": 32, "completions": 8, "length": 512, "quantize": "nf4", "limit": 16},
    "c-fp8": {"shape": "3b-drawn", "prompts": 32, "completions": 8, "length": 512, "quantize": "fp8", "limit": 16},
}
_PROFILED = 24
"""Number of the step of decoding whose kernels are printed."""
PHASES = ("generating", "scoring", "training")
_PROGRESS = 20.0
"""Seconds between two looks at a training that is running."""


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--cells", default="a,b,c-nf4,c-fp8", help=", ".join(CELLS))
    cli.add_argument("--steps", type=int, default=7)
    cli.add_argument("--learn", action="store_true", help="train 60 steps and score instead")
    cli.add_argument("--seeds", type=int, default=1, help="how many, one after another")
    cli.add_argument("--unseen", type=int, default=400, help="problems of the scores of --learn")
    cli.add_argument("--profile", action="store_true", help="print the kernels of some decoded tokens, too")
    cli.add_argument("--init", type=Path, help="go on from this run or adapter in cell a")
    cli.add_argument("--set", action="append", default=[], help="a setting of the config, as SECTION.NAME=VALUE")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    cli.add_argument("--cell", help=argparse.SUPPRESS)
    args = cli.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.cell:
        train_cell(args)
    elif args.learn:
        learn(args)
    else:
        columns = "".join(f"{phase:>12}" for phase in (*PHASES, "step"))
        print(
            f"{'cell':8}{columns}{'tokens':>9}{'drawn':>7}{'trained':>9}{'equal':>7}{'mismatch':>10}{'peak GiB':>10}"
            f"{'set up':>9}",
            flush=True,
        )
        for cell in args.cells.split(","):
            started = time.monotonic()
            run_cell(cell, args)
            print_row(cell, args, time.monotonic() - started)


def run_cell(cell: str, args: argparse.Namespace) -> None:
    if CELLS[cell]["shape"] is None:
        quickstart(args)
    command = [sys.executable, __file__, "--cell", cell, "--steps", str(args.steps), "--folder", str(args.folder)]
    command += ["--profile"] * args.profile + [f"--init={args.init}"] * (args.init is not None)
    log = args.folder / f"reinforce-{cell}.log"
    with log.open("w") as stream:
        ended = subprocess.run([*command, *(f"--set={each}" for each in args.set)], stdout=stream, stderr=stream)
    if ended.returncode:
        print(f"{cell}: failed, the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-12:]), flush=True)
    elif args.profile:
        print("\n".join(line[8:] for line in log.read_text().splitlines() if line.startswith("PROFILE")), flush=True)


def print_row(cell: str, args: argparse.Namespace, seconds: float) -> None:
    run = args.folder / f"reinforce-{cell}"
    lines = lines_of(run)
    if not lines:
        return
    rest = lines[2:] or lines
    steps = seconds_of_steps(lines)
    named = [median(line[f"rl/{name}"] for line in rest) for name in ("tokens", "drawn", "groups")]
    mismatch = median(line.get("rl/mismatch", 0.0) for line in rest)
    print(
        f"{cell:8}{phases(lines)}{named[0]:>9.0f}{named[1]:>7.0f}{named[2]:>9.0f}{equal_groups(run):>7}"
        f"{mismatch:>10.5f}{max(line['memory_gib'] for line in lines):>10.1f}{seconds - sum(steps):>9.1f}",
        flush=True,
    )


def phases(lines: list[dict[str, Any]]) -> str:
    """Format the median seconds of each phase, and of a step."""
    medians = [median(line[f"rl/seconds_{phase}"] for line in lines[2:] or lines) for phase in PHASES]
    return "".join(
        f"{each:>12.3f}" for each in (*medians, median(seconds_of_steps(lines)[2:] or seconds_of_steps(lines)))
    )


def seconds_of_steps(lines: list[dict[str, Any]]) -> list[float]:
    """Compute each step's seconds by its tokens and their rate, or, where nothing was trained, by its phases."""
    before = [0, *(line["tokens"] for line in lines)]
    return [
        (line["tokens"] - one) / line["tokens_per_second"]
        if line["tokens"] > one
        else sum(line[f"rl/seconds_{phase}"] for phase in PHASES)
        for one, line in zip(before, lines, strict=False)
    ]


def equal_groups(run: Path) -> int:
    """Count the groups trained whose rewards are all equal."""
    groups = [json.loads(line) for file in run.glob("rollouts/*.jsonl") for line in file.read_text().splitlines()[1:]]
    return sum(len({each["reward"] for each in group["rollouts"]}) < 2 for group in groups if not group["spare"])


def train_cell(args: argparse.Namespace) -> None:
    """Train a cell in this process."""
    from thinktune.cli import app
    from thinktune.config import load_config
    from thinktune.training.imports import import_train

    file = args.folder / f"reinforce-{args.cell}.yaml"
    file.write_text(json.dumps(config_of(args.cell, args)), encoding="utf-8")
    import_train(load_config(file, args.set))  # before anything else imports transformers: it leaves packages out
    if CELLS[args.cell]["shape"] is not None:
        never_end_and_draw_rewards()
    if args.profile:
        profile_decoding()
    app(["train", str(file), "--overwrite", *args.set], standalone_mode=False)


def config_of(cell: str, args: argparse.Namespace) -> dict[str, Any]:
    settings = CELLS[cell]
    output = args.folder / f"reinforce-{cell}"
    rl = {
        "prompts": settings["prompts"],
        "num_generations": settings["completions"],
        "max_completion_length": settings["length"],
    }
    train: dict[str, Any] = {"max_steps": args.steps, "learning_rate": 1e-4, "save_every": 10**6}
    values: dict[str, Any] = {"method": "grpo", "output": str(output), "ask": {"questions": []}, "rl": rl}
    if settings["shape"] is None:
        data = {"source": "builtin:arithmetic", "sample": 2000, "system": "", "max_length": 512}
        init = {"init": str(quickstart(args))}
        return values | {"model": "builtin:smollm2", "data": data, "lora": init, "train": train}
    rows = args.folder / "reinforce-prompts.jsonl"
    draw = random.Random(1)
    questions = ["".join(draw.choices("abcdefghij ", k=draw.randint(60, 100))) for _ in range(256)]
    write_json_lines(rows, ({"question": question, "answer": "7"} for question in questions))
    if "limit" in settings:
        train |= {"memory": settings["limit"], "on_oom": "retry"}
    return values | {
        "model": str(model_folder(settings["shape"], args.folder)),
        "quantize": settings.get("quantize", "none"),
        "data": {"source": str(rows), "max_length": 2048},
        "lora": {"r": 8, "alpha": 16, "targets": list(TARGETS)},
        "train": train,
        "rl": rl | {"oversampling": 1},
    }


def never_end_and_draw_rewards() -> None:
    """Let no token end a completion, and draw rewards in the place of scores, for the rest of this process."""
    from functools import partial

    from thinktune.inference.engines.hf.engine import TransformersEngine
    from thinktune.scoring import Score
    from thinktune.scoring.rewards import Reward
    from thinktune.training.reinforce import setup

    class Drawn:
        names = ("drawn",)

        def __init__(self, *_: Any, **__: Any) -> None:
            self._draw = random.Random(1)

        def __enter__(self) -> Drawn:
            return self

        def __exit__(self, *_: object) -> None:
            """Close nothing."""

        def submit(self, *_: Any, **__: Any) -> Future[Reward]:
            future: Future[Reward] = Future()
            reward, score = self._draw.random(), Score(False, 0.0, "wrong", None, False, "drawn")
            future.set_result(Reward(reward, {"drawn": reward}, score))
            return future

    def endless(model: Any, tokenizer: Any, stop_ids: Any, **settings: Any) -> TransformersEngine:
        return TransformersEngine(model, tokenizer, (), **settings)

    setup.TransformersEngine = partial(endless)  # type: ignore[misc, assignment]
    setup.Rewards = Drawn  # type: ignore[misc, assignment]


def profile_decoding() -> None:
    """Have the seconds of each part of a step said, and the kernels of one burst of tokens."""
    import atexit

    import torch
    from torch.profiler import ProfilerActivity, profile

    from thinktune.inference.engines.hf.batch import Batch
    from thinktune.inference.engines.hf.decoder import Decoder
    from thinktune.inference.engines.hf.engine import TransformersEngine
    from thinktune.training.reinforce import reinforce_trainer
    from thinktune.training.reinforce.drawing import _Batch
    from thinktune.training.reinforce.reinforce_trainer import ReinforceTrainer
    from thinktune.training.reinforce.rollouts import RolloutJournal

    seconds: dict[str, list[float]] = {}
    on_gpu = torch.cuda.is_available()

    def time_calls(owner: Any, name: str, label: str = "", *, wait: bool = False) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if wait and on_gpu:
                torch.cuda.synchronize()
            started = time.monotonic()
            result = inner(*args, **kwargs)
            if wait and on_gpu:
                torch.cuda.synchronize()
            seconds.setdefault(label or name, []).append(time.monotonic() - started)
            return result

        setattr(owner, name, timed)

    for name in ("prefill", "change", "step"):
        time_calls(Batch, name, wait=name != "step")
    time_calls(Decoder, "accept_several")
    time_calls(TransformersEngine, "complete")
    time_calls(_Batch, "take")
    time_calls(_Batch, "scored", "waits for scores")
    time_calls(RolloutJournal, "write", "journal")
    for name in ("_take", "_batches", "_backward", "_divergence"):
        time_calls(ReinforceTrainer, name, wait=True)
    time_calls(reinforce_trainer, "policy_facts", wait=True)
    time_calls(ReinforceTrainer, "training_step", wait=True)
    step, count = Batch.step, 0

    def profiled_step(self: Batch) -> None:
        nonlocal count
        count += 1
        if count != _PROFILED:
            step(self)
            return
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
            step(self)
        print(
            f"PROFILE of {len(self.rows)} rows, {self.width} columns, a burst of tokens: ms and number of each kernel"
        )
        by = f"self_{'device' if on_gpu else 'cpu'}_time_total"
        for each in sorted(seen.key_averages(), key=lambda each: -getattr(each, by))[:25]:
            print(f"PROFILE {getattr(each, by) / 1e3:9.2f}{each.count:8}  {each.key[:100]}")

    def tell() -> None:
        for name, each in seconds.items():
            told = f"{len(each):6} times, median {median(each) * 1e3:8.2f} ms, most {max(each) * 1e3:8.1f} ms"
            print(f"PROFILE {name:30}{told}, sum {sum(each):7.2f} s", flush=True)

    Batch.step = profiled_step  # type: ignore[method-assign]
    atexit.register(tell)


def quickstart(args: argparse.Namespace) -> Path:
    """Train quickstart's adapter, once."""
    run: Path = args.init or args.folder / "reinforce-quickstart"
    if args.init is None and not (run / "run.json").exists():
        shipped = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
        settings = [f"output={run}", "ask.questions=[]", "infer.file=null", "eval.data=null", "--overwrite"]
        thinktune("train", str(shipped), *settings)
    return run


def learn(args: argparse.Namespace) -> None:
    """Print strict greedy accuracy on unseen problems before and after each seed's training, one after another in this
    process, each as soon as it is known."""
    from thinktune.config import load_config
    from thinktune.training.imports import import_train

    begun = quickstart(args)
    shipped = Path(__file__).parents[1] / "configs" / "quickstart-grpo.yaml"
    import_train(load_config(shipped))
    columns = "".join(f"{phase:>12}" for phase in (*PHASES, "step"))
    print(
        f"{'':10}{'accuracy':>10}{'95% interval':>18}{'well-formed':>13}{'tokens':>8}{columns}{'equal':>7}", flush=True
    )
    print(score("before", begun, args), flush=True)
    for seed in range(1, args.seeds + 1):
        run: Path = args.folder / f"reinforce-learn-{seed}"
        settings = [f"seed={seed}", f"lora.init={begun}", f"output={run}", "ask.questions=[]", *args.set]
        with progress_told(run):
            verb(args, "train", str(shipped), *settings, "--overwrite")
        lines = lines_of(run)
        at = [0, len(lines) // 4, len(lines) // 2, 3 * len(lines) // 4, len(lines) - 1]
        told = ", ".join(f"{lines[each]['rl/accuracy']:.3f}" for each in at)
        print(f"{'':10}sampled accuracy at steps {', '.join(str(each + 1) for each in at)}: {told}", flush=True)
        print(f"{score(f'seed {seed}', run, args)}{phases(lines)}{equal_groups(run):>7}", flush=True)


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Read the metrics of the steps so far."""
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@contextmanager
def progress_told(run: Path) -> Iterator[None]:
    """Tell now and then how far a training in the block is, so that something is known if time runs out."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(_PROGRESS):
            print(progress(run), file=sys.__stdout__, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def progress(run: Path) -> str:
    """Tell how far a training is, and how many completions of its last steps are right."""
    lines = lines_of(run)
    if not lines:
        return f"{run.name[10:]}: no step yet"
    last = fmean(line["rl/accuracy"] for line in lines[-5:])
    return f"{run.name[10:]}: step {len(lines)}, {last:.3f} of the completions of the last steps are right"


def score(name: str, run: Path, args: argparse.Namespace) -> str:
    """Score a run on unseen problems; return a row of the table."""
    out = args.folder / f"reinforce-scores-{run.name}"
    limits = ["--sample", str(args.unseen), "--max-tokens", "200", "--out", str(out), "--engine", "transformers"]
    verb(args, "eval", str(run), "builtin:arithmetic", *limits, "--overwrite")
    found = json.loads((out / "summary.json").read_text())
    low, high = found["accuracy_interval"]
    return (
        f"{name:10}{found['accuracy']:>10.1%}{f'{low:.1%} to {high:.1%}':>18}{found['format_rate']:>13.1%}"
        f"{found['mean_tokens']:>8.0f}"
    )


def verb(args: argparse.Namespace, *arguments: str) -> None:
    """Run a verb in this process; what it prints goes into a log."""
    from thinktune.cli import app

    with (args.folder / "reinforce-verbs.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        if code := app(list(arguments), standalone_mode=False):
            raise SystemExit(f"thinktune {arguments[0]} failed with {code}, see {log.name}")


def thinktune(*arguments: str) -> None:
    command = [sys.executable, "-m", "thinktune", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if ended.returncode:
        raise SystemExit(f"thinktune {arguments[0]} failed:\n{ended.stderr[-3000:]}")


if __name__ == "__main__":
    main()
