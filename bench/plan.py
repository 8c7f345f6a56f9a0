"""The plan against the measurement: predicted and measured peak memory, over bases, checkpointing and lengths.

    python bench/plan.py                          # 10 configs of the 3B shape, 2 of the 0.5B, 2 of the 7B
    python bench/plan.py --shapes 3b --parts      # and what the prediction consists of
    python bench/plan.py --shapes tiny            # on a CPU: resident memory

Each config trains two steps in a process of its own, through the same functions as `thinktune train`; measured is the
peak that torch's allocator has handed out. No constant of the plan was fitted to these configs.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
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


CASES = (
    Case("3b", "none", 8, 1500, "false"),
    Case("3b", "none", 8, 1500, "true"),
    Case("3b", "none", 8, 1500, "auto", 20),
    Case("3b", "none", 8, 1500, "auto", 10),
    Case("3b", "none", 2, 4096, "false"),
    Case("3b", "fp8", 8, 1500, "false"),
    Case("3b", "fp8", 8, 1500, "auto", 7),
    Case("3b", "fp8", 1, 16384, "true"),
    Case("3b", "nf4", 8, 1500, "true"),
    Case("3b", "int8", 4, 1500, "false"),
    Case("0.5b", "none", 16, 1500, "false"),
    Case("0.5b", "fp8", 16, 2048, "true"),
    Case("7b", "none", 4, 1500, "true"),
    Case("7b", "nf4", 4, 1500, "false"),
    Case("tiny", "none", 8, 256, "false"),
    Case("tiny", "none", 16, 512, "true"),
)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--shapes", default="3b,0.5b,7b", help="of the models, comma-separated")
    cli.add_argument("--parts", action="store_true", help="show what the prediction consists of")
    cli.add_argument("--steps", type=int, default=2)
    cli.add_argument("--timeout", type=float, default=90)
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    args = cli.parse_args()
    shapes = args.shapes.split(",")
    print(machine(), flush=True)
    print(f"{'config':44}{'predicted':>10}{'measured':>10}{'off':>8}{'reserved':>10}{'seconds':>9}", flush=True)
    off: list[float] = []
    for case in CASES:
        if case.shape in shapes:
            task = asdict(case) | {"workload": asdict(Workload(case.rows, 1, case.length, args.steps)), "rank": 8}
            for unknown in ("base", "rows", "length"):
                del task[unknown]
            name = "ours" if case.base == "none" else f"ours-{case.base}"
            result = ask(name, {**task, "folder": str(args.folder)}, args.timeout)
            print(row(case, result, parts=args.parts), flush=True)
            if "rate" in result:
                off.append(result["predicted"] / result["allocated"] - 1)
    if off:
        worst = f"predictions between {min(off):+.1%} and {max(off):+.1%} of what was measured"
        print(f"{worst}; {len(off)} configs", flush=True)


def row(case: Case, result: dict[str, Any], *, parts: bool) -> str:
    limit = f" <= {case.limit:g} GiB" if case.limit else ""
    what = f"{case.shape} {case.base} {case.rows}x{case.length} checkpointing {case.checkpointing}{limit}"
    if "rate" not in result:
        return f"{what:44}  {result.get('missing') or result.get('error')}"
    predicted, measured = result["predicted"], result["allocated"]
    line = f"{what:44}{predicted:>10.2f}{measured:>10.2f}{predicted / measured - 1:>+8.1%}{result['reserved']:>10.2f}"
    line += f"{result['first_step']:>9.1f}\n    {result['label']}"
    if parts:
        line += "\n    " + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in result["parts"].items())
    return line


if __name__ == "__main__":
    main()
