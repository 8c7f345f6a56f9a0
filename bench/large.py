"""Large models on one GPU: `thinktune train` on Qwen2.5-14B's and 32B's shapes, and the plan's word on each.

    python bench/large.py                                  # 14B in bfloat16, fp8, nf4; 32B in fp8, nf4
    python bench/large.py --only 32b:nf4,32b:fp8 --limit 40
    python bench/large.py --only tiny-drawn:fp8 --length 64 # on a CPU

Each is the command itself in a process of its own, from loading to the saved adapter, within `--limit` GiB. Weights are
random, and drawn as loading reads them: the disk has none. Tokens/s is the median step after three to warm up; its
share is of matrix products of the same shapes in bfloat16, in the same run, and counts 4 operations a weight and token.
`loading` is the peak before training, `first s` the seconds to the first optimizer step but for most imports.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train import ask, flops_a_token, machine
from workload import Workload

CELLS = "14b:none,14b:fp8,14b:nf4,32b:fp8,32b:nf4"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--only", default=CELLS, help="SHAPE:BASE, comma-separated")
    cli.add_argument("--rows", type=int, default=1, help="documents a step")
    cli.add_argument("--length", type=int, default=4096, help="tokens a document")
    cli.add_argument("--limit", type=float, default=78, help="GiB that training may take")
    cli.add_argument("--rank", type=int, default=16)
    cli.add_argument("--steps", type=int, default=6)
    cli.add_argument("--timeout", type=float, default=120, help="seconds a cell gets")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    args = cli.parse_args()
    work = Workload(args.rows, 1, args.length, args.steps)
    print(f"{args.rows} x {args.length:,} tokens a step, rank {args.rank}, within {args.limit:g} GiB: {machine()}")
    columns = ("tokens/s", "predicted", "share", "peak GiB", "predicted", "loading", "first s")
    print(" " * 16 + "".join(f"{column:>10}" for column in columns))
    ceilings: dict[str, dict[str, Any]] = {}
    for cell in args.only.split(","):
        shape, _, base = cell.partition(":")
        task = {"workload": asdict(work), "shape": shape, "rank": args.rank, "limit": args.limit}
        task["folder"] = str(args.folder)
        if shape not in ceilings:
            ceilings[shape] = ask("ceiling", task, args.timeout)
            print(f"{shape}: matrix products {ceilings[shape]}", flush=True)
        result = ask("verb" if base == "none" else f"verb-{base}", task, args.timeout, fresh=False)
        best = ceilings[shape].get("bf16", float("inf")) * 1e12
        print(row(cell, result, flops_a_token(shape, work) / best), flush=True)


def row(cell: str, result: dict[str, Any], a_token: float) -> str:
    """A line of the table; `a_token`: seconds that the matrix products of a token take at their best."""
    if "rate" not in result:
        return f"{cell:16}  {result.get('missing') or result.get('error')}"
    line = f"{cell:16}{result['rate']:>10,.0f}{result['predicted_rate']:>10,.0f}{result['rate'] * a_token:>10.0%}"
    line += "".join(f"{result[name]:>10.2f}" for name in ("allocated", "predicted", "loading", "first_step"))
    losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
    return f"{line}\n    {result['label']}\n    loss {losses}"


if __name__ == "__main__":
    main()
