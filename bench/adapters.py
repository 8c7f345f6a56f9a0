"""What ranks and dropout cost: adapters of one base, trained one after the other, beside what the plan says of each.

    python bench/adapters.py                                      # 3B shape, 8 x 1,500, bfloat16
    python bench/adapters.py --base fp8 16 16:0.05 64
    python bench/adapters.py --shape tiny --rows 2 --length 64 4  # on a CPU

An adapter is RANK or RANK:DROPOUT. The base, with random weights, is loaded once; each adapter is trained as `ours` of
bench/train.py is. Tokens/s is the median step after three to warm up, peak is torch's allocator's.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from pathlib import Path

from contest import Task
from contestants import config_for, train_loaded
from train import machine
from workload import SHAPES, Workload, model_folder

ADAPTERS = ("8", "16", "16:0.05", "4:0.1", "32", "64", "128", "256", "64:0.05")


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("adapters", nargs="*", default=ADAPTERS, metavar="RANK[:DROPOUT]")
    cli.add_argument("--base", default="none", choices=("none", "fp8", "int8", "nf4"))
    cli.add_argument("--shape", choices=SHAPES, default="3b")
    cli.add_argument("--rows", type=int, default=8, help="documents a step")
    cli.add_argument("--length", type=int, default=1500, help="tokens a document")
    cli.add_argument("--steps", type=int, default=7)
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    args = cli.parse_args()
    work = Workload(args.rows, 1, args.length, args.steps)
    model_folder(args.shape, args.folder)
    tasks = [
        Task("ours", args.shape, work, int(rank), None, time.time(), str(args.folder), "false", float(dropout or 0))
        for rank, _, dropout in (each.partition(":") for each in args.adapters)
    ]
    base = base_for(tasks[0], args.base)
    print(f"{args.shape}, {args.base}, {args.rows} x {args.length:,}: {machine()}")
    print(f"{'rank':>5}{'dropout':>9}{'tokens/s':>10}{'predicted':>11}{'peak GiB':>10}{'predicted':>11}  last norm")
    for task in tasks:
        result = train_loaded(base, config_for(task, args.base), task)
        print(
            f"{task.rank:>5}{task.dropout:>9g}{result.rate:>10,.0f}{result.predicted_rate or 0:>11,.0f}"
            f"{result.allocated:>10.2f}{result.predicted or 0:>11.2f}  {result.norms[-1]:.4g}",
            flush=True,
        )
        gc.collect()


def base_for(task: Task, quantize: str) -> object:
    from thinktune.models import load_model

    config = config_for(task, quantize)
    return load_model(config.model, load=config.load, quantize=config.quantize)


if __name__ == "__main__":
    main()
