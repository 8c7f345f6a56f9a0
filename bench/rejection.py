"""What self-training gains: a model tuned on rows, then on its own right answers, round after round, then by rewards.

    python bench/rejection.py TRAIN.jsonl TEST.jsonl         # the built-in model, on a GPU
    python bench/rejection.py TRAIN.jsonl TEST.jsonl --anew --grpo-steps 0
    python bench/rejection.py builtin:arithmetic builtin:arithmetic --problems 8 --test-problems 4 --n 2 \
        --grpo-steps 1 --grpo-prompts 2        # on a CPU

Every round draws completions of training problems with the model of the round before, and trains that on the right
ones, as configs/quickstart-rft.yaml does; with --anew, it trains the base model on the rows and all that was collected
(Yuan et al. 2023, https://arxiv.org/abs/2308.01825). GRPO goes on from the last round, on the problems of all rows.
pass@1 and pass@n are of sampled answers to problems that were not trained, with 95% intervals, each model against the
one before on the same problems. A line is printed as soon as it is known.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from rich.console import Console

from thinktune.config import Config, Data, Sampling, parse_config
from thinktune.evaluation.collect import Choice, collect
from thinktune.evaluation.evaluate import evaluate_data
from thinktune.evaluation.significance import compare, sentence, wilson
from thinktune.inference.engines import EngineSettings, open_engine
from thinktune.training.train import train

CONFIG = {
    "data": {"system": "", "max_length": 512},
    "lora": {"r": 32, "alpha": 64, "targets": "auto"},
    "train": {"pack_length": 4096, "learning_rate": 1e-3, "warmup_steps": 0.05, "epochs": 3, "save_every": 10_000},
    "ask": {"questions": []},
    "eval": {"every": None},
}
OWN = {"pack_length": 2048, "learning_rate": 3e-4, "warmup_steps": 0.05, "epochs": 3, "save_every": 10_000}
"""Of a training on completions of the model itself, which are likely already."""
REWARDED = {"learning_rate": 3e-4, "scheduler": "constant_with_warmup", "warmup_steps": 3, "save_every": 10_000}
Rates = dict[str, dict[Any, float]]
"""By measure, the share of each problem."""


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("train")
    cli.add_argument("test")
    cli.add_argument("--model", default="builtin:smollm2")
    cli.add_argument("--rounds", type=int, default=2)
    cli.add_argument("--problems", type=int, default=1000, help="of each round")
    cli.add_argument("--test-problems", type=int, default=200)
    cli.add_argument("--n", type=int, default=8, help="completions a problem")
    cli.add_argument("--tokens", type=int, default=320, help="most of a completion")
    cli.add_argument("--temperature", type=float, default=0.7)
    cli.add_argument("--anew", action="store_true", help="train the base model in every round")
    cli.add_argument("--grpo-steps", type=int, default=40, help="0: no GRPO")
    cli.add_argument("--grpo-prompts", type=int, default=32, help="of a step, with twice --n completions each")
    cli.add_argument("--folder", type=Path, help="keeps runs and rows here")
    cli.add_argument("--set", action="append", default=[], help="a setting of the trainings, as SECTION.NAME=VALUE")
    args = cli.parse_args()
    print(
        f"{'':8}{'steps':>7}{'train s':>9}{'pass@1':>26}{f'pass@{args.n}':>26}{'formed':>8}{'tokens':>8}{'s':>7}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as place:
        folder = args.folder or Path(place)
        rates = {"base": score(args, args.model, folder, "base", "")}
        rows = [args.train]
        stages = ["sft", *(f"round {number + 1}" for number in range(args.rounds)), *["grpo"] * (args.grpo_steps > 0)]
        for number, name in enumerate(stages):
            before = str(folder / stages[max(0, number - 1)])
            if name.startswith("round"):
                rows.append(draw(args, folder, before, number))
            began = time.monotonic()
            settings = config(args, name, rows, before, folder / name)
            record = train(settings, console=Console(quiet=True), overwrite=True)
            trained = f"{record['steps']:>7}{time.monotonic() - began:>9.1f}"
            free()
            last = list(rates)[-1]
            rates[name] = score(args, str(folder / name), folder, name, trained)
            for measure, own in rates[name].items():
                told = sentence(compare(rates[last][measure], own), last, name)
                print(f"{'':8}{measure}: {told}", flush=True)
            if name == "grpo":
                tell_rewards(folder / name)


def config(args: argparse.Namespace, name: str, rows: list[str], before: str, output: Path) -> Config:
    """The settings of a training: on rows, on completions of the model before, or by their rewards."""
    values: dict[str, Any] = json.loads(json.dumps(CONFIG))
    values["data"]["source"] = [{"source": source} for source in rows]
    if name == "grpo":
        rl = {"prompts": args.grpo_prompts, "num_generations": 2 * args.n, "max_completion_length": args.tokens}
        train = {**REWARDED, "max_steps": args.grpo_steps}
        values |= {"method": "grpo", "lora": {"init": before}, "rl": {**rl, "epsilon_high": 0.28}, "train": train}
        values["data"]["source"] = args.train
    elif name != "sft" and not args.anew:
        values |= {"lora": {"init": before}, "train": dict(OWN)}
        values["data"]["source"] = rows[-1]
    for setting in args.set:
        path, _, value = setting.partition("=")
        section, key = path.split(".")
        values.setdefault(section, {})[key] = yaml.safe_load(value)
    return parse_config({**values, "model": args.model, "output": str(output)})


def tell_rewards(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    parts = [lines[len(lines) * at // 5 : len(lines) * (at + 1) // 5] for at in range(5)]
    told = ", ".join(f"{fmean(line['rl/accuracy'] for line in part):.3f}" for part in parts if part)
    seconds = fmean(line["rl/seconds_generating"] + line["rl/seconds_training"] for line in lines)
    print(f"{'':8}right of the completions drawn, by fifths of the steps: {told}; {seconds:.1f} s a step", flush=True)


def draw(args: argparse.Namespace, folder: Path, before: str, number: int) -> str:
    """Collect rows with the model of the round before, and return their file."""
    began, out = time.monotonic(), folder / f"rows{number}.jsonl"
    collected = collect(
        before,
        Data(source=args.train, sample=args.problems, split="train"),
        out,
        EngineSettings("transformers"),
        choice=Choice("distinct", 4),
        changes={"n": args.n, "temperature": args.temperature, "max_tokens": args.tokens},
        seed=number,  # other problems, if there are more
        overwrite=True,
        console=Console(quiet=True),
    )
    told = "; ".join(collected.remarks())
    print(f"{'':8}collected in {time.monotonic() - began:.1f} s: {told}", flush=True)
    free()
    return str(out)


def score(args: argparse.Namespace, model: str, folder: Path, name: str, trained: str) -> Rates:
    """Ask the test problems, and print a line."""
    began, out = time.monotonic(), folder / f"test-{name}"
    sampling = Sampling(n=args.n, temperature=args.temperature, max_tokens=args.tokens)
    data = Data(source=args.test, split="test", sample=args.test_problems)
    with open_engine(model, EngineSettings("transformers")) as opened:
        summary = evaluate_data(opened, data, out, sampling=sampling, overwrite=True, console=Console(quiet=True))
    free()
    right: dict[Any, list[bool]] = {}
    for line in map(json.loads, (out / "samples.jsonl").read_text().splitlines()):
        right.setdefault((line["source"], line["row"]), []).append(bool(line["correct"]))
    rates: Rates = {
        "pass@1": {problem: fmean(each) for problem, each in right.items()},
        f"pass@{args.n}": {problem: float(any(each)) for problem, each in right.items()},
    }
    shown = "".join(f"{wilson(sum(each.values()), len(each))!s:>26}" for each in rates.values())
    seconds = time.monotonic() - began
    print(
        f"{name:8}{trained:16}{shown}{summary.format.value:>8.1%}{summary.mean_tokens:>8.0f}{seconds:>7.1f}", flush=True
    )
    return rates


def free() -> None:
    """Give back the memory of the last model."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
