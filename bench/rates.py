"""How far `train.learning_rate: auto` is from the best rate: rates x ranks x rows a step x data, in one process.

    python bench/rates.py --rows TRAIN.jsonl                                              # on one GPU, within --seconds
    python bench/rates.py --ranks 4 --batches 2 --steps 2 --sample 60 --seeds 1           # on a CPU

The model is loaded once. For each combination and seed, the adapter begins from the same weights and sees the same rows
in the same order at each rate, for the same number of steps, with the schedule and the passes of `thinktune train`. The
loss is of examples that were not trained, in nats a trained token, averaged over the seeds; `best` is the lowest of all
rates, auto's among them, and `valley` the rate where a parabola through it and its neighbours has its minimum. Seed by
seed, a line is printed as soon as it is known; no combination is begun that would not end in time.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup, set_seed

from thinktune.config import Config, parse_config
from thinktune.data import Prepared, Tokens, prepare
from thinktune.models import Loaded, load_model
from thinktune.models.untouched import eval_mode
from thinktune.notices import show_notices
from thinktune.planner.pack_lengths import measure_packs
from thinktune.training.adapter import adapter_to_train
from thinktune.training.collator import PackedCollator
from thinktune.training.compiled_kernels import compile_kernels
from thinktune.training.graphed_passes import GraphedPasses
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.plan import resolve_plan
from thinktune.training.prepare_model import set_up

WITHIN = 0.01
"""A loss this near to the best counts as equal to it."""


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", action="append", default=[], help="a data source beside builtin:arithmetic")
    cli.add_argument("--model", default="builtin:smollm2")
    cli.add_argument("--ranks", default="8,64")
    cli.add_argument("--batches", default="4,16,64", help="rows a step")
    cli.add_argument("--factors", default="0.5,1,2,4,8", help="rates, as parts of auto's")
    cli.add_argument("--steps", type=int, default=80)
    cli.add_argument("--sample", type=int, default=2400, help="rows of each data source")
    cli.add_argument("--seeds", type=int, default=3)
    cli.add_argument("--seconds", type=float, default=math.inf, help="of all, for seeds after the first")
    cli.add_argument("--json", type=Path, help="writes every loss")
    args = cli.parse_args()
    show_notices()
    began = time.monotonic()
    factors = [float(factor) for factor in args.factors.split(",")]
    if 1 not in factors:
        cli.error("--factors needs 1, which is auto")
    sources = ["builtin:arithmetic", *args.rows]
    grid = [(source, rank, batch) for rank, batch, source in
            itertools.product(numbers(args.ranks), numbers(args.batches), sources)]  # fmt: skip
    base = config_for(args, sources[0], 8, 1)
    loaded = load_model(base.model, load=base.load)
    data = {source: prepare(config_for(args, source, 8, 1), loaded.chat) for source in sources}
    found = {each: Combination(*each, factors) for each in grid}
    print(f"{len(grid)} combinations x {len(factors)} rates, {args.steps} steps each, on {loaded.device.type}; "
          f"loaded in {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    print(heading(factors), flush=True)
    longest = 0.0
    for seed in range(args.seeds):
        for source, rank, batch in grid:
            if seed and time.monotonic() - began + longest > args.seconds:
                continue
            start = time.monotonic()
            combination = found[source, rank, batch]
            sweep(combination, config_for(args, source, rank, batch), loaded, data[source], args.steps, seed)
            longest = max(longest, time.monotonic() - start)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            print(f"{combination.line(-1)}   seed {seed}, {time.monotonic() - start:.1f} s", flush=True)
            if args.json is not None:
                args.json.write_text(json.dumps([vars(each) for each in found.values() if each.losses], indent=1))
    seeds = sorted({len(each.losses) for each in found.values()})
    print(f"\nmeans of {' or '.join(map(str, seeds))} seeds\n{heading(factors)}")
    for combination in found.values():
        print(combination.line())
    near = sum(each.excess() <= WITHIN for each in found.values())
    print(f"auto within {WITHIN:.0%} of the best in {near} of {len(found)}; {time.monotonic() - began:.0f} s")


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def config_for(args: argparse.Namespace, source: str, rank: int, batch: int) -> Config:
    return parse_config(
        {
            "model": args.model,
            "data": {"source": source, "sample": args.sample, "system": "", "max_length": 512, "eval_fraction": 0.08},
            "lora": {"r": rank, "alpha": 32, "targets": "auto"},
            "train": {"packing": False, "batch_size": batch, "learning_rate": "auto"},
        }
    )


@dataclass
class Combination:
    """A rank and a number of rows a step on one data source; `losses`: of each seed, one a rate."""

    source: str
    rank: int
    batch: int
    factors: list[float]
    auto: float = math.nan
    losses: list[list[float]] = field(default_factory=list)

    def line(self, seed: int | None = None) -> str:
        """Show the losses of a seed; None: their means."""
        losses = self.means() if seed is None else self.losses[seed]
        shown = "".join(f"{loss:>9.4f}" for loss in losses)
        best = self.auto * self.factors[losses.index(min(losses))]
        name = f"sft {Path(self.source).stem[:20]:21}{self.rank:>5}{self.batch:>6}"
        valley = f"{self.auto * self.valley(losses):.1e}"
        return f"{name}{self.auto:>9.1e}{shown}{best:>9.1e}{valley:>9}{self.excess(losses):>8.2%}"

    def means(self) -> list[float]:
        return [fmean(losses) for losses in zip(*self.losses, strict=True)]

    def excess(self, losses: list[float] | None = None) -> float:
        """Return the loss of auto above the best, as a part of that."""
        losses = losses or self.means()
        return losses[self.factors.index(1)] / min(losses) - 1

    def valley(self, losses: list[float]) -> float:
        """Return the factor at the minimum of a parabola through the best rate and its neighbours, in the logarithm of
        the rate; at an end of the rates, that end."""
        at = losses.index(min(losses))
        if at in (0, len(losses) - 1):
            return self.factors[at]
        (x0, x1, x2), (y0, y1, y2) = (map(math.log, self.factors[at - 1 : at + 2]), losses[at - 1 : at + 2])
        bend = (y2 - y1) / (x2 - x1) - (y1 - y0) / (x1 - x0)
        if not 0 < bend < math.inf:
            return self.factors[at]
        slope = (y1 - y0) / (x1 - x0)
        return math.exp((x0 + x1) / 2 - slope * (x2 - x0) / 2 / bend)


def heading(factors: list[float]) -> str:
    columns = "".join(f"{f'x {factor:g}':>9}" for factor in factors)
    return f"{'':25}{'rank':>5}{'rows':>6}{'auto':>9}{columns}{'best':>9}{'valley':>9}{'above':>8}"


def sweep(combination: Combination, config: Config, loaded: Loaded, data: Prepared, steps: int, seed: int) -> None:
    """Train the combination at each of its rates, from one adapter and through one set of CUDA graphs."""
    examples = data.train
    packs = measure_packs(examples, [[index] for index in range(len(examples))])
    set_seed(seed)
    with ExitStack() as stack:
        model = stack.enter_context(adapter_to_train(loaded, config))
        with_loss = ModelWithLoss(model)
        plan = resolve_plan(model, config, loaded, packs)
        stack.enter_context(set_up(model, loaded, plan))
        if plan.fused:
            compile_kernels(with_loss, sorted(examples, key=len)[-combination.batch :])
        model.train()
        start = [parameter.detach().clone() for parameter in with_loss.trained]
        passes = Passes(with_loss, GraphedPasses(with_loss, loaded.device) if plan.graphed else None, loaded.device)
        collate = PackedCollator(examples)
        drawn = batches_of(len(examples), combination.batch, steps, seed)
        batches = [passes.moved(collate([{"documents": documents}])) for documents in drawn]
        combination.auto = plan.rate.value
        losses = []
        for factor in combination.factors:
            with torch.no_grad():
                for parameter, first in zip(with_loss.trained, start, strict=True):
                    parameter.copy_(first)
            train(passes, batches, plan.rate.value * factor, config)
            losses.append(passes.loss_of(data.held_out))
    combination.losses.append(losses)


def batches_of(count: int, batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the examples of each step: all of them, in an order of the seed, again and again."""
    draw, left = Random(seed), list[int]()
    for _ in range(steps):
        while len(left) < batch:
            left += draw.sample(range(count), count)
        yield left[:batch]
        del left[:batch]


@dataclass
class Passes:
    """Forward and backward passes, from CUDA graphs where there are some."""

    model: ModelWithLoss
    graphs: GraphedPasses | None
    device: torch.device

    def moved(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch on the device, with the number that its summed loss is divided by."""
        there = {name: each.to(self.device) if torch.is_tensor(each) else each for name, each in batch.items()}
        return {**there, "divisor": torch.tensor(batch["targets"].numel(), device=self.device)}

    def backward(self, batch: dict[str, Any]) -> None:
        divisor, inputs = batch["divisor"], {name: each for name, each in batch.items() if name != "divisor"}
        plainly = {"weights": None, "dropout_seed": torch.zeros(1, dtype=torch.int32, device=self.device)}
        if self.graphs is None or self.graphs.backward({**inputs, **plainly}, divisor=divisor) is None:
            (self.model(**inputs) / divisor).backward()

    def clip(self, most: float) -> None:
        if (gradients := self.model.gradients) is None:
            torch.nn.utils.clip_grad_norm_(self.model.trained, most)
        else:
            gradients.mul_((most / (torch.linalg.vector_norm(gradients) + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def loss_of(self, documents: list[Tokens]) -> float:
        """Return the mean loss a trained token; infinite where it is no number."""
        collate, total, tokens = PackedCollator(documents), torch.zeros((), device=self.device), 0
        for first in range(0, len(documents), 32):
            at_once = range(first, min(first + 32, len(documents)))
            batch = self.moved(collate([{"documents": list(at_once)}]))
            tokens += int(batch.pop("divisor"))
            with eval_mode(self.model.peft_model):
                total += self.model(**batch)
        loss = float(total) / tokens
        return loss if math.isfinite(loss) else math.inf


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
