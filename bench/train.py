"""LoRA training on one GPU: ours and the peers on the same rows, one table of one run.

    python bench/train.py --cell bf16                        # a cell of docs/benchmarks.md, with its contestants
    python bench/train.py --cell fp8 --only ours-fp8,verb-fp8
    python bench/train.py --shape 0.5b --rows 4 --length 2048 --limit 12 --only ours,trl,trl-ckpt
    python bench/train.py --shape tiny --rows 2 --length 64 --only ours,trl         # on a CPU

Each contestant runs in a process of its own, on random weights of the given shape, on the same token ids, from the same
adapter, with the same optimizer; losses and gradient norms of every step are printed, since equal data has to give
equal losses. Tokens/s is the median step after three to warm up. TFLOP/s counts 4 floating-point operations a weight
(head included) and token, forward and input gradient, plus causal attention; recomputation is not counted. Its share is
of matrix products of the same shapes, measured in the same run. `--limit` is enforced on the allocator. The seconds to
the first step count from the start of the process; only `verb`, `shipped` (configs/article.yaml as it is) and Unsloth
have the libraries' imports in them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contestants import compete, contestants
from workload import SHAPES, TARGETS, Workload


@dataclass(frozen=True)
class Cell:
    """A cell of the table in docs/benchmarks.md."""

    rows: int
    length: int
    only: str
    accumulation: int = 1
    limit: float | None = None


_PEERS = (
    "trl,trl-ckpt,trl-liger,trl-liger-ckpt,hf-liger,hf-liger-ckpt,trl-compile,trl-compile-ckpt,unsloth,unsloth-ckpt"
)
CELLS = {
    "bf16": Cell(8, 1500, f"ours,verb,{_PEERS}"),
    "fp8": Cell(8, 1500, "ours-fp8,verb-fp8"),
    "10gib": Cell(8, 1500, "ours,verb,trl-ckpt,trl-liger-ckpt,hf-liger-ckpt,unsloth-ckpt", limit=10),
    "7gib": Cell(8, 1500, "ours-fp8,verb-fp8,ours-int8,ours-nf4,unsloth-nf4-ckpt", limit=7),
    "4bit": Cell(8, 1500, "ours-nf4,verb-nf4,trl-nf4-ckpt,unsloth-nf4-ckpt", limit=4),
    "shipped": Cell(1, 1500, "shipped", accumulation=4),
    "shipped16": Cell(1, 1500, "shipped", accumulation=4, limit=16),
    "article": Cell(1, 1500, "ours,ours-fp8,verb,article,trl,unsloth", accumulation=4),
    "long16k": Cell(1, 16384, "ours,ours-fp8,verb,unsloth-ckpt", limit=16),
    "packed": Cell(6, 0, "ours,ours-fp8,verb,trl-ckpt,unsloth-ckpt"),
}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "--cell", default="bf16", help=f"rows, length, accumulation, limit and contestants of {', '.join(CELLS)}"
    )
    cli.add_argument("--only", help=f"contestants: {', '.join(contestants())}")
    cli.add_argument("--skip", default="", help="contestants to leave out")
    cli.add_argument("--shape", choices=SHAPES, default="3b")
    cli.add_argument("--rows", type=int, help="documents a batch")
    cli.add_argument("--length", type=int, help="tokens a document; 0: long reasoning, 32,768 tokens a step")
    cli.add_argument("--accumulation", type=int)
    cli.add_argument("--limit", type=float, help="GiB that the allocator may take")
    cli.add_argument("--checkpointing", default="auto", choices=("auto", "true", "false"), help="of ours")
    cli.add_argument("--rank", type=int, default=8)
    cli.add_argument("--dropout", type=float, default=0.0, help="of ours")
    cli.add_argument("--optimizer", default="adamw", help="of ours")
    cli.add_argument("--steps", type=int, default=8)
    cli.add_argument("--timeout", type=float, default=180, help="seconds a contestant gets")
    cli.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "thinktune-bench")
    cli.add_argument("--json", type=Path, help="write everything measured into this file too")
    args = cli.parse_args()
    names = args.cell.split(",")
    if unknown := set(names) - set(CELLS):
        cli.error(f"unknown cells {', '.join(sorted(unknown))}; known: {', '.join(CELLS)}")
    given = {name: getattr(args, name) for name in ("rows", "length", "only", "accumulation", "limit")}
    given = {name: value for name, value in given.items() if value is not None}
    cells = [Cell(**{**asdict(CELLS[name]), **given}) for name in names]
    if unknown := {name for cell in cells for name in cell.only.split(",")} - set(contestants()):
        cli.error(f"unknown contestants {', '.join(sorted(unknown))}; known: {', '.join(contestants())}")
    everything: dict[str, Any] = {"machine": machine()}
    print(f"{args.shape}: {everything['machine']}", flush=True)
    names_shared = ("shape", "rank", "dropout", "optimizer", "checkpointing")
    shared = {"folder": str(args.folder)} | {name: getattr(args, name) for name in names_shared}
    workloads = [Workload(cell.rows, cell.accumulation, cell.length, args.steps) for cell in cells]
    tasks = [
        {**shared, "workload": asdict(workload), "limit": cell.limit}
        for cell, workload in zip(cells, workloads, strict=True)
    ]
    ceilings = everything["ceiling"] = ask("ceiling", tasks[0], args.timeout)
    known = [f"{name} {rate:,.1f} TFLOP/s" for name, rate in ceilings.items() if name != "error"]
    print(f"matrix products: {', '.join(known) or ceilings['error']}", flush=True)
    for cell_name, cell, workload, task in zip(names, cells, workloads, tasks, strict=True):
        print(f"\n{cell_name}: {describe(cell)}\n{HEADER}", flush=True)
        results = everything[cell_name] = {"task": task}
        flops = flops_a_token(args.shape, workload)
        for name in (name for name in cell.only.split(",") if name not in args.skip.split(",")):
            results[name] = ask(name, task, args.timeout)
            print(row(name, results[name], flops, ceilings), flush=True)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=2), encoding="utf-8")


HEADER = (
    f"{'':18}{'tokens/s':>10}{'TFLOP/s':>9}{'share':>7}{'peak GiB':>10}{'reserved':>10}{'predicted':>10}{'first s':>9}"
)


def row(name: str, result: dict[str, Any], flops: float, ceilings: dict[str, float]) -> str:
    """A line of the table, and below it what it was and the loss and gradient norm of every step."""
    if "rate" not in result:
        return f"{name:18}  {result.get('missing') or result.get('error')}"
    tera = result["rate"] * flops / 1e12
    top = ceilings.get("fp8" if name.endswith("-fp8") else "bf16", 0.0)
    share = f"{tera / top:.0%}" if top else "-"
    predicted = f"{result['predicted']:.2f}" if result["predicted"] else "-"
    cells = f"{result['rate']:>10,.0f}{tera:>9.1f}{share:>7}{result['allocated']:>10.2f}{result['reserved']:>10.2f}"
    losses = " ".join(f"{loss:.4f}" for loss in result["losses"])
    norms = " ".join(f"{norm:.3f}" for norm in result["norms"])
    first = f"{name:18}{cells}{predicted:>10}{result['first_step']:>9.1f}"
    return f"{first}\n    {result['label']}\n    loss {losses}\n    norm {norms}"


def flops_a_token(shape: str, workload: Workload) -> float:
    """4 a weight (head included), and attention: 3.5 times the forward pass's 2 a pair and width, half of it causal."""
    sizes = SHAPES[shape]
    hidden, wide = sizes["hidden_size"], sizes["intermediate_size"]
    kv = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * wide
    lengths = [len(ids) for step in workload.documents(300) for ids in step]
    attended = sum(length**2 for length in lengths) / sum(lengths)
    weights = sizes["num_hidden_layers"] * layer + sizes["vocab_size"] * hidden
    return 4.0 * weights + 7 * hidden * sizes["num_hidden_layers"] * attended


_LIBRARIES = ("torch._dynamo", "datasets", "transformers.models.qwen2.modeling_qwen2")
"""Not PEFT, nor what imports it: it imports bitsandbytes, which asks CUDA, and CUDA does not survive a fork."""


def begin(function: Callable[..., None], *arguments: Any, fresh: bool = False) -> tuple[Any, Any]:
    """Begin a function in a process of its own, the end of a pipe its last argument; return process and other end.

    It is forked from one that has most libraries imported, which would take longer than the training itself. Some
    start afresh: whatever runs on a CPU, where memory shared with the parent would not be counted; and all where
    transformers finds torchao, whose import asks CUDA.
    """
    import torch

    fresh = fresh or not torch.cuda.is_available() or find_spec("torchao") is not None
    context = multiprocessing.get_context("spawn" if fresh else "forkserver")
    if not fresh:
        # Asked through the driver's library, CUDA would be set up in the parent, and lost to its forks.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
        context.set_forkserver_preload(list(_LIBRARIES))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*arguments, sender))
    process.start()
    sender.close()
    return process, receiver


def ask(name: str, task: dict[str, Any], timeout: float, *, fresh: bool | None = None) -> dict[str, Any]:
    """Run one contestant in a process of its own and return what it sends.

    Args:
        fresh: with nothing imported before. None: only Unsloth, which wants to be imported first, and commands, which
            have to import for themselves.
    """
    if fresh is None:
        fresh = name.startswith(("verb", "shipped", "unsloth"))
    Path(task["folder"]).mkdir(parents=True, exist_ok=True)
    log = Path(task["folder"]) / f"{name}.log"
    process, receiver = begin(compete, {**task, "name": name, "started": time.time()}, str(log), fresh=fresh)
    try:
        if not receiver.poll(timeout):
            return {"error": f"took more than {timeout:.0f} s"}
        answer: dict[str, Any] = receiver.recv()
    except EOFError:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        return {"error": (last or ["ended without a word"])[-1][:160]}
    finally:
        process.kill()
        process.join()
    return answer


def describe(cell: Cell) -> str:
    each = f"{cell.length:,} tokens" if cell.length else "log-normal lengths, 32,768 tokens a step"
    limit = f", within {cell.limit:g} GiB" if cell.limit else ""
    return f"{cell.rows} rows x {cell.accumulation} of {each}{limit}, LoRA on {len(TARGETS)} projections"


def machine() -> str:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


if __name__ == "__main__":
    main()
