"""The plan against the measurement: predicted and measured peak memory and speed, over all that training takes.

    python bench/plan.py                          # 17 configs of the 3B shape, 3 of the 0.5B, 3 of the 7B, 4 drawn
    python bench/plan.py --shapes "" --drawn 8 --seed 1
    python bench/plan.py --shapes 3b --parts      # and what the prediction consists of
    python bench/plan.py --shapes tiny            # on a CPU: resident memory

Each config trains five steps in a process of its own, through the same functions as `thinktune train`; measured are
the peak that torch's allocator has handed out, and the median step after three to warm up.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from train import ask, machine
from workload import Workload


@dataclass(frozen=True)
class Case:
    """A config to predict."""

    shape: str
    base: str
    rows: int
    length: int
    checkpointing: str  # of train.gradient_checkpointing
    limit: float | None = None
    rank: int = 8
    dropout: float = 0.0


CASES = (
    Case("3b", "none", 8, 1500, "false"),
    Case("3b", "none", 8, 1500, "true"),
    Case("3b", "none", 8, 1500, "auto", 20),
    Case("3b", "none", 8, 1500, "auto", 10),
    Case("3b", "none", 2, 4096, "false"),
    Case("3b", "none", 8, 1500, "false", rank=16, dropout=0.05),
    Case("3b", "none", 8, 1500, "false", rank=64),
    Case("3b", "none", 8, 1500, "false", rank=128),
    Case("3b", "none", 8, 1500, "auto", 24, rank=256),
    Case("3b", "none", 8, 1500, "true", rank=64, dropout=0.1),
    Case("3b", "fp8", 8, 1500, "false"),
    Case("3b", "fp8", 8, 1500, "auto", 7),
    Case("3b", "fp8", 1, 16384, "true"),
    Case("3b", "fp8", 8, 1500, "false", rank=64, dropout=0.05),
    Case("3b", "nf4", 8, 1500, "true"),
    Case("3b", "int8", 4, 1500, "false"),
    Case("3b", "int8", 8, 1500, "auto", 16, rank=4, dropout=0.1),
    Case("0.5b", "none", 16, 1500, "false"),
    Case("0.5b", "none", 1, 2048, "false"),
    Case("0.5b", "fp8", 16, 2048, "true"),
    Case("7b", "none", 4, 1500, "true"),
    Case("7b", "none", 4, 1500, "true", rank=128),
    Case("7b", "nf4", 4, 1500, "false"),
    Case("tiny", "none", 8, 256, "false"),
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


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--shapes", default="3b,0.5b,7b", help="of the models, comma-separated")
    cli.add_argument("--parts", action="store_true", help="show what the prediction consists of")
    cli.add_argument("--drawn", type=int, default=4, help="configs drawn at random")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--steps", type=int, default=5)
    cli.add_argument("--timeout", type=float, default=90)
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    args = cli.parse_args()
    shapes = args.shapes.split(",")
    print(machine(), flush=True)
    three = f"{'predicted':>10}{'measured':>10}{'off':>8}"
    print(f"{'':56}{'peak GiB':>20}{'tokens/s':>28}\n{'config':56}{three}{three}", flush=True)
    off: list[tuple[float, float]] = []
    for case in [*(case for case in CASES if case.shape in shapes), *drawn(args.drawn, args.seed)]:
        task = asdict(case) | {"workload": asdict(Workload(case.rows, 1, case.length, args.steps))}
        for unknown in ("base", "rows", "length"):
            del task[unknown]
        name = "ours" if case.base == "none" else f"ours-{case.base}"
        result = ask(name, {**task, "folder": str(args.folder)}, args.timeout)
        print(row(case, result, parts=args.parts), flush=True)
        if "rate" in result:
            off.append(gaps(result))
    for what, gap in zip(("peaks", "tokens/s"), zip(*off, strict=True), strict=False):
        print(f"{what} are predicted {min(gap):+.1%} to {max(gap):+.1%} off; {len(off)} configs", flush=True)


def row(case: Case, result: dict[str, Any], *, parts: bool) -> str:
    limit = f" <= {case.limit:g} GiB" if case.limit else ""
    adapter = f"r {case.rank}" + (f" dropout {case.dropout:g}" if case.dropout else "")
    what = f"{case.shape} {case.base} {case.rows}x{case.length} {adapter} ckpt {case.checkpointing}{limit}"
    if "rate" not in result:
        return f"{what:56}  {result.get('missing') or result.get('error')}"
    peak, rate = gaps(result)
    line = f"{what:56}{result['predicted']:>10.2f}{result['allocated']:>10.2f}{peak:>+8.1%}"
    line += f"{result['predicted_rate'] or 0:>10,.0f}{result['rate']:>10,.0f}{rate:>+8.1%}\n    {result['label']}"
    if parts:
        line += "\n    " + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in result["parts"].items())
    return line


def gaps(result: dict[str, Any]) -> tuple[float, float]:
    """How far the predicted peak and speed are off, as a part of the measured."""
    rate = result["predicted_rate"] / result["rate"] - 1 if result["predicted_rate"] else 0.0
    return result["predicted"] / result["allocated"] - 1, rate


if __name__ == "__main__":
    main()
