"""Recipes beside each other: the same model and rows, other settings; what each learns, and what it costs.

    python bench/recipes.py --rows TRAIN.jsonl TEST.jsonl --seconds 300 --json recipes.json         # on a GPU
    python bench/recipes.py --steps 2 --sample 24 --tests 4 --tokens 8 --only guide,recommended     # on a CPU

Every row is one `thinktune train` of `--steps` optimizer steps of 16 rows (the guide's settings: four times as many, of
4 rows), then 200 problems that were not trained. Loss (nats) and token accuracy are of their worked solutions, by
transformers alone with the adapter merged; pass@1 is of sampled answers, with a 95% interval. `trained` is the accuracy
on tokens that were trained, at the end. Answers end where the longest row does. At last each recipe is held against
`recommended` on the same problems. A line is printed, and written to --json, as soon as it is known, the most telling
recipes first, and none is begun that would not end in time.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from torch.nn.utils.rnn import pad_sequence

from thinktune.config import Config, Data, Sampling, parse_config
from thinktune.data import Tokens
from thinktune.errors import ThinktuneError
from thinktune.evaluation.collect import collect
from thinktune.evaluation.evaluate import Summary, evaluate_data
from thinktune.evaluation.significance import compare, sentence
from thinktune.inference.engines import EngineSettings, Opened
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Loaded
from thinktune.training.adapter import adapter_to_ask
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.training.train import train

QUIET = Console(quiet=True)
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS_A_STEP = 16


@dataclass
class Field:
    """One kind of problems: where a recipe's rows and its test come from, and what is known of it so far.

    Attributes:
        middle: the median length of the rows, in tokens.
        longest: the most trained tokens of a row.
        tested: the problems of the test, as rows with their worked solutions.
        rate: the one that auto stands for.
        right: by recipe, the share of right answers to each problem.
    """

    name: str
    rows: str
    test: str
    folder: Path
    middle: int = 0
    longest: int = 0
    tested: list[Tokens] = field(default_factory=list)
    rate: float = math.nan
    right: dict[str, dict[Any, float]] = field(default_factory=dict)

    def run(self, recipe: str) -> Path:
        return self.folder / recipe.replace(" ", "-").replace("/", "-")

    def source(self, weight: float = 1, **limits: int) -> dict[str, Any]:
        return {"source": self.rows, "weight": weight, "filter": limits}

    def most_tokens(self, args: argparse.Namespace) -> int:
        """Return the most tokens of an answer: some more than any row has."""
        return min(args.tokens, self.longest + 16)

    def own(self, args: argparse.Namespace) -> str:
        """Draw answers with the recommended recipe's model, and return the file of the right ones."""
        out = self.folder / "own.jsonl"
        if not out.exists():
            problems = Data(source=self.rows, sample=args.problems, split="train")
            changes = {"n": 4, "temperature": 0.7, "max_tokens": self.most_tokens(args)}
            made = collect(str(self.run("recommended")), problems, out, EngineSettings("transformers"), changes=changes,
                           console=QUIET)  # fmt: skip
            print(f"{'':30}{self.name}: {'; '.join(made.remarks())}", flush=True)
        return str(out)


Recipe = Callable[[Field, argparse.Namespace], dict[str, Any]]


def guide(_: Field, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "targets": NAMES},
        "train": {
            **{"batch_size": 1, "accumulation": 4, "max_steps": args.steps * ROWS_A_STEP // 4, "learning_rate": 1e-4},
            **{"scheduler": "linear", "warmup_steps": 3, "weight_decay": 0.01, "max_grad_norm": 0.5},
        },
    }


def few(parts: int) -> Recipe:
    return lambda _, args: {"data": {"sample": max(1, args.sample // parts)}}


def by_length(*weights: float) -> Recipe:
    """Half as many rows: short ones with the first weight, long ones with the second."""

    def recipe(of: Field, args: argparse.Namespace) -> dict[str, Any]:
        halves = ({"max_tokens": of.middle}, {"min_tokens": of.middle + 1})
        sources = [of.source(weight, **half) for weight, half in zip(weights, halves, strict=True) if weight]
        return {"data": {"source": sources, "sample": args.sample * 2 // 5}}

    return recipe


RECIPES: dict[str, Recipe] = {
    "recommended": lambda *_: {},
    "guide": guide,
    "rate x 4": lambda of, _: {"train": {"learning_rate": 4 * of.rate}},
    "few rows often": few(4),
    "short only": by_length(1, 0),
    "long only": by_length(0, 1),
    "4 short : 1 long": by_length(4, 1),
    "own right answers": lambda of, args: {"data": {"source": of.own(args), "sample": None}},
    "rank 8": lambda *_: {"lora": {"r": 8}},
    "rank 128": lambda *_: {"lora": {"r": 128}},
    "rows and own": lambda of, args: {"data": {"source": [of.source(), {"source": of.own(args)}], "sample": None}},
    "rate 1e-4": lambda *_: {"train": {"learning_rate": 1e-4}},
    "fewer rows oftener": few(16),
}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--rows", nargs=2, metavar=("TRAIN", "TEST"), help="rows beside builtin:arithmetic")
    cli.add_argument("--model", default="builtin:smollm2")
    cli.add_argument("--only", default=",".join(RECIPES), help="recipes, `recommended` first")
    cli.add_argument("--steps", type=int, default=160)
    cli.add_argument("--sample", type=int, default=1900, help="rows to train on")
    cli.add_argument("--tests", type=int, default=200)
    cli.add_argument("--n", type=int, default=2, help="answers a test problem")
    cli.add_argument("--problems", type=int, default=400, help="to draw own answers from")
    cli.add_argument("--tokens", type=int, default=280, help="most of an answer, if no row is shorter")
    cli.add_argument("--seeds", type=int, default=1)
    cli.add_argument("--seconds", type=float, default=math.inf)
    cli.add_argument("--json", type=Path, help="writes every line")
    args = cli.parse_args()
    began, took, lines = time.monotonic(), [0.0], list[dict[str, Any]]()
    cache = BaseModelCache()
    print(f"{'':30}{'rate':>9}{'steps':>7}{'epochs':>8}{'loss':>8}{'tokens':>8}{'trained':>9}{'pass@1':>26}"
          f"{'formed':>8}{'train s':>9}{'all s':>7}", flush=True)  # fmt: skip
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as place:
            fields = [Field("built-in", "builtin:arithmetic", "builtin:arithmetic", Path(place) / "built-in")]
            if args.rows:
                fields.append(Field("rows", *args.rows, Path(place) / "rows"))
            for of in fields:
                before(of, args, cache)
            for recipe in args.only.split(","):
                for of in fields:
                    start = time.monotonic()
                    if start - began + max(took[-4:]) > args.seconds:
                        print(f"{of.name}, {recipe}: no time left", flush=True)
                        continue
                    lines.append(show(of, recipe, args, cache, seed))
                    took.append(time.monotonic() - start)
                    if args.json is not None:
                        args.json.write_text(json.dumps(lines, indent=1))
            for of in fields:
                against_recommended(of)
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def before(of: Field, args: argparse.Namespace, cache: BaseModelCache) -> None:
    """Look at the lengths of the rows, and show the base model."""
    prepared = cache.take(config_for(of, "base", args, 0, {}))[1]
    lengths = sorted(map(len, prepared.train))
    of.middle, of.longest = lengths[len(lengths) // 2], max(row.trained for row in prepared.train)
    loaded, tested = cache.take(test_config(of, args))
    of.tested = tested.train
    loss, right = on_solutions(loaded.model, of.tested)
    told = f"rows of {lengths[0]} to {lengths[-1]} tokens, median {of.middle}"
    print(f"{of.name + ', base':30}{'':24}{loss:>8.4f}{right:>8.1%}   {told}", flush=True)


def show(of: Field, recipe: str, args: argparse.Namespace, cache: BaseModelCache, seed: int) -> dict[str, Any]:
    """Train one recipe, print its line and return it; what stops it is its line, too."""
    began = time.monotonic()
    try:
        config = config_for(of, recipe, args, seed, RECIPES[recipe](of, args))
        record = train(config, console=QUIET, overwrite=True, bench=cache)
        if recipe == "recommended":
            of.rate = record["learning_rate"]
        trained = time.monotonic() - began
        loaded = cache.take_model(config)
        with adapter_to_ask(loaded, config.run_folder / "adapter") as model:
            loss, right = on_solutions(model, of.tested)
            summary = ask(model, loaded, of, recipe, args)
    except ThinktuneError as error:
        print(f"{of.name + ', ' + recipe:30}{error}", flush=True)
        return {"field": of.name, "recipe": recipe, "seed": seed, "error": str(error)}
    accuracy, seconds = record.get("final_token_accuracy"), time.monotonic() - began
    print(
        f"{of.name + ', ' + recipe:30}{record['learning_rate']:>9.1e}{record['steps']:>7}{record['epochs']:>8.1f}"
        f"{loss:>8.4f}{right:>8.1%}{'-' if accuracy is None else f'{accuracy:.1%}':>9}{summary.strict!s:>26}"
        f"{summary.format.value:>8.1%}{trained:>9.1f}{seconds:>7.1f}",
        flush=True,
    )
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {
        **{"field": of.name, "recipe": recipe, "seed": seed, "rate": record["learning_rate"], "steps": record["steps"]},
        **{"epochs": record["epochs"], "loss": loss, "token_accuracy": right, "trained_accuracy": accuracy},
        **{"scores": summary.as_dict(), "right": list(of.right[recipe].values()), "train_seconds": trained},
        "seconds": seconds,
    }


def config_for(of: Field, recipe: str, args: argparse.Namespace, seed: int, changes: dict[str, Any]) -> Config:
    values: dict[str, Any] = {
        "model": args.model,
        "output": str(of.run(recipe)),
        "data": {"source": of.rows, "sample": args.sample, "system": "", "max_length": 512},
        "lora": {"r": 32, "alpha": 32, "targets": "auto"},
        "train": {
            **{"packing": False, "batch_size": ROWS_A_STEP, "max_steps": args.steps, "learning_rate": "auto"},
            **{"warmup_steps": 0.05, "save_every": 10**6, "seed": seed},
        },
        "ask": {"questions": []},
        "eval": {"every": None},
    }
    for section, fields in changes.items():
        values[section] = {**values[section], **fields}
    return parse_config(values)


def test_config(of: Field, args: argparse.Namespace) -> Config:
    """The problems of the test, as rows with their worked solutions."""
    data = {"source": of.test, "sample": args.tests, "split": "test"}
    return config_for(of, "test", args, 0, {"data": data})


@torch.no_grad()
def on_solutions(model: Any, documents: list[Tokens]) -> tuple[float, float]:
    """Return mean loss and accuracy of the trained tokens, by the model as it is."""
    total, right, count = 0.0, 0, 0
    for first in range(0, len(documents), 16):
        rows = documents[first : first + 16]
        ids = pad_sequence([torch.tensor(row.input_ids) for row in rows], batch_first=True)
        labels = pad_sequence([torch.tensor(row.labels) for row in rows], batch_first=True, padding_value=-100)
        there = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True).long()
        inputs = {"input_ids": ids.to(model.device), "attention_mask": there.to(model.device)}
        logits, wanted = model(**inputs, use_cache=False).logits, labels[:, 1:].to(model.device)
        picked, targets = logits[:, :-1][wanted != -100].float(), wanted[wanted != -100]
        total += float(torch.nn.functional.cross_entropy(picked, targets, reduction="sum"))
        right += int((picked.argmax(-1) == targets).sum())
        count += len(targets)
    return total / count, right / count


def ask(model: Any, loaded: Loaded, of: Field, recipe: str, args: argparse.Namespace) -> Summary:
    """Answer the test's problems, and note how each was answered."""
    most = args.tests * args.n
    engine = TransformersEngine(model, loaded.tokenizer, loaded.chat.stop_ids, max_rows=most)
    data, out = Data(source=of.test, split="test", sample=args.tests), of.run(recipe) / "test"
    sampling = Sampling(n=args.n, temperature=0.7, max_tokens=of.most_tokens(args))
    with Opened(engine, loaded.chat, fingerprint=recipe, tuned=True) as opened:
        summary = evaluate_data(opened, data, out, sampling=sampling, overwrite=True, console=QUIET)
    right: dict[Any, list[bool]] = {}
    for line in map(json.loads, (out / "samples.jsonl").read_text().splitlines()):
        right.setdefault((line["source"], line["row"]), []).append(bool(line["correct"]))
    of.right[recipe] = {problem: fmean(each) for problem, each in right.items()}
    return summary


def against_recommended(of: Field) -> None:
    for recipe, rates in of.right.items():
        if recipe != "recommended" and "recommended" in of.right:
            print(f"{of.name}: {sentence(compare(of.right['recommended'], rates), 'recommended', recipe)}", flush=True)


if __name__ == "__main__":
    main()
