"""Small optimizer steps, from CUDA graphs and kernel by kernel: `thinktune train` on random weights and short rows.

    python bench/small_steps.py                                 # SmolLM2's and 0.5B's shapes
    python bench/small_steps.py --cells tiny --steps 6          # on a CPU, where there are no graphs

Each training is a process of its own. Tokens/s are the median of the later half of all steps, as metrics.jsonl has
them; losses and gradient norms are compared step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from workload import TARGETS, model_folder, write_rows

CELLS = {"135m": ("135m", 4, 125), "0.5b": ("0.5b", 8, 256), "tiny": ("tiny", 4, 60)}
"""The shape of a model, rows a step, and the mean tokens of a row."""


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--cells", default="135m,0.5b", help=", ".join(CELLS))
    cli.add_argument("--modes", default="kernels,graphs")
    cli.add_argument("--steps", type=int, default=60)
    cli.add_argument("--dropout", type=float, default=0.0)
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    cli.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.child:
        train(*args.child)
        return
    print(f"{'':10}{'':9}{'tokens a step':>14}{'tokens/s':>10}{'ms a step':>11}{'predicted':>11}{'peak GiB':>10}"
          f"{'predicted':>11}{'seconds':>9}")  # fmt: skip
    for cell in args.cells.split(","):
        config = write_config(cell, args)
        losses: dict[str, list[float]] = {}
        for mode in args.modes.split(","):
            start = time.monotonic()
            command = [sys.executable, __file__, "--child", mode, str(config)]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
            )
            run = config.parent / mode
            if done.returncode:
                print(f"{cell:10}{mode:9}{(done.stderr or done.stdout).strip().splitlines()[-1:]}", flush=True)
                continue
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            losses[mode] = [line["loss"] for line in lines] + [line["grad_norm"] for line in lines]
            print_row(cell, mode, lines, run, time.monotonic() - start)
        if len(losses) == 2:
            apart = max(abs(a - b) / abs(b) for a, b in zip(*losses.values(), strict=True))
            print(f"{'':10}losses and gradient norms apart by at most {apart:.2%}", flush=True)


def print_row(cell: str, mode: str, lines: list[dict[str, Any]], run: Path, seconds: float) -> None:
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))["plan"]
    rate = median(line["tokens_per_second"] for line in lines[len(lines) // 2 :])
    name = "graphs" if plan["graphed"] else "no graphs"
    print(
        f"{cell:10}{name:9}{plan['step_tokens']:>14,.0f}{rate:>10,.0f}{1e3 * plan['step_tokens'] / rate:>11.1f}"
        f"{plan['tokens_per_second']:>11,.0f}{lines[-1].get('memory_gib', 0):>10.2f}"
        f"{plan['parts']['peak'] / 2**30:>11.2f}{seconds:>9.1f}",
        flush=True,
    )


def write_config(cell: str, args: argparse.Namespace) -> Path:
    import yaml

    shape, rows, length = CELLS[cell]
    folder = args.folder / f"small-{cell}"
    draw = random.Random(1)
    write_rows(
        folder / "rows.jsonl", [draw.randint(length * 4 // 5, length * 6 // 5) for _ in range(rows * args.steps)]
    )
    config = {
        "model": str(model_folder(shape, args.folder)),
        "data": {"source": str(folder / "rows.jsonl"), "max_length": 2 * length},
        "lora": {"r": 8, "alpha": 16, "dropout": args.dropout, "targets": list(TARGETS)},
        "train": {"packing": False, "batch_size": rows, "accumulation": 1, "epochs": 1, "log_every": 1},
        "ask": {"questions": []},
    }
    config["train"] |= {"learning_rate": 1e-4, "scheduler": "constant", "warmup_steps": 0, "save_every": 10**6}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return file


def train(mode: str, config: str) -> None:
    """Run `thinktune train`; with mode kernels, as if no plan chose CUDA graphs."""
    from thinktune.cli import app
    from thinktune.planner.cost_model import CostModel

    if mode == "kernels":
        CostModel.graphed = lambda *_: False  # type: ignore[method-assign]
    app(["train", config, "--overwrite", f"output={Path(config).parent / mode}"], standalone_mode=False)


if __name__ == "__main__":
    main()
