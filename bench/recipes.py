"""Recipes beside each other: the same model, other rows and settings; what each learns, and what it costs.

    python bench/recipes.py --rows TRAIN.jsonl TEST.jsonl --seconds 200 --json recipes.json     # on a GPU
    python bench/recipes.py --steps 2 --sample 40 --tests 4 --tokens 8 --problems 4             # on a CPU

`rate` and `rows` are of a step. Every recipe takes as many optimizer steps, with the schedule and the passes of
`thinktune train`; recipes of one rank share the set-up of the model. Loss (nats) and token accuracy are of the worked
solutions of 200 problems that were not trained; pass@1 is of sampled answers to them, with a 95% interval (of
builtin:arithmetic only: of the other rows the built-in model solves one in a hundred). Short rows are those up to the
median length, and all three recipes by length have as many rows. At last each recipe is held against `auto` on the same
problems.

A line is printed, and written to --json, as soon as it is known, the most telling recipes first; none is begun that
would not end in time.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from transformers import set_seed

from rates import AT_ONCE, Passes, batches_of, train
from thinktune import tags
from thinktune.config import Config, Data, Sampling, parse_config
from thinktune.data import Tokens, prepare
from thinktune.evaluation.evaluate import Summary, evaluate_data
from thinktune.evaluation.significance import compare, sentence
from thinktune.inference.engines import Opened
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Loaded
from thinktune.models.untouched import eval_mode
from thinktune.notices import show_notices
from thinktune.planner.pack_lengths import measure_packs
from thinktune.training.adapter import adapter_to_train
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.training.compiled_kernels import compile_kernels
from thinktune.training.graphed_passes import GraphedPasses
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.plan import resolve_plan
from thinktune.training.prepare_model import set_up

QUIET = Console(quiet=True)
RANK, ROWS_A_STEP = 32, 16


@dataclass
class Field:
    """One kind of problems: the rows to train on, those of the test, and what is known of it so far.

    Attributes:
        rows: to train on, in the order of a seed.
        tested: the problems of the test, with their worked solutions.
        asked: whether answers are sampled.
        right: by recipe, the share of right answers to each problem.
    """

    name: str
    source: str
    test: str
    asked: bool
    rows: list[Tokens] = field(default_factory=list)
    tested: list[Tokens] = field(default_factory=list)
    right: dict[str, dict[Any, float]] = field(default_factory=dict)

    def by_length(self, short: float) -> list[int]:
        """Choose two rows of five, that part of them up to the median length."""
        order = sorted(range(len(self.rows)), key=lambda index: len(self.rows[index]))
        count, half = len(order) * 2 // 5, set(order[: len(order) // 2])
        of_short = round(short * count)
        halves = [[index for index in range(len(order)) if (index in half) is is_short] for is_short in (True, False)]
        return halves[0][:of_short] + halves[1][: count - of_short]


@dataclass(frozen=True)
class Recipe:
    """Settings of one training.

    Attributes:
        choose: rows to train on, by their indexes; None: all.
        rate: a learning rate; None: auto's times `factor`.
        own: rows are right answers of the model that `auto` has trained; with `choose`, beside those.
    """

    choose: Callable[[Field], list[int]] | None = None
    factor: float = 1
    rate: float | None = None
    rows: int = ROWS_A_STEP
    rank: int = RANK
    own: bool = False


def first(parts: int) -> Callable[[Field], list[int]]:
    return lambda of: list(range(max(1, len(of.rows) // parts)))


RECIPES = {
    "auto": Recipe(),
    "own right answers": Recipe(own=True),
    "auto / 4": Recipe(factor=1 / 4),
    "auto x 2": Recipe(factor=2),
    "few rows often (1/4)": Recipe(first(4)),
    "fewer rows oftener (1/16)": Recipe(first(16)),
    "short only": Recipe(lambda of: of.by_length(1)),
    "long only": Recipe(lambda of: of.by_length(0)),
    "4 short : 1 long": Recipe(lambda of: of.by_length(0.8)),
    "rows and own": Recipe(first(1), own=True),
    "1e-4": Recipe(rate=1e-4),
    "rank 8": Recipe(rank=8),
    "rank 128": Recipe(rank=128),
}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", nargs=2, metavar=("TRAIN", "TEST"), help="rows beside builtin:arithmetic")
    cli.add_argument("--model", default="builtin:smollm2")
    cli.add_argument("--only", default=",".join(RECIPES), help="recipes; `auto` comes first")
    cli.add_argument("--steps", type=int, default=160)
    cli.add_argument("--sample", type=int, default=1900, help="rows to train on")
    cli.add_argument("--tests", type=int, default=200)
    cli.add_argument("--n", type=int, default=2, help="answers a test problem")
    cli.add_argument("--problems", type=int, default=400, help="to draw own answers from, four each")
    cli.add_argument("--tokens", type=int, default=140, help="most of an answer")
    cli.add_argument("--seeds", type=int, default=1)
    cli.add_argument("--seconds", type=float, default=math.inf)
    cli.add_argument("--json", type=Path, help="writes every line")
    args = cli.parse_args()
    show_notices()
    compare_recipes(args)


def compare_recipes(args: argparse.Namespace) -> None:
    began, lines = time.monotonic(), list[dict[str, Any]]()
    fields = [Field("rows", args.rows[0], args.rows[1], asked=False)] if args.rows else []
    fields.append(Field("built-in", "builtin:arithmetic", "builtin:arithmetic", asked=True))
    loaded = BaseModelCache().take_model(config_for(args, fields[0], RANK))
    for of in fields:
        of.rows = prepare(config_for(args, of, RANK), loaded.chat).train
        tests = {"source": of.test, "sample": args.tests, "split": "test"}
        of.tested = prepare(config_for(args, of, RANK, **tests), loaded.chat).train
    print(f"{args.steps} steps each, on {loaded.device.type}; ready in {time.monotonic() - began:.0f} s\n"
          f"{'':37}{'rate':>8}{'rows':>6}{'epochs':>8}{'loss':>8}{'tokens':>8}{'pass@1':>26}{'formed':>8}"
          f"{'train s':>9}{'all s':>7}", flush=True)  # fmt: skip
    wanted = {name: RECIPES[name] for name in args.only.split(",")}
    took = {of.name: 0.0 for of in fields}
    for seed in range(args.seeds):
        for rank in sorted({each.rank for each in wanted.values()}, key=lambda rank: rank != RANK):
            for of in fields:
                with tempfile.TemporaryDirectory() as place, Trial.of(of, rank, loaded, args, Path(place)) as trial:
                    for name, recipe in wanted.items():
                        if recipe.rank != rank or (recipe.own and not of.asked):
                            continue
                        start = time.monotonic()
                        if start - began + took[of.name] > args.seconds:
                            print(f"{of.name}, {name}: no time left", flush=True)
                            continue
                        lines.append({"field": of.name, "recipe": name, **trial.run(name, recipe, seed)})
                        took[of.name] = time.monotonic() - start
                        if args.json is not None:
                            args.json.write_text(json.dumps(lines, indent=1))
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        for of in fields:
            against_auto(of)
    print(f"{time.monotonic() - began:.0f} s")


def config_for(args: argparse.Namespace, of: Field, rank: int, **data: Any) -> Config:
    source = {"source": of.source, "sample": args.sample, "system": "", "max_length": 512, "overlong": "drop"}
    return parse_config(
        {
            "model": args.model,
            "data": {**source, **data},
            "lora": {"r": rank, "alpha": 32, "targets": "auto"},
            "train": {"packing": False, "batch_size": ROWS_A_STEP, "learning_rate": "auto"},
        }
    )


@dataclass
class Trial:
    """A model set up for recipes of one rank: they share its first weights, its CUDA graphs and its engine.

    Attributes:
        start, by_auto: the adapter's weights before training, and after that of the recipe `auto`.
    """

    field: Field
    config: Config
    args: argparse.Namespace
    place: Path
    loaded: Loaded
    passes: Passes
    opened: Opened
    auto: float
    start: list[torch.Tensor]
    tested: list[dict[str, Any]]
    by_auto: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, of: Field, rank: int, loaded: Loaded, args: argparse.Namespace, place: Path) -> Iterator[Trial]:
        """Put an adapter on the model within the block, and show the loss without it."""
        config = config_for(args, of, rank)
        set_seed(0)
        with ExitStack() as stack:
            model = stack.enter_context(adapter_to_train(loaded, config))
            with_loss = ModelWithLoss(model)
            plan = resolve_plan(model, config, loaded, measure_packs(of.rows, [[at] for at in range(len(of.rows))]))
            stack.enter_context(set_up(model, loaded, plan))
            if plan.fused:
                compile_kernels(with_loss, sorted(of.rows, key=len)[-ROWS_A_STEP:])
            engine = TransformersEngine(
                model, loaded.tokenizer, loaded.chat.stop_ids, max_rows=max(args.tests * args.n, 4 * args.problems)
            )
            model.train()
            graphs = GraphedPasses(with_loss, loaded.device) if plan.graphed else None
            passes = Passes(with_loss, loaded.device, graphs)
            parts = [range(at, min(at + AT_ONCE, len(of.tested))) for at in range(0, len(of.tested), AT_ONCE)]
            tested = [passes.moved(of.tested, list(part)) for part in parts]
            start = [parameter.detach().clone() for parameter in with_loss.trained]
            opened = Opened(engine, loaded.chat, fingerprint="", tuned=True)
            trial = cls(of, config, args, place, loaded, passes, opened, plan.rate.value, start, tested)
            loss, right = trial.on_solutions()
            lengths = sorted(map(len, of.rows))
            print(f"{f'{of.name}, rank {rank}, untrained':37}{'':22}{loss:>8.4f}{right:>8.1%}   {len(lengths)} rows of "
                  f"{lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}"
                  + ", CUDA graphs" * plan.graphed, flush=True)  # fmt: skip
            yield trial

    def run(self, name: str, recipe: Recipe, seed: int) -> dict[str, Any]:
        """Train a recipe, print its line and return it."""
        began, args = time.monotonic(), self.args
        rows = self.own_rows() if recipe.own else []
        if not recipe.own or recipe.choose is not None:
            chosen = recipe.choose(self.field) if recipe.choose else range(len(self.field.rows))
            rows = [*(self.field.rows[index] for index in chosen), *rows]
        rate = recipe.rate or self.auto * recipe.factor
        drawn = batches_of([[index] for index in range(len(rows))], recipe.rows, args.steps, seed)
        batches = [self.passes.moved(rows, documents) for documents in drawn]
        self.take(self.start)
        start = time.monotonic()
        train(self.passes, batches, rate, self.config)
        loss, right = self.on_solutions()
        trained = time.monotonic() - start
        if name == "auto":
            self.by_auto = [parameter.detach().clone() for parameter in self.passes.model.trained]
        found: dict[str, Any] = {
            **{"seed": seed, "rank": self.config.lora and self.config.lora.r, "rate": rate, "rows": len(rows)},
            **{"epochs": args.steps * recipe.rows / len(rows), "loss": loss, "token_accuracy": right},
            **{"train_seconds": trained},
        }
        answered = f"{'-':>26}{'-':>8}"
        if self.field.asked:
            summary = self.ask(name, self.field.test, "test", args.tests, args.n)
            answered = f"{summary.strict!s:>26}{summary.format.value:>8.1%}"
            found["scores"] = summary.as_dict()
            self.field.right[name] = self.shares(name)
        print(f"{f'{self.field.name}, {name}':37}{rate:>8.1e}{recipe.rows:>6}{found['epochs']:>8.1f}{loss:>8.4f}"
              f"{right:>8.1%}{answered}{trained:>9.1f}{time.monotonic() - began:>7.1f}", flush=True)  # fmt: skip
        return found

    @torch.no_grad()
    def take(self, weights: list[torch.Tensor]) -> None:
        for parameter, other in zip(self.passes.model.trained, weights, strict=True):
            parameter.copy_(other)

    @torch.no_grad()
    def on_solutions(self) -> tuple[float, float]:
        """Return the mean loss and the accuracy of the tokens of the worked solutions."""
        total, right, count = 0.0, 0, 0
        with eval_mode(self.passes.model.model):
            for batch in self.tested:
                summed, tokens = self.passes.summed(batch)
                total, count = total + float(summed), count + tokens
                right += int(self.passes.model.right or 0)
        return total / count, right / count

    def ask(self, name: str, source: str, split: str, sample: int, n: int) -> Summary:
        """Let the model as it is answer problems; the answers are in `place`, under `name`."""
        data, sampling = Data(source=source, split=split, sample=sample), Sampling(n=n, temperature=0.7)
        sampling = sampling.model_copy(update={"max_tokens": self.args.tokens})
        return evaluate_data(
            self.opened, data, self.place / name.replace("/", "-"), sampling=sampling, overwrite=True, console=QUIET
        )

    def samples(self, name: str) -> list[dict[str, Any]]:
        file = self.place / name.replace("/", "-") / "samples.jsonl"
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def shares(self, name: str) -> dict[Any, float]:
        right: dict[Any, list[bool]] = {}
        for line in self.samples(name):
            right.setdefault((line["source"], line["row"]), []).append(bool(line["correct"]))
        return {problem: fmean(each) for problem, each in right.items()}

    def own_rows(self) -> list[Tokens]:
        """Return the right and well-formed answers of the model that `auto` trains, no two of the same words; without
        any, the rows."""
        file = self.place / "own.jsonl"
        if not file.exists():
            self.take(self.by_auto)
            self.ask("own", self.field.source, "train", self.args.problems, 4)
            kept = {}
            for line in self.samples("own"):
                parsed = tags.parse(line["completion"])
                if line["correct"] and parsed.well_formed:
                    words = " ".join(line["completion"].split())
                    turns = [{"role": "user", "content": line["prompt"]}]
                    turns.append({"role": "assistant", "content": line["completion"]})
                    kept[line["prompt"], words] = json.dumps({"messages": turns})
            file.write_text("\n".join(kept.values()), encoding="utf-8")
            solved = len({prompt for prompt, _ in kept})
            print(f"{'':37}{len(kept)} own right answers to {solved} of {self.args.problems} problems", flush=True)
        if not file.stat().st_size:
            return self.field.rows
        return prepare(config_for(self.args, self.field, RANK, source=str(file), sample=None), self.loaded.chat).train


def against_auto(of: Field) -> None:
    for recipe, rates in of.right.items():
        if recipe != "auto" and "auto" in of.right:
            print(f"{of.name}: {sentence(compare(of.right['auto'], rates), 'auto', recipe)}", flush=True)


if __name__ == "__main__":
    main()
