"""Published models on one GPU: LoRA training, ours beside TRL + Liger on the same rows, one table of one run.

    python bench/shapes.py                                            # eight models, under 6 minutes
    python bench/shapes.py --models qwen3-4b,gemma-3-4b
    python bench/shapes.py --models tiny-qwen3-4b --length 64         # on a CPU

Weights are random, of the published shapes (bench/published.py), and drawn on the GPU as loading reads them. Both get
the same rows of `--length` tokens without padding, the same new adapter on all linear layers of the decoder but
experts, and AdamW. Each row of the table is a process of its own, which imports its libraries while the one before it
computes, and begins when that has ended. Tokens/s is the median step after three to warm up, peak the allocator's of
training alone; ours is planned within `--limit` GiB. TRL keeps all activations where they fit, else it checkpoints;
ours, too, recomputes all where it was planned to fit and did not.
Losses are those of the first and the last step: they have to agree. A contestant that cannot run says why; where
Liger's kernels cannot, TRL runs alone. Qwen3.5 wants flash-linear-attention (`fla`): without it transformers computes
the delta rule in plain PyTorch, many times slower, for everyone. fla 0.6 refuses to train it on Hopper with Triton
below 3.7.1 (torch 2.11 has 3.6); ours then does without, and TRL fails. causal-conv1d is used where it is installed;
without it the convolution is PyTorch's own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contestants import compete, log_into
from published import PUBLISHED, published_config
from train import begin, machine
from workload import Workload, model_folder

_ROWS = {"llama-3.1-8b": 4, "olmo-3-7b": 4, "qwen3-30b-a3b": 2, "qwen3.5-4b": 2}
"""Documents a step, where 8 would leave a peer no room, or take too long (a delta rule without its kernels)."""
_ONLY_CHECKPOINTED = ("qwen3-30b-a3b",)
_IMPORTS = (
    "datasets", "peft", "trl.trainer.sft_trainer", "liger_kernel.transformers", "thinktune.models",
    "thinktune.training.plan", "thinktune.training.model_with_loss", "thinktune.training.graphed_passes",
)  # fmt: skip
_HEADER = f"{'':20}{'':14}{'rows':>5}{'tokens/s':>10}{'times':>7}{'peak GiB':>10}{'predicted':>10}{'s':>5}  loss"


@dataclass
class Waiting:
    """A contestant's process with its libraries imported, until it is told to go."""

    name: str
    model: str
    task: dict[str, Any]
    process: Any
    go: Any
    answers: Any
    log: Path

    def run(self, timeout: float) -> dict[str, Any]:
        """Let it compete and return what it sends."""
        started = time.monotonic()
        answer: dict[str, Any] = {"error": f"took more than {timeout:.0f} s"}
        try:
            self.go.send(None)
            if self.answers.poll(timeout):
                answer = self.answers.recv()
        except (EOFError, OSError):
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            answer = {"error": (lines or ["ended without a word"])[-1][:160]}
        self.stop()
        return {**answer, "seconds": time.monotonic() - started}

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--models", default=",".join(PUBLISHED), help="comma-separated; tiny-NAME for a CPU")
    cli.add_argument("--only", default="ours,trl-liger", help="contestants of bench/train.py")
    cli.add_argument("--rows", type=int, help="documents a step; default: 8, fewer where a model needs it")
    cli.add_argument("--length", type=int, default=1500, help="tokens a document")
    cli.add_argument("--rank", type=int, default=16)
    cli.add_argument("--steps", type=int, default=9, help="three of them to warm up")
    cli.add_argument("--limit", type=float, default=74, help="GiB that ours may take")
    cli.add_argument("--timeout", type=float, default=75, help="seconds a contestant gets")
    cli.add_argument("--seconds", type=float, default=345, help="after these no further row is begun")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    args = cli.parse_args()
    installed = ", ".join(f"{name} {_version(name)}" for name in ("trl", "liger-kernel", "peft", "fla-core"))
    print(f"rank {args.rank}, rows of {args.length:,} tokens: {machine()}, {installed}\n{_HEADER}", flush=True)
    order = [(model, name) for model in args.models.split(",") for name in args.only.split(",")]
    order = [(model, _checkpointed(name) if model in _ONLY_CHECKPOINTED else name) for model, name in order]
    waiting = prepare(*order[0], args)
    rates: dict[str, float] = {}
    ends = time.monotonic() + args.seconds
    for following in [*order[1:], None]:
        if time.monotonic() > ends:
            waiting.stop()
            print(f"no time left from {waiting.model} {waiting.name} on")
            break
        now, waiting = waiting, prepare(*following, args) if following else None
        result = now.run(args.timeout)
        print(row(now, result, rates), flush=True)
        if (other := _instead(now.name, result)) is not None:
            again = prepare(now.model, other, args, recomputing="true")
            print(row(again, again.run(args.timeout), rates), flush=True)


def prepare(model: str, name: str, args: argparse.Namespace, recomputing: str = "auto") -> Waiting:
    """Begin a contestant's process, which imports its libraries and waits.

    Args:
        recomputing: `train.gradient_checkpointing` of ours.
    """
    from thinktune.planner.adapter_targets import auto_targets

    rows = args.rows or _ROWS.get(model, 8)
    model_folder(model, args.folder)
    task = {
        "name": name, "shape": model, "workload": asdict(Workload(rows, 1, args.length, args.steps)),
        "rank": args.rank, "limit": args.limit if name.startswith("ours") else None, "folder": str(args.folder),
        "targets": auto_targets(_hollow(model)), "checkpointing": recomputing,
    }  # fmt: skip
    log = args.folder / f"{model}-{name}.log"
    hear, go = multiprocessing.Pipe(duplex=False)
    process, answers = begin(wait_and_compete, task, str(log), hear)
    return Waiting(name, model, task, process, go, answers, log)


def wait_and_compete(task: dict[str, Any], log: str, told: Any, answers: Any) -> None:
    """Import what contestants need, wait until told, compete."""
    log_into(Path(log))
    for name in _IMPORTS:
        try:
            import_module(name)
        except ImportError as error:
            print(error, file=sys.stderr)  # whoever needs it will say so
    told.recv()
    compete({**task, "started": time.time()}, log, answers)


def row(of: Waiting, result: dict[str, Any], rates: dict[str, float]) -> str:
    """A line of the table, and below it what it was; `times` is ours by theirs."""
    head = f"{of.model:20}{of.name:14}{of.task['workload']['rows']:>5}"
    if "rate" not in result:
        return f"{head}  {result.get('missing') or result.get('error')}   ({result['seconds']:.0f} s)"
    if of.name.startswith("ours"):
        rates[of.model] = result["rate"]
    beside = of.model in rates and not of.name.startswith("ours")
    times = f"{rates[of.model] / result['rate']:.2f}" if beside else "-"
    predicted = f"{result['predicted']:.1f}" if result["predicted"] else "-"
    loss = " ".join(f"{result['losses'][at]:.4f}" for at in (0, -1))
    numbers = f"{result['rate']:>10,.0f}{times:>7}{result['allocated']:>10.1f}{predicted:>10}{result['seconds']:>5.0f}"
    return f"{head}{numbers}  {loss}\n    {result['label']}"


def _hollow(model: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(published_config(model))


def _checkpointed(name: str) -> str:
    return name if name.startswith("ours") or name.endswith("-ckpt") else f"{name}-ckpt"


def _instead(name: str, result: dict[str, Any]) -> str | None:
    """Return who is to try again: with checkpointing where memory ran out, without Liger where its kernels fail."""
    error = result.get("error", "")
    if "OutOfMemory" in error:
        return None if name.endswith("-ckpt") else _checkpointed(name)
    return name.replace("-liger", "") if error and "-liger" in name else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
