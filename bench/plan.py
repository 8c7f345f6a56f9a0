"""The plan against the measurement: predicted and measured peak memory and speed, over all that training takes.

    python bench/plan.py                                      # all configs, 0.5B to 32B, and four drawn at random
    python bench/plan.py --only "^3b int8|32b" --drawn 8      # those whose names match, in the order of the patterns
    python bench/plan.py --seconds 240 --record plan.json     # stop after so many seconds; again: go on from there
    python bench/plan.py --only "^3b none" --parts            # and what the prediction consists of
    python bench/plan.py --only "^tiny " --drawn 0            # on a CPU: resident memory

Each config trains through the same functions as `thinktune train`; measured are the peak that torch's allocator has
handed out, and the median step after three to warm up. A base is loaded once for all its configs without a limit, which
follow one another in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from contest import Task
from train import begin, machine
from workload import TARGETS, Workload


@dataclass(frozen=True)
class Case:
    """A config to predict."""

    shape: str
    base: str
    rows: int
    length: int
    checkpointing: str = "false"  # of train.gradient_checkpointing
    limit: float | None = None
    rank: int = 8
    dropout: float = 0.0
    optimizer: str = "adamw"
    targets: tuple[str, ...] = TARGETS
    fused: bool = True

    @property
    def name(self) -> str:
        parts = [self.shape, self.base, f"{self.rows}x{self.length}", f"r{self.rank}"]
        parts += [f"dropout {self.dropout:g}"] * bool(self.dropout) + [self.optimizer] * (self.optimizer != "adamw")
        parts += ["+".join(name[0] for name in self.targets)] * (self.targets != TARGETS)
        parts += ["unfused"] * (not self.fused) + [f"ckpt {self.checkpointing}"]
        return " ".join(parts) + (f" <= {self.limit:g} GiB" if self.limit else "")

    def task(self, folder: Path, steps: int) -> Task:
        values = {name: value for name, value in vars(self).items() if name not in ("base", "rows", "length")}
        work = Workload(self.rows, 1, self.length, steps)
        return Task("ours", workload=work, started=time.time(), folder=str(folder), **values)


_Q_AND_V = ("q_proj", "v_proj")
CASES = (
    Case("3b", "int8", 8, 1500, rank=4, dropout=0.1, optimizer="adamw_8bit"),
    Case("3b", "int8", 8, 1500, "auto", 16, rank=4, dropout=0.1, optimizer="adamw_8bit"),
    Case("3b", "int8", 8, 1500, rank=4, optimizer="adamw_8bit"),
    Case("3b", "int8", 4, 1500),
    Case("3b", "none", 8, 1500),
    Case("3b", "none", 8, 1500, rank=16, dropout=0.05),
    Case("3b", "none", 8, 1500, rank=64),
    Case("3b", "none", 8, 1500, rank=128),
    Case("3b", "none", 8, 1500, "auto", 24, rank=256),
    Case("3b", "none", 8, 1500, "true", rank=64, dropout=0.1),
    Case("3b", "none", 8, 1500, rank=16, targets=_Q_AND_V),
    Case("3b", "none", 8, 1500, "true"),
    Case("3b", "none", 8, 1500, "auto", 20),
    Case("3b", "none", 8, 1500, "auto", 10),
    Case("3b", "none", 2, 4096),
    Case("3b", "none", 1, 512),
    Case("3b", "none", 4, 1500, rank=16, fused=False),
    Case("3b", "none", 4, 1500, "true", rank=16, dropout=0.05, fused=False),
    Case("3b", "none", 2, 1500, "true", rank=64, dropout=0.1, fused=False),
    Case("3b", "fp8", 8, 1500),
    Case("3b", "fp8", 8, 1500, "auto", 7),
    Case("3b", "fp8", 1, 16384, "true"),
    Case("3b", "fp8", 8, 1500, rank=64, dropout=0.05),
    Case("3b", "nf4", 8, 1500, "true"),
    Case("3b", "nf4", 4, 1500, "true", fused=False),
    Case("3b", "int8", 4, 1500, "true", fused=False),
    Case("0.5b", "none", 1, 2048),
    Case("0.5b", "none", 4, 2048, rank=16, dropout=0.05),
    Case("0.5b", "none", 16, 1500),
    Case("0.5b", "none", 1, 512, fused=False),
    Case("0.5b", "none", 4, 2048, rank=16, dropout=0.05, fused=False),
    Case("0.5b", "fp8", 16, 2048, "true"),
    Case("135m", "none", 1, 500),
    Case("135m", "none", 16, 500),
    Case("7b", "none", 4, 1500, "true"),
    Case("7b", "none", 4, 1500, "true", rank=128),
    Case("7b", "nf4", 4, 1500),
    Case("14b", "none", 1, 4096, "auto", 78, rank=16),
    Case("14b", "fp8", 1, 4096, "auto", 78, rank=16),
    Case("14b", "nf4", 1, 4096, "auto", 24, rank=16),
    Case("32b", "fp8", 1, 4096, "auto", 78, rank=16),
    Case("32b", "nf4", 1, 4096, "auto", 78, rank=16),
    Case("32b", "nf4", 1, 4096, "auto", 40, rank=64),
    Case("tiny", "none", 8, 256),
    Case("tiny", "none", 16, 512, "true"),
)


def drawn(count: int, seed: int) -> list[Case]:
    """Draw configs that nobody had in mind."""
    random = Random(seed)
    return [
        Case(
            random.choice(("0.5b", "3b", "7b")),
            random.choice(("none", "fp8", "int8", "nf4")),
            random.choice((1, 2, 4)),
            random.choice((500, 1000, 2000)),
            random.choice(("false", "true", "auto")),
            rank=random.choice((4, 16, 32, 64, 128, 256)),
            dropout=random.choice((0.0, 0.0, 0.05)),
        )
        for _ in range(count)
    ]


def chosen(only: str | None, count: int, seed: int) -> list[Case]:
    """Return the cases to measure: all for a GPU, or those whose names match a part of `only`, in its order."""
    every = [*CASES, *drawn(count, seed)]
    if only is None:
        return [case for case in every if case.shape != "tiny"]
    parts = only.split("|")
    found = {case: None for part in parts for case in every if re.search(part, case.name)}
    return list(found)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--only", help="regular expressions of names, with | between")
    cli.add_argument("--list", action="store_true", help="print the names, and measure nothing")
    cli.add_argument("--seconds", type=float, default=float("inf"), help="begin no config after so many")
    cli.add_argument("--record", type=Path, help="file of what is measured: configs in it are not measured again")
    cli.add_argument("--parts", action="store_true", help="show what the prediction consists of")
    cli.add_argument("--drawn", type=int, default=4, help="configs drawn at random")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--steps", type=int, default=6)
    cli.add_argument("--timeout", type=float, default=90, help="seconds a config gets")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    args = cli.parse_args()
    until = time.monotonic() + args.seconds
    cases = chosen(args.only, args.drawn, args.seed)
    if args.list:
        print("\n".join(case.name for case in cases))
        return
    here = machine()
    print(f"{here}; {len(cases)} configs", flush=True)
    three = f"{'predicted':>10}{'measured':>10}{'off':>8}"
    print(f"{'':56}{'peak GiB':>20}{'tokens/s':>28}\n{'config':56}{three}{three}", flush=True)
    record = json.loads(args.record.read_text()) if args.record and args.record.exists() else {}
    known = record.setdefault(here, {})
    open_ones = [case for case in cases if case.name not in known]
    for case, result in measure(open_ones, args.folder, args.steps, args.timeout, until):
        print(row(case.name, result, parts=args.parts), flush=True)
        if "rate" in result:
            known[case.name] = result
            if args.record:
                args.record.write_text(json.dumps(record), encoding="utf-8")
    print_summary({case.name: known[case.name] for case in cases if case.name in known}, len(cases))


def measure(
    cases: Sequence[Case], folder: Path, steps: int, timeout: float, until: float
) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Yield each case with its result, or its error; a process that fails takes no other case with it.

    Args:
        until: time.monotonic() after which none is begun.
    """
    import torch

    left = list(cases)
    while left and time.monotonic() < until:
        alike = [case for case in left if (case.shape, case.base) == (left[0].shape, left[0].base) and not case.limit]
        if left[0].limit or not torch.cuda.is_available():
            alike = left[:1]  # memory is as it is in a training; resident memory has a peak a process
        process, answers = begin(measure_alike, [case.task(folder, steps) for case in alike], left[0].base, str(folder))
        try:
            for case in alike:
                left.remove(case)
                if not answers.poll(min(timeout, max(0.0, until + timeout / 2 - time.monotonic()))):
                    yield case, {"error": "took too long"}
                    break
                yield case, answers.recv()
                if time.monotonic() > until:
                    break
        except EOFError:
            yield case, {"error": f"its process ended; see {folder}/plan.log"}
        finally:
            process.kill()
            process.join()


def measure_alike(tasks: Sequence[Task], base: str, folder: str, answers: Any) -> None:
    """Train adapters of one base one after the other, and send what came of each; in a process of its own."""
    import gc

    from contestants import config_for, log_into, train_loaded, why

    log_into(Path(folder) / "plan.log")
    loaded: Any = None
    for task in tasks:
        try:
            if loaded is None:
                from thinktune.models import load_model

                config = config_for(task, base)
                loaded = load_model(config.model, load=config.load, quantize=config.quantize)
            answer = vars(train_loaded(loaded, config_for(task, base), replace(task, started=time.time())))
        except Exception as error:  # noqa: BLE001 - whatever a config dies of is its line of the table
            answer = why(error)
        gc.collect()
        answers.send(answer)


def row(name: str, result: dict[str, Any], *, parts: bool) -> str:
    if "rate" not in result:
        return f"{name:56}  {result.get('missing') or result.get('error')}"
    peak, rate = gaps(result)
    line = f"{name:56}{result['predicted']:>10.2f}{result['allocated']:>10.2f}{peak:>+8.1%}"
    line += f"{result['predicted_rate'] or 0:>10,.0f}{result['rate']:>10,.0f}{rate:>+8.1%}\n    {result['label']}"
    if parts:
        line += "\n    " + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in result["parts"].items())
    return line


def print_summary(results: dict[str, dict[str, Any]], asked: int) -> None:
    """Say how far the plan is off over all that is measured, now and before."""
    print(f"\n{len(results)} of {asked} configs are measured")
    for place, what, bounds in ((0, "peaks", (-0.03, 0.10)), (1, "tokens/s", (-0.15, 0.15))):
        off = {name: gaps(result)[place] for name, result in results.items()}
        if off:
            beyond = [f"{name} {gap:+.1%}" for name, gap in off.items() if not bounds[0] <= gap <= bounds[1]]
            print(f"{what} are predicted {min(off.values()):+.1%} to {max(off.values()):+.1%} off")
            print(f"  beyond {bounds[0]:+.0%} to {bounds[1]:+.0%}: {'; '.join(beyond) or 'none'}")


def gaps(result: dict[str, Any]) -> tuple[float, float]:
    """How far the predicted peak and speed are off, as a part of the measured."""
    rate = result["predicted_rate"] / result["rate"] - 1 if result["predicted_rate"] else 0.0
    return result["predicted"] / result["allocated"] - 1, rate


if __name__ == "__main__":
    main()
