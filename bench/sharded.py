"""A base spread over GPUs: speed, share of the peak, and memory against the plan. One table.

    python bench/sharded.py                                             # on 2 GPUs
    python bench/sharded.py --cells 72b:fp8:4                           # on 4
    python bench/sharded.py --cells tiny-drawn:none:2,tiny-drawn:none:2:whole --length 64 --device cpu

A cell is SHAPE:QUANTIZE:GPUS, with `:whole` where every GPU keeps the whole base, for comparison: losses have to be
equal then. Each is the verb `train` itself, in a process a GPU; weights are random and drawn on the GPUs as loading
reads them. All cells of a number of GPUs are trained by the same processes, which import everything once.

tokens/s is that of the steps after the first two, on the trainer's clock, beside the plan's; `of 989` the FLOPs of a
frozen base (4 a weight and token, causal attention beside them; nothing that is computed again) as a share of 989
TFLOP/s a GPU; `peak` the most that the first GPU had in use, beside the plan's; `first s` from the start of the cell to
its first step. A row that failed has the last words of the processes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from train import machine
from workload import TARGETS, model_folder, write_rows

PEAK = 989e12
WARM_UP = 2
CELLS = "72b:fp8:2,14b:none:2,14b:none:2:whole,32b:none:2"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--cells", default=CELLS)
    cli.add_argument("--rows", type=int, default=4, help="a GPU and step")
    cli.add_argument("--length", type=int, default=1500, help="tokens of each")
    cli.add_argument("--rank", type=int, default=16)
    cli.add_argument("--steps", type=int, default=6)
    cli.add_argument("--limit", type=float, default=74, help="GiB of each GPU that training may take")
    cli.add_argument("--device", default="auto")
    cli.add_argument("--each", type=float, default=100, help="seconds until a cell is cut off")
    cli.add_argument("--seconds", type=float, default=280, help="until everything is cut off")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    cli.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # in the processes of a cell: its configs
    args = cli.parse_args()
    if args.worker:
        try:
            work(json.loads(args.worker.read_text(encoding="utf-8")))
        except BaseException:  # noqa: BLE001 - whatever it is
            traceback.print_exc()
            os._exit(1)  # others are waited for in a collective
        return
    end = time.monotonic() + args.seconds
    args.folder.mkdir(parents=True, exist_ok=True)
    print(f"rank {args.rank}, {args.rows} x {args.length:,} tokens a GPU and step: {machine()}")
    columns = ("tokens/s", "planned", "of 989", "peak GiB", "planned", "first s")
    print(f"{'':22}" + "".join(f"{column:>10}" for column in columns), flush=True)
    cells = args.cells.split(",")
    with tempfile.TemporaryDirectory(prefix="sharded-", dir=args.folder) as place:
        for gpus in dict.fromkeys(cell.split(":")[2] for cell in cells):
            left = {cell: config_of(cell, args, Path(place)) for cell in cells if cell.split(":")[2] == gpus}
            while left and time.monotonic() < end:
                left = run(left, int(gpus), args, end)


def config_of(cell: str, args: argparse.Namespace, place: Path) -> dict[str, Any]:
    shape, quantize, gpus, *whole = cell.split(":")
    rows = args.folder / f"sharded-{args.rows * int(gpus) * args.steps}-{args.length}.jsonl"
    if not rows.exists():
        write_rows(rows, [args.length] * (args.rows * int(gpus) * args.steps))
    return {
        "model": str(model_folder(shape, args.folder)),
        "output": str(place / cell.replace(":", "-")),
        "quantize": quantize,
        "load": {"device": args.device},
        "lora": {"r": args.rank, "alpha": 2 * args.rank, "targets": list(TARGETS)},
        "data": {"source": str(rows), "max_length": args.length, "eval_fraction": 0.0},
        "train": {
            "batch_size": args.rows,
            "accumulation": int(gpus),
            "packing": False,
            "learning_rate": 1e-4,
            "scheduler": "constant",
            "warmup_steps": 0,
            "memory": args.limit if args.device == "auto" else None,
            "shard_base": not whole,
            "max_steps": args.steps,
            "save_every": 10**6,
        },
        "ask": {"questions": []},
    }


def run(cells: dict[str, dict[str, Any]], gpus: int, args: argparse.Namespace, end: float) -> dict[str, dict[str, Any]]:
    """Train cells one after another, print their rows, and return those that are left behind one that failed."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    file = args.folder / f"sharded-{port}.json"
    file.write_text(json.dumps(list(cells.values())), encoding="utf-8")
    logs = [args.folder / f"sharded-{port}-{rank}.log" for rank in range(gpus)]
    processes = []
    for rank, log in enumerate(logs):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": gpus, "LOCAL_WORLD_SIZE": gpus}
        place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 4, "HF_HUB_OFFLINE": 1}
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, "-u", __file__, "--worker", str(file)]
        with log.open("w") as said:
            processes.append(subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment))
    left, began = dict(cells), time.time()
    try:
        while left:
            cell, config = next(iter(left.items()))
            folder = Path(config["output"])
            over = time.time() - began > args.each + 60 * (len(left) == len(cells)) or time.monotonic() > end
            if (folder / "whole.txt").exists():
                print(row(cell, folder, args), flush=True)
                began = time.time()
                del left[cell]
            elif over or any(process.poll() is not None for process in processes):
                print(f"{cell:22} {'cut off' if over else 'failed'}", flush=True)
                for rank, log in enumerate(logs):
                    words = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
                    print("\n".join(f"  {rank}: {line[:200]}" for line in words[-12:]), flush=True)
                del left[cell]
                return left
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
    return left


def work(configs: list[dict[str, Any]]) -> None:
    """Train each config, as one rank of several."""
    import torch
    from rich.console import Console

    from thinktune.config import parse_config
    from thinktune.training.train import train

    first, port = os.environ["RANK"] == "0", int(os.environ["MASTER_PORT"])
    for number, values in enumerate(configs):
        began = time.time()
        os.environ["MASTER_PORT"] = str(port + number)
        model_folder(Path(values["model"]).name, Path(values["model"]).parent)  # drawn when it is read
        record = train(parse_config(values), console=Console(width=150) if first else Console(quiet=True))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if first:
            took = time.time() - began - record["train_seconds"]
            (Path(values["output"]) / "whole.txt").write_text(str(took), encoding="utf-8")
    if first:
        time.sleep(60)  # the others' end would be taken for a failure


def row(cell: str, folder: Path, args: argparse.Namespace) -> str:
    from thinktune.config import load_config
    from thinktune.planner.cost_model import cost_model_of
    from thinktune.planner.hardware import find_gpu
    from thinktune.planner.memory_model import Batch
    from thinktune.planner.plan_config import read_shape

    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    record, plan = (json.loads((folder / name).read_text()) for name in ("run.json", "plan.json"))
    planned, gpus = plan["plan"], int(cell.split(":")[2])
    before = [0, *(line["tokens"] for line in lines)]
    steps = [(line["tokens"] - start, line) for start, line in zip(before, lines, strict=False)][WARM_UP:]
    rate = sum(tokens for tokens, _ in steps) / sum(tokens / line["tokens_per_second"] for tokens, line in steps)
    config = load_config(folder / "config.yaml")
    cost = cost_model_of(config, read_shape(config), find_gpu("h100"), width=2)
    flops = cost.flops(Batch(args.length, args.length, args.length**2)) / args.length
    columns = (f"{rate:,.0f}", f"{planned['tokens_per_second']:,.0f}", f"{rate * flops / gpus / PEAK:.1%}")
    columns += (f"{record['peak_memory_gib']:.2f}", f"{planned['parts']['peak'] / 2**30:.2f}")
    columns += (f"{float((folder / 'whole.txt').read_text()):.1f}",)
    losses = " ".join(f"{line['loss']:.4f}" for line in lines)
    late = f"; planned {1e3 * planned['late']:.0f} ms late a step" if planned["kept"] < 1 else ""
    return (
        f"{cell:22}" + "".join(f"{column:>10}" for column in columns)
        + f"\n{'':22}  {record['setup']}{late}\n{'':22}  losses {losses}"
    )  # fmt: skip


if __name__ == "__main__":
    main()
