"""What training learns: the loss on examples that were not trained, by plain PEFT, by ours, and by ours over fp8.

    python bench/learning.py ROWS.jsonl          # one epoch of the built-in model, three seeds
    python bench/learning.py builtin:arithmetic --set data.sample=64 --variants plain,ours --seeds 1    # on a CPU

Every row is one `thinktune train` with the same settings, rows in the same order and the same first adapter. `plain` is
that command with all that is ours taken out of the model: PEFT's own linear layers, transformers' own attention and
logits, on padded rows. The loss is that of the adapter merged into the base in its own dtype, taken with
transformers alone, in nats a trained token; the fall is from the base model's.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch.nn.utils.rnn import pad_sequence

from thinktune.config import Config, parse_config
from thinktune.data import Tokens
from thinktune.models import load_model
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.train import train

VARIANTS = {"plain": "none", "ours": "none", "ours-fp8": "fp8", "ours-int8": "int8", "ours-nf4": "nf4"}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("rows", help="a data source")
    cli.add_argument("--model", default="builtin:smollm2")
    cli.add_argument("--seeds", default="1,2,3")
    cli.add_argument("--variants", default="plain,ours,ours-fp8", help=", ".join(VARIANTS))
    cli.add_argument("--set", action="append", default=[], help="a setting of the config, as SECTION.NAME=VALUE")
    args = cli.parse_args()
    print(f"{'':18}{'before':>9}{'after':>9}{'fall':>8}{'of bf16':>9}{'from plain':>12}{'tokens/s':>10}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for seed in args.seeds.split(","):
            after: dict[str, float] = {}
            for variant in args.variants.split(","):
                config = config_for(args, int(seed), variant, Path(place) / f"{variant}-{seed}")
                record = learn(config, plain=variant == "plain")
                held_out = BaseModelCache().take(config.model_copy(update={"quantize": "none"}))[1].held_out
                before = loss_of(config.model, held_out, config)
                after[variant] = loss_of(str(config.run_folder), held_out, config)
                print(row(f"{variant} seed {seed}", before, after, variant, record), flush=True)


def config_for(args: argparse.Namespace, seed: int, variant: str, output: Path) -> Config:
    import yaml

    values: dict[str, Any] = {
        "model": args.model,
        "output": str(output),
        "quantize": VARIANTS[variant],
        "seed": 1,  # of the data: the same rows are held out for all
        "data": {"source": args.rows, "system": "", "max_length": 1024, "eval_fraction": 0.1},
        "lora": {"r": 16, "alpha": 32},
        "train": {"seed": seed, "pack_length": 2048, "learning_rate": 1e-3, "fused": variant != "plain"},
        "ask": {"questions": []},
        "eval": {"every": None},
    }
    for setting in args.set:
        name, _, value = setting.partition("=")
        section, _, field = name.partition(".")
        values.setdefault(section, {})[field] = yaml.safe_load(value)
    return parse_config(values)


def learn(config: Config, *, plain: bool) -> dict[str, Any]:
    """Train as the command does, and return what run.json records."""
    with ExitStack() as stack:
        if plain:
            for name, own in {
                "thinktune.training.adapter.fuse_lora": lambda model: 0,
                "thinktune.training.train.ModelWithLoss": PlainLoss,
                "thinktune.training.prepare_model.packed_documents": lambda model: nullcontext(),
                "thinktune.training.train.examine_in_float32": lambda *_, **__: True,  # rows share no sequence
                "thinktune.training.train.examine_as_set_up": lambda *_, **__: True,
            }.items():
                stack.enter_context(mock.patch(name, own))
        return train(config, console=Console(file=io.StringIO()))


class PlainLoss(ModelWithLoss):
    """Takes a packed batch apart and runs its documents as rows padded to the longest, through the full logits."""

    def forward(self, positions: torch.Tensor, targets: torch.Tensor, **batch: Any) -> torch.Tensor:
        lengths, packed = batch["document_lengths"], batch["input_ids"][0]
        labels = torch.full_like(packed, -100)
        labels[positions + 1] = targets
        rows = pad_sequence(packed.split(lengths), batch_first=True)
        wanted = pad_sequence(labels.split(lengths), batch_first=True, padding_value=-100)
        there = pad_sequence(torch.ones_like(packed).split(lengths), batch_first=True)
        logits = self.peft_model(input_ids=rows, attention_mask=there, use_cache=False).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted[:, 1:].flatten(), reduction="sum")


@torch.no_grad()
def loss_of(reference: str, documents: list[Tokens], config: Config) -> float:
    """The mean loss a trained token, by transformers alone."""
    model = load_model(reference, load=config.load).model.eval()
    total = 0.0
    for document in documents:
        ids = torch.tensor([document.input_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        labels = torch.tensor(document.labels, device=model.device)[1:]
        total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return total / sum(document.trained for document in documents)


def row(name: str, before: float, after: dict[str, float], variant: str, record: dict[str, Any]) -> str:
    own = after[variant]
    share = f"{(before - own) / (before - after['ours']):.1%}" if "ours" in after else "-"
    off = f"{own / after['plain'] - 1:+.2%}" if "plain" in after else "-"
    rate = record["tokens_per_second"]
    return f"{name:18}{before:>9.4f}{own:>9.4f}{before - own:>8.4f}{share:>9}{off:>12}{rate:>10,.0f}"


if __name__ == "__main__":
    main()
