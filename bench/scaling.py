"""Training on N GPUs beside one: speed, losses and memory of the same optimizer steps, against the plan. One table.

    python bench/scaling.py                                    # every cell, in under 9 minutes on 4 H100
    python bench/scaling.py --cells bf16:1+4+2,fp8:1+4,packed:1+4 --abreast    # in 5 minutes
    python bench/scaling.py --gpus 1,2 --shape tiny --length 128 --rows 12 --packs 2 --device cpu

Each row is `thinktune train --gpus N` itself, on random weights of the given shape. `bf16` and `fp8`: the same 64 rows
a step on every number of GPUs. `packed`: long reasoning in packs of 16,384 tokens, 4 packs a GPU and step on the most
GPUs, the same packs on fewer. `trl-liger`: TRL with Liger's kernels on DDP, 8 rows a GPU (weak scaling, as its users
have it).

tokens/s is that of the steps after the first three, on the trainer's clock; `of N x 1` its share of N times that of
one GPU, beside what the plan says; `peak` the most that any GPU had in use, beside the plan's; loss and norm the
largest difference to one GPU in any of the steps, relative for norms. With `--abreast` the baselines run side by side,
a GPU each. Whatever runs when `--seconds` are over is cut off; a row that failed has the last words of the command,
each with the seconds since its start, and so has every row in the file of `--json`.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from contest import LEARNING_RATE, MAX_NORM, WARM_UP, Missing, Task
from train import machine
from workload import SHAPES, TARGETS, Workload, model_folder, write_rows

PACK = 16384
CELLS = ("bf16", "fp8", "packed", "trl-liger")
PEER_ROWS = 8
"""A GPU and step."""


@dataclass
class Row:
    """What a training did: `first` seconds until its first step, and the most memory in GiB."""

    rate: float
    losses: list[float]
    norms: list[float]
    peak: float
    first: float
    label: str
    said: list[str]
    planned_peak: float | None = None
    planned_rate: float | None = None
    planned_efficiency: float | None = None


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--gpus", default="1,4,2", help="numbers of GPUs, the first of them the baseline")
    cli.add_argument("--cells", default=",".join(CELLS), help="NAME or NAME:1+4, comma-separated")
    cli.add_argument("--abreast", action="store_true", help="run the baselines side by side")
    cli.add_argument("--shape", choices=SHAPES, default="3b")
    cli.add_argument("--rows", type=int, default=64, help="rows a step of bf16 and fp8")
    cli.add_argument("--length", type=int, default=1500, help="tokens of each")
    cli.add_argument("--packs", type=int, default=4, help="packs a GPU and step of packed, on the most GPUs")
    cli.add_argument("--rank", type=int, default=8)
    cli.add_argument("--steps", type=int, default=8)
    cli.add_argument("--limit", type=float, default=70, help="GiB of each GPU that training may take")
    cli.add_argument("--device", default="auto")
    cli.add_argument("--seconds", type=float, default=530, help="until whatever runs is cut off")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    cli.add_argument("--json", type=Path, help="write everything measured into this file too")
    cli.add_argument("--peer", help=argparse.SUPPRESS)  # in the processes of a peer: the task's file
    args = cli.parse_args()
    if args.peer:
        run_peer(Path(args.peer))
        return
    end = time.monotonic() + args.seconds
    cells = {}
    for cell in args.cells.split(","):
        name, _, counts = cell.partition(":")
        cells[name] = [int(count) for count in (counts.replace("+", ",") or args.gpus).split(",")]
    most = max(max(counts) for counts in cells.values())
    args.folder.mkdir(parents=True, exist_ok=True)
    model_folder(args.shape, args.folder)
    for cell in cells:
        rows_of(cell, most, args)
    print(f"{args.shape}, rank {args.rank}, {args.steps} steps, on {args.gpus} of {machine()}")
    columns = ("GPUs", "tokens/s", "planned", "of N x 1", "planned", "peak GiB", "planned", "loss", "norm", "first s")
    print(f"{'':10}" + "".join(f"{column:>10}" for column in columns), flush=True)
    found: dict[str, dict[int, Any]] = {cell: {} for cell in cells}
    if args.abreast:
        with ThreadPoolExecutor(len(cells)) as pool:
            begun = {
                cell: pool.submit(run, cell, counts[0], most, args, args.seconds, gpu=number)
                for number, (cell, counts) in enumerate(cells.items())
            }
            for cell, future in begun.items():
                found[cell][cells[cell][0]] = future.result()
                print(line(cell, cells[cell][0], found[cell], cells[cell][0]), flush=True)
    for cell, counts in cells.items():
        for count in counts[args.abreast :]:
            found[cell][count] = run(cell, count, most, args, end - time.monotonic())
            print(line(cell, count, found[cell], counts[0]), flush=True)
    if args.json:
        values = {
            cell: {count: vars(row) if isinstance(row, Row) else str(row) for count, row in rows.items()}
            for cell, rows in found.items()
        }
        args.json.write_text(json.dumps(values, indent=2), encoding="utf-8")


def line(cell: str, count: int, rows: dict[int, Any], base: int) -> str:
    row, one = rows[count], rows.get(base)
    if isinstance(row, Exception):
        return f"{cell:10}{count:>10}  " + str(row).replace("\n", f"\n{'':10}  ")
    label = f"\n{'':10}  {row.label}"
    label += f"\n{'':10}  losses {' '.join(f'{loss:.4f}' for loss in row.losses)}" * (count == base)
    against = isinstance(one, Row) and count != base
    efficiency = f"{row.rate * base / count / one.rate:.1%}" if against else "-"
    same = against and not cell.startswith("trl")  # a peer has other rows on more GPUs
    loss = f"{max(abs(x - y) for x, y in zip(row.losses, one.losses, strict=True)):.4f}" if same else "-"
    norm = f"{max(abs(x / y - 1) for x, y in zip(row.norms, one.norms, strict=True)):.2%}" if same else "-"
    planned = "-" if row.planned_efficiency is None else f"{row.planned_efficiency:.1%}"
    cells = (f"{row.rate:,.0f}", number(row.planned_rate, 0), efficiency, planned)
    cells += (f"{row.peak:.2f}", number(row.planned_peak, 2), loss, norm, f"{row.first:.1f}")
    return f"{cell:10}{count:>10}" + "".join(f"{each:>10}" for each in cells) + label


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def run(
    cell: str, count: int, most: int, args: argparse.Namespace, seconds: float, gpu: int | None = None
) -> Row | Exception:
    """Train a cell on so many GPUs, or on that one; what went wrong is its line of the table."""
    try:
        if cell.startswith("trl"):
            return peer(cell, count, args, seconds, gpu)
        return ours(cell, count, most, args, seconds, gpu)
    except RuntimeError as error:
        return error


def rows_of(cell: str, most: int, args: argparse.Namespace) -> Path:
    """Return the file of a cell's rows, made if it is not there."""
    packed = cell == "packed"
    lengths = reasoning(args.packs * most * args.steps) if packed else [args.length] * (args.rows * args.steps)
    file: Path = args.folder / f"scaling-{'packed' if packed else 'rows'}-{len(lengths)}-{max(lengths)}.jsonl"
    if not file.exists():
        write_rows(file, lengths)
    return file


def ours(cell: str, count: int, most: int, args: argparse.Namespace, seconds: float, gpu: int | None) -> Row:
    packed = cell == "packed"
    batch, step = (1, args.packs * most) if packed else (min(8, args.rows), args.rows)
    with tempfile.TemporaryDirectory(prefix="scaling-", dir=args.folder) as place:
        config = {
            "model": str(model_folder(args.shape, args.folder)),
            "output": f"{place}/run",
            "quantize": "fp8" if cell == "fp8" else "none",
            "load": {"device": args.device},
            "lora": {"r": args.rank, "alpha": 2 * args.rank, "targets": list(TARGETS)},
            "data": {
                "source": str(rows_of(cell, most, args)),
                "max_length": PACK if packed else args.length,
                "eval_fraction": 0.0,
            },
            "train": {
                "batch_size": batch,
                "accumulation": step // batch,
                "packing": packed,
                "pack_length": PACK if packed else None,
                "learning_rate": LEARNING_RATE,
                "scheduler": "constant",
                "warmup_steps": 0,
                "max_grad_norm": MAX_NORM,
                "memory": args.limit,
                "on_oom": "retry",
                "max_steps": args.steps,
                "save_every": 10**6,
            },
            "ask": {"questions": []},
        }
        file = Path(place) / "scaling.yaml"
        file.write_text(json.dumps(config), encoding="utf-8")
        several = ["--gpus", str(count)] if count > 1 else []
        began = time.time()
        said = call([sys.executable, "-u", "-m", "thinktune", "train", str(file), *several], seconds, gpu)
        return read(Path(place) / "run", time.time() - began, said)


def reasoning(packs: int) -> list[int]:
    """Lengths of long reasoning that fill so many packs, and some: a median of 4,500 tokens, 95% below 14,000."""
    draw, lengths = random.Random(1), [PACK]
    while sum(lengths) < 1.15 * packs * PACK:
        lengths.append(min(PACK, max(64, round(4500 * draw.lognormvariate(0, 0.69)))))
    return lengths


def call(command: list[str], seconds: float, gpu: int | None) -> list[str]:
    """Run a command, on that GPU or on all, and return the lines that it prints, each with the seconds since its start.

    Raises:
        RuntimeError: it failed, or all of it was ended when its time was over; with its last lines.
    """
    seen = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
    began, said = time.monotonic(), list[str]()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=seen, text=True, errors="replace"
    )

    def listen() -> None:
        said.extend(
            f"{time.monotonic() - began:6.1f} s {text.rstrip()[:150]}" for text in process.stdout if text.strip()
        )

    listener = Thread(target=listen, daemon=True)
    listener.start()
    try:
        status = process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()  # its processes end with it
        raise RuntimeError("\n".join([f"cut off after {seconds:.0f} s", *said[-8:]])) from None
    listener.join(5)
    if status:
        raise RuntimeError("\n".join([f"status {status}", *said[-8:]]))
    return said


def read(folder: Path, seconds: float, said: list[str]) -> Row:
    """Read what a run folder says."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    record, plan = (json.loads((folder / name).read_text()) for name in ("run.json", "plan.json"))
    before = [0, *(line["tokens"] for line in lines)]
    steps = [(line["tokens"] - start, line) for start, line in zip(before, lines, strict=False)]
    steady = steps[WARM_UP:] or steps
    took = sum(tokens / line["tokens_per_second"] for tokens, line in steady)
    planned = plan["plan"]
    return Row(
        rate=sum(tokens for tokens, _ in steady) / took,
        losses=[line["loss"] for line in lines],
        norms=[line["grad_norm"] for line in lines],
        peak=record["peak_memory_gib"],
        first=seconds - record["train_seconds"],
        label=record["setup"],
        said=said,
        planned_peak=planned["parts"]["peak"] / 2**30,
        planned_rate=planned["tokens_per_second"],
        planned_efficiency=planned["efficiency"] if planned["gpus"] > 1 else None,
    )


def peer(cell: str, count: int, args: argparse.Namespace, seconds: float, gpu: int | None) -> Row:
    """Run a peer of bench/train.py in a process a GPU, started by torchrun."""
    rows = min(PEER_ROWS, args.rows)
    task = {"name": cell, "shape": args.shape, "rank": args.rank, "limit": None, "folder": str(args.folder)}
    task["workload"] = asdict(Workload(rows, count, args.length, args.steps))
    with tempfile.TemporaryDirectory(prefix="scaling-", dir=args.folder) as place:
        file = Path(place) / "task.json"
        file.write_text(json.dumps(task), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        began = time.time()
        said = call([*command, __file__, "--peer", str(file)], seconds, gpu)
        answer = json.loads(file.with_suffix(".answer").read_text(encoding="utf-8"))
    if "missing" in answer:
        raise RuntimeError(answer["missing"])
    return Row(
        rate=answer["rate"],
        losses=answer["losses"],
        norms=answer["norms"],
        peak=answer["allocated"],
        first=time.time() - began - sum(answer["times"]),
        label=f"{answer['label']}, DDP, {rows} rows a GPU",
        said=said,
    )


def run_peer(file: Path) -> None:
    """Run a peer in one of its processes, and leave what the first one measured beside the task's file."""
    from peers import PEERS
    from peers import peer as train_peer

    values = json.loads(file.read_text(encoding="utf-8"))
    task = Task(**{**values, "workload": Workload(**values["workload"]), "started": time.time()})
    try:
        answer = vars(train_peer(task, PEERS[task.name]))
    except (Missing, ModuleNotFoundError) as error:
        answer = {"missing": str(error)}
    if os.environ["RANK"] == "0":
        file.with_suffix(".answer").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
