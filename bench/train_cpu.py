"""LoRA training on a CPU: ours against plain PEFT + transformers, on the same rows, in the same dtype, in one run.

    python bench/train_cpu.py                                   # the built-in model and data
    python bench/train_cpu.py --data FILE --max-length 1024     # rows of your own

Each batch is trained by both, one after the other, so that a busy machine slows both alike. Plain means: the rows of a
batch padded to its longest, transformers' own loss, PEFT's own LoRA linears. Ours means: the documents of a batch laid
end to end, by training/fused/. Both start from the same weights and see the same batches, so their losses and gradient
norms agree but for rounding, which takes a small adapter's part of a product away in plain bfloat16. Tokens are real
ones, padding is never counted. The first batch warms up and is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from thinktune.config import Load, parse_config
from thinktune.data import Tokens, prepare
from thinktune.models import load_model
from thinktune.training.collator import PackedCollator
from thinktune.training.fused.layer_on_cpu import layers_on_cpu
from thinktune.training.fused.lora_linear import fuse_lora
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.model_with_loss import ModelWithLoss

Step = Callable[[list[Tokens]], torch.Tensor]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--model", default="builtin:smollm2")
    cli.add_argument("--data", default="builtin:arithmetic")
    cli.add_argument("--max-length", type=int, default=1024)
    cli.add_argument("--rows", type=int, default=16, help="rows a batch")
    cli.add_argument("--batches", type=int, default=6, help="timed batches")
    cli.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    args = cli.parse_args()

    load = Load(device="cpu", dtype=args.dtype)
    count = args.rows * (args.batches + 1)
    config = parse_config({"data": {"source": args.data, "sample": count, "max_length": args.max_length}})
    held = ExitStack()  # to the end of this: layers stay as they are set up
    plain, ours = make_plain(args.model, load), make_ours(args.model, load, held)
    examples = prepare(config, load_model(args.model, load=load).chat).train
    batches = [examples[at : at + args.rows] for at in range(0, len(examples), args.rows)]

    table = Table("batch", "tokens", "padding", "plain loss", "ours", "plain norm", "ours", "plain tokens/s", "ours")
    rates: list[tuple[float, float]] = []
    for number, batch in enumerate(batches):
        tokens = sum(len(document) for document in batch)
        padded = len(batch) * max(len(document) for document in batch)
        results = [train_on(batch, *one) for one in (plain, ours)]
        (loss, norm, seconds), (our_loss, our_norm, our_seconds) = results
        if number:
            rates.append((tokens / seconds, tokens / our_seconds))
        cells = (loss, our_loss, norm, our_norm)
        speeds = (f"{tokens / seconds:,.0f}", f"{tokens / our_seconds:,.0f}")
        table.add_row(
            str(number or "warm-up"), str(tokens), f"{1 - tokens / padded:.0%}", *(f"{c:.4f}" for c in cells), *speeds
        )
    before, after = (median(rate[side] for rate in rates) for side in (0, 1))
    console = Console(width=120)
    console.print(table)
    console.print(f"median: plain {before:,.0f}, ours {after:,.0f} real tokens/s: {after / before:.2f} times")


def with_adapter(model: str, load: Load) -> Any:
    set_seed(0)
    base = load_model(model, load=load).model.requires_grad_(False)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")).train()


def make_plain(model: str, load: Load) -> tuple[Any, Step]:
    peft_model = with_adapter(model, load)

    def loss_of(batch: list[Tokens]) -> torch.Tensor:
        longest = max(len(document) for document in batch)
        ids, labels, mask = [], [], []
        for document in batch:
            missing = longest - len(document)
            ids.append(document.input_ids + [0] * missing)
            labels.append(document.labels + [-100] * missing)
            mask.append([1] * len(document) + [0] * missing)
        inputs = {"input_ids": ids, "labels": labels, "attention_mask": mask}
        loss: torch.Tensor = peft_model(**{k: torch.tensor(v) for k, v in inputs.items()}, use_cache=False).loss
        return loss

    return peft_model, loss_of


def make_ours(model: str, load: Load, held: ExitStack) -> tuple[Any, Step]:
    peft_model = with_adapter(model, load)
    fuse_lora(peft_model)
    with_loss = ModelWithLoss(peft_model)
    held.enter_context(layers_on_cpu(peft_model))

    def loss_of(batch: list[Tokens]) -> torch.Tensor:
        inputs = PackedCollator(batch)([{"documents": list(range(len(batch)))}])
        with packed_documents(peft_model.get_base_model()):
            loss: torch.Tensor = with_loss(**inputs)
        return loss / len(inputs["targets"])

    return peft_model, loss_of


def train_on(batch: list[Tokens], model: Any, loss_of: Step) -> tuple[float, float, float]:
    """One optimizer step: its loss, gradient norm and seconds."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not hasattr(model, "optimizer"):
        model.optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    start = time.perf_counter()
    loss = loss_of(batch)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    model.optimizer.step()
    model.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach()), float(norm), time.perf_counter() - start


if __name__ == "__main__":
    main()
