"""What the quickstart's model knows with and without the small questions of `builtin:basics`, in one table.

    python bench/basics.py    # two trainings and evaluations a seed: minutes on a GPU, half an hour on a CPU

The first row trains what configs/quickstart.yaml has; the second its word problems alone. Columns are the share of
right answers on unseen word problems, on unseen sums of one step, and on what the first was shown; below them answers
to questions as people type them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from thinktune.config import Data, Sampling, load_config
from thinktune.evaluation.evaluate import evaluate_data
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.engines.base import Request
from thinktune.tags import parse
from thinktune.training.imports import import_train

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
VARIANTS = {"with basics": [], "without": ["data.source=builtin:arithmetic", "data.sample=1100"]}
SETS = {"word problems": ("builtin:arithmetic", "test"), "sums": ("builtin:basics", "test"),
        "by heart": ("builtin:basics", "train")}  # fmt: skip
TYPED = (
    "What is 7 times 8?", "7 x 8", "7*8=?", "What is 12 + 30?", "what is 9 minus 4", "What is 56 / 7?",
    "What's 25% of 80?", "What is 100 - 1?", "What is the capital of France?", "How many days are in a week?",
    "How many r's are in strawberry?", "Which is larger, 9.11 or 9.9?", "Hello", "Who are you?",
    "What color is the sky?", "What is the capital of Peru?",
     "How many legs does a horse have?", "Why is the sky blue?",
)  # fmt: skip


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--problems", type=int, default=500)
    cli.add_argument("--seeds", default="3407,1")
    cli.add_argument("--set", action="append", default=[], help="a setting of both, as SECTION.NAME=VALUE")
    args = cli.parse_args()
    print(f"{'':24}{'tokens':>9}{'seconds':>9}" + "".join(f"{name:>26}" for name in SETS), flush=True)
    with tempfile.TemporaryDirectory() as place:
        for seed in args.seeds.split(","):
            for name, overrides in VARIANTS.items():
                run = Path(place) / f"{name}-{seed}"
                chosen = [*overrides, f"output={run}", f"seed={seed}", "ask.questions=[]", *args.set]
                print(_row(f"{name}, seed {seed}", chosen, run, args.problems, int(seed)), flush=True)


def _row(name: str, overrides: list[str], run: Path, problems: int, seed: int) -> str:
    quiet, config = Console(quiet=True), load_config(CONFIG, overrides)
    record = import_train(config)(config, console=quiet, resume=False, overwrite=True)
    cells = []
    with open_engine(run, EngineSettings("transformers", config.load)) as opened:
        for label, (source, split) in SETS.items():
            data = Data(source=source, split=split, sample=problems, seed=seed)
            sampling = Sampling(max_tokens=160)
            scores = evaluate_data(opened, data, run / "eval" / label, sampling=sampling, seed=seed, console=quiet)
            cells.append(f"{scores.strict!s:>26}")
        answers = _answers(opened)
    return f"{name:24}{record['tokens']:9,}{record['train_seconds']:9.0f}" + "".join(cells) + "\n" + answers


def _answers(opened: Opened) -> str:
    requests = [
        Request(question, opened.chat.prompt_ids([{"role": "user", "content": question}]), Sampling(max_tokens=160))
        for question in TYPED
    ]
    found = {each.request_id: parse(each.text).answer for each in opened.engine.generate(requests)}
    return "\n".join(f"    {question:36}{found[question]}" for question in TYPED)


if __name__ == "__main__":
    main()
