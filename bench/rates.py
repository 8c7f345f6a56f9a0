"""How far `train.learning_rate: auto` is from the best rate: method and data x ranks x rows a step, in one process.

    python bench/rates.py --rows TRAIN.jsonl --seconds 230 --json rates.json              # on one GPU
    python bench/rates.py --ranks 4 --batches 2 --steps 2 --sample 60                     # on a CPU

The model is loaded once. For each combination, the adapter begins from the same weights and sees the same rows in the
same order at each rate, for the same number of steps, with the schedule and the passes of `thinktune train`. Rates are
powers of two of auto's: from auto, up or down, until the best one lies between two worse ones. Losses are of examples
that were not trained: sft in nats a trained token, dpo a pair. The pairs are made of the rows: in the worse solution,
one number that the question does not have is another one. `above` is how far auto's loss lies above the best, as a part
of that; `left`, as a part of all that the best rate has learned; `valley` the rate at the minimum of a parabola through
the best one and its neighbours.

A combination is printed, and written to --json, as soon as it is known. None is begun that would end after --seconds;
further seeds come when every combination has its first. Whether a difference is the seed's shows in the losses of each:

    python bench/rates.py --rows TRAIN.jsonl --methods sft --factors 0.5,1,2 --first-seed 1 --seeds 2
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup, set_seed

from thinktune.config import Config, Data, Format, Load, parse_config
from thinktune.data import Prepared, Tokens, load_examples, prepare
from thinktune.models import Loaded
from thinktune.models.untouched import eval_mode
from thinktune.notices import show_notices
from thinktune.planner.pack_lengths import measure_packs
from thinktune.training.adapter import adapter_to_train
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.training.collator import PackedCollator
from thinktune.training.compiled_kernels import compile_kernels
from thinktune.training.graphed_passes import GraphedPasses
from thinktune.training.methods.dpo import document_logprobs, pair_losses
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.plan import resolve_plan
from thinktune.training.prepare_model import set_up

WITHIN = 0.01
"""A loss this near to the best counts as equal to it."""
MOST = 5
"""Powers of two that a rate is tried away from auto's."""
AT_ONCE = 32
"""Held-out documents in a pass."""
NUMBER = re.compile(r"(?<![\d.,])\d+(?![\d.,]*\d)")


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", help="a data source, before builtin:arithmetic; pairs are made of it")
    cli.add_argument("--model", default="builtin:smollm2")
    cli.add_argument("--methods", default="sft,dpo")
    cli.add_argument("--ranks", default="8,64")
    cli.add_argument("--batches", default="4,16,64", help="rows, or pairs, a step")
    cli.add_argument("--steps", type=int, default=120)
    cli.add_argument("--pair-steps", type=int, default=60)
    cli.add_argument("--sample", type=int, default=2000, help="rows of each data source")
    cli.add_argument("--factors", help="of auto's rate, the same for each combination, in place of the search")
    cli.add_argument("--seeds", type=int, default=1)
    cli.add_argument("--first-seed", type=int, default=0)
    cli.add_argument("--seconds", type=float, default=math.inf)
    cli.add_argument("--json", type=Path, help="writes every loss")
    args = cli.parse_args()
    show_notices()
    with tempfile.TemporaryDirectory() as place:
        compare_rates(args, Path(place) / "pairs.jsonl")


def compare_rates(args: argparse.Namespace, pairs: Path) -> None:
    began, longest = time.monotonic(), {"sft": 0.0, "dpo": 0.0}
    rows = args.rows or "builtin:arithmetic"
    make_pairs(rows, pairs, args.sample)
    asked = [("sft", rows), ("dpo", str(pairs)), ("sft", "builtin:arithmetic")]
    kinds = dict.fromkeys(kind for kind in asked if kind[0] in args.methods.split(","))
    loaded = BaseModelCache().take_model(config_for(args, "sft", rows, 8, 1))
    data = {source: prepare(config_for(args, method, source, 8, 1), loaded.chat) for method, source in kinds}
    powers = [math.log2(float(each)) for each in args.factors.split(",")] if args.factors else None
    grid = [Combination(*kind, rank, batch, powers) for kind in kinds for batch in numbers(args.batches)
            for rank in numbers(args.ranks)]  # fmt: skip
    print(f"{len(grid)} combinations, {args.steps} steps each (dpo {args.pair_steps}), on {loaded.device.type}; "
          f"ready in {time.monotonic() - began:.0f} s\n{HEADING}", flush=True)  # fmt: skip
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for each in grid:
            start = time.monotonic()
            if start - began + longest[each.method] > args.seconds:
                continue
            config = config_for(args, each.method, each.source, each.rank, each.batch)
            steps = args.steps if each.method == "sft" else args.pair_steps
            sweep(each, config, loaded, data[each.source], steps, seed, seed - args.first_seed)
            longest[each.method] = max(longest[each.method], time.monotonic() - start)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"{each.line()}   seed {seed}, {time.monotonic() - start:.1f} s", flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps([vars(each) for each in grid if each.losses], indent=1))
    for method, source in kinds:
        known = [each for each in grid if each.losses and (each.method, each.source) == (method, source)]
        near = sum(each.excess() <= WITHIN for each in known)
        print(f"{method} {Path(source).stem}: auto within {WITHIN:.0%} of the best in {near} of {len(known)}")
    known = [each for each in grid if each.losses]
    near = sum(each.excess() <= WITHIN for each in known)
    print(f"all: {near} of {len(known)}, of {len(grid)} to be seen; {time.monotonic() - began:.0f} s")


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def config_for(args: argparse.Namespace, method: str, source: str, rank: int, batch: int) -> Config:
    data = {"source": source, "sample": args.sample, "system": "", "max_length": 512, "eval_fraction": 0.08}
    return parse_config(
        {
            "method": method,
            "model": args.model,
            "data": {**data, "overlong": "drop"},
            "lora": {"r": rank, "alpha": 32, "targets": "auto"},
            "train": {"packing": False, "batch_size": batch, "learning_rate": "auto"},
        }
    )


def make_pairs(source: str, out: Path, count: int) -> None:
    """Write pairs of a right solution and one with another number; rows without a number of their own have none."""
    examples, _ = load_examples(Data(source=source, sample=count, system=""), Format(), 0, load=Load())
    lines = []
    for example in examples:
        question, solution = example.messages[-1]["content"], f"<think>{example.think}</think> {example.answer}"
        own = sorted(set(NUMBER.findall(solution)) - set(NUMBER.findall(question)))
        if own:
            draw = Random(f"{example.row}")
            number = draw.choice(own)
            other = str(int(number) + draw.choice([step for step in range(-9, 10) if step and int(number) + step >= 0]))
            worse = NUMBER.sub(lambda found: other if found[0] == number else found[0], solution)  # noqa: B023
            lines.append(json.dumps({"prompt": question, "chosen": solution, "rejected": worse}))
    out.write_text("\n".join(lines))


@dataclass
class Combination:
    """A method and its data, a rank, and a number of rows or pairs a step.

    Attributes:
        powers: of two, of auto's rate, that are tried; None: those that the search comes to.
        base: the loss before training.
        losses: by power of two of auto's rate, one a seed.
    """

    method: str
    source: str
    rank: int
    batch: int
    powers: list[float] | None = None
    auto: float = math.nan
    base: float = math.nan
    losses: dict[float, list[float]] = field(default_factory=dict)

    def next_power(self, known: int) -> float | None:
        """Return the power to try next, after so many seeds: the first seed's again, or until the best lies between
        two others."""
        if known or self.powers:
            return next((at for at in self.powers or self.losses if len(self.losses.get(at, [])) <= known), None)
        if not self.losses:
            return 0
        best = self.best()
        return next((at for at in (best + 1, best - 1) if at not in self.losses and abs(at) <= MOST), None)

    def means(self) -> dict[float, float]:
        return {power: fmean(losses) for power, losses in sorted(self.losses.items())}

    def best(self) -> float:
        means = self.means()
        return min(means, key=means.__getitem__)

    def excess(self) -> float:
        """Return the loss of auto above the best, as a part of that."""
        means = self.means()
        return means[0] / means[self.best()] - 1

    def left(self) -> float:
        """Return the same as a part of what the best rate has learned."""
        means = self.means()
        return (means[0] - means[self.best()]) / (self.base - means[self.best()])

    def valley(self) -> float:
        """Return the rate at the minimum of a parabola through the best and its neighbours, in logarithms of the rate;
        the best itself, if one of them is missing or has no finite loss."""
        means, best = self.means(), self.best()
        low, here, high = (means.get(best + step, math.inf) for step in (-1, 0, 1))
        bend = low - 2 * here + high
        return self.auto * 2 ** (best + ((low - high) / (2 * bend) if 0 < bend < math.inf else 0))

    def line(self) -> str:
        shown = " ".join(f"{2.0**power:g}: {loss:.4f} " for power, loss in self.means().items())
        return (
            f"{self.method} {Path(self.source).stem[:20]:21}{self.rank:>5}{self.batch:>6}{self.base:>8.4f}"
            f"{self.auto:>9.1e}{self.auto * 2 ** self.best():>9.1e}{self.valley():>9.1e}{self.excess():>8.2%}"
            f"{self.left():>7.1%}   {shown}"
        )


HEADING = (
    f"{'':25}{'rank':>5}{'rows':>6}{'before':>8}{'auto':>9}{'best':>9}{'valley':>9}{'above':>8}{'left':>7}   "
    "loss at so many times auto's rate"
)


def sweep(
    combination: Combination, config: Config, loaded: Loaded, data: Prepared, steps: int, seed: int, known: int
) -> None:
    """Train the combination at one rate after another, from one adapter and through one set of CUDA graphs."""
    packs = measure_packs(data.train, data.packs)
    set_seed(seed)
    with ExitStack() as stack:
        model = stack.enter_context(adapter_to_train(loaded, config))
        with_loss = ModelWithLoss(model)
        plan = resolve_plan(model, config, loaded, packs)
        stack.enter_context(set_up(model, loaded, plan))
        if plan.fused:
            most = combination.batch * len(data.packs[0])
            compile_kernels(with_loss, sorted(data.train, key=len)[-most:])
        model.train()
        start = [parameter.detach().clone() for parameter in with_loss.trained]
        if config.method == "dpo":
            passes: Passes = PairPasses(with_loss, loaded.device, config)
        else:
            passes = Passes(with_loss, loaded.device, GraphedPasses(with_loss, loaded.device) if plan.graphed else None)
        drawn = batches_of(data.packs, combination.batch, steps, seed)
        batches = [passes.moved(data.train, documents) for documents in drawn]
        apart = [list(range(at, min(at + AT_ONCE, len(data.held_out)))) for at in range(0, len(data.held_out), AT_ONCE)]
        held_out = [passes.moved(data.held_out, documents) for documents in apart]
        combination.auto, combination.base = plan.rate.value, passes.loss_of(held_out)
        while (power := combination.next_power(known)) is not None:
            with torch.no_grad():
                for parameter, first in zip(with_loss.trained, start, strict=True):
                    parameter.copy_(first)
            train(passes, batches, plan.rate.value * 2.0**power, config)
            combination.losses.setdefault(power, []).append(passes.loss_of(held_out))


def batches_of(packs: list[list[int]], batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the documents of each step: all packs, in an order of the seed, again and again."""
    draw, left = Random(seed), list[list[int]]()
    for _ in range(steps):
        while len(left) < batch:
            left += draw.sample(packs, len(packs))
        yield list(chain.from_iterable(left[:batch]))
        del left[:batch]


@dataclass
class Passes:
    """Forward and backward passes of sft, from CUDA graphs where there are some."""

    model: ModelWithLoss
    device: torch.device
    graphs: GraphedPasses | None

    def moved(self, examples: list[Tokens], documents: list[int]) -> dict[str, Any]:
        """Return a batch on the device."""
        batch = PackedCollator(examples)([{"documents": documents}])
        return {name: each.to(self.device) if torch.is_tensor(each) else each for name, each in batch.items()}

    def backward(self, batch: dict[str, Any]) -> None:
        divisor = torch.tensor(batch["targets"].numel(), device=self.device)
        plainly = {"weights": None, "dropout_seed": torch.zeros(1, dtype=torch.int32, device=self.device)}
        if self.graphs is None or self.graphs.backward({**batch, **plainly}, divisor=divisor) is None:
            (self.model(**batch) / divisor).backward()

    def clip(self, most: float) -> None:
        if (gradients := self.model.gradients) is None:
            torch.nn.utils.clip_grad_norm_(self.model.trained, most)
        else:
            gradients.mul_((most / (torch.linalg.vector_norm(gradients) + 1e-6)).clamp(max=1.0))

    def summed(self, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """Return the summed loss, and its number of tokens."""
        return self.model(**batch), batch["targets"].numel()

    @torch.no_grad()
    def loss_of(self, batches: list[dict[str, Any]]) -> float:
        """Return the mean loss; infinite where it is no number."""
        with eval_mode(self.model.model):
            found = [self.summed(batch) for batch in batches]
        loss = float(sum(summed for summed, _ in found)) / sum(count for _, count in found)
        return loss if math.isfinite(loss) else math.inf


class PairPasses(Passes):
    """Those of dpo. The reference is the base model, which an untrained adapter is; it is asked once for each batch."""

    def __init__(self, model: ModelWithLoss, device: torch.device, config: Config) -> None:
        super().__init__(model, device, None)
        self._settings = config.dpo

    def moved(self, examples: list[Tokens], documents: list[int]) -> dict[str, Any]:
        batch = super().moved(examples, documents)
        with torch.no_grad(), eval_mode(self.model.model):
            return {**batch, "reference": document_logprobs(self.model, batch)[0]}

    def _losses(self, batch: dict[str, Any]) -> torch.Tensor:
        rest = {name: each for name, each in batch.items() if name != "reference"}
        logprobs, lengths = document_logprobs(self.model, rest)
        return pair_losses(self._settings, logprobs, batch["reference"], lengths).losses

    def backward(self, batch: dict[str, Any]) -> None:
        self._losses(batch).mean().backward()

    def summed(self, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """Return the summed loss, and its number of pairs."""
        losses = self._losses(batch)
        return losses.sum(), len(losses)


def train(passes: Passes, batches: list[dict[str, Any]], rate: float, config: Config) -> None:
    """Take a step on each batch, as the trainer does: cosine schedule, warm-up, clipped gradients."""
    model, settings = passes.model, config.train
    optimizer = torch.optim.AdamW(model.trained, lr=rate, weight_decay=settings.weight_decay, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(settings.warmup_steps * len(batches)), len(batches))
    model.zero_grad()
    for batch in batches:
        passes.backward(batch)
        passes.clip(settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        model.zero_grad()


if __name__ == "__main__":
    main()
