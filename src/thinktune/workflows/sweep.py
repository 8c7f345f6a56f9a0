"""`thinktune sweep CONFIG lora.r=4,8,16 train.seed=1,2,3`: a grid of trainings on one base model in memory.

Each member has a run folder of its own below the config's. A member that is whole and unchanged is skipped, one that
was stopped goes on, and one that fails does not keep the others from being trained.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from thinktune.config import Config
from thinktune.config.grid import Member, plan_grid
from thinktune.errors import DiskFull, Interrupted, ThinktuneError
from thinktune.inference.engines import EngineSettings, open_engine
from thinktune.inference.engines.base import Engine
from thinktune.report.html import write_report
from thinktune.run_folder import RunFolder
from thinktune.training.adapter import adapter_to_ask
from thinktune.training.base_model_cache import BaseModelCache, data_key, model_key
from thinktune.workflows.run import evaluate_model


@dataclass(frozen=True)
class Swept:
    """The outcome of a sweep: the run folders that are whole, and the errors of the others by name."""

    folder: Path
    runs: list[Path]
    failures: dict[str, str]

    def require_whole(self) -> None:
        """Make sure that no member failed.

        Raises:
            ThinktuneError: some did.
        """
        if self.failures:
            lines = "\n".join(f"  {name}: {problem}" for name, problem in self.failures.items())
            count = len(self.failures) + len(self.runs)
            raise ThinktuneError(
                f"{len(self.failures)} of {count} members failed:\n{lines}",
                hint="the same command tries them again, and skips those that are done",
            )


def sweep(
    file: str | Path,
    overrides: Sequence[str],
    *,
    console: Console,
    overwrite: bool = False,
    bench: BaseModelCache | None = None,
) -> Swept:
    """Train and evaluate every combination of the values in `overrides`, below the run folder of `file`.

    Args:
        overrides: `key=value`, or `key=value,value,…` to sweep over; commas inside brackets and quotes do not split.
        overwrite: train members anew that are there.
        bench: holds base model and data; None: a new one.

    Raises:
        ConfigError: any member's config is wrong; nothing has been trained then.
        Interrupted: Ctrl-C or SIGTERM; all work so far is saved.
        DiskFull: going on would be of no use.
    """
    members = plan_sweep(file, overrides)
    root = members[0].config.run_folder.parent
    bench = bench or BaseModelCache()
    failures: dict[str, str] = {}
    runs: list[Path] = []
    console.print(f"{len(members)} trainings below {root}", highlight=False)
    for number, member in enumerate(members, start=1):
        console.rule(f"[bold]{number} of {len(members)}: {member.name}", align="left")
        try:
            train_member(member.config, bench, console, overwrite=overwrite)
            if member.config.eval.data is not None:
                evaluate_member(member.config, bench, console, runs)
            runs.append(member.config.run_folder)
            write_report(member.config.run_folder)
        except Interrupted as stopped:
            raise Interrupted(
                f"{member.name}: {stopped.message}", hint="give the same command again: it goes on where it stopped"
            ) from None
        except DiskFull:
            raise
        except Exception as error:  # noqa: BLE001 - whatever one member dies of, the others can still be trained
            failures[member.name] = in_a_line(error)
            console.print(f"[bold red]failed[/]: {failures[member.name]}", highlight=False)
        _free_memory()
    return Swept(root, runs, failures)


def plan_sweep(file: str | Path, overrides: Sequence[str]) -> list[Member]:
    """Make a member of every combination, its config checked; those that share base model and data in a row.

    Raises:
        ConfigError: see `plan_grid`.
    """
    members = plan_grid(file, overrides)
    return sorted(members, key=_order_of_first_use([(model_key(m.config), data_key(m.config)) for m in members]))


def _order_of_first_use(keys: list[tuple[object, object]]) -> Callable[[Member], tuple[int, int]]:
    """Make a sort key that brings members with the same model, and then the same data, together."""
    models = [model for model, _ in keys]

    def order(member: Member) -> tuple[int, int]:
        model, data = model_key(member.config), data_key(member.config)
        return models.index(model), keys.index((model, data))

    return order


def train_member(config: Config, bench: BaseModelCache, console: Console, *, overwrite: bool = False) -> None:
    """Train a member, from its newest checkpoint if it has one; nothing is done where it is trained."""
    from thinktune.training.train import train

    folder = RunFolder(config.run_folder)
    if folder.is_trained and not overwrite:
        folder.require_same_config(config)
        console.print(f"{folder.path} is trained", style="dim", highlight=False)
        return
    train(config, console=console, resume=folder.exists and not overwrite, overwrite=overwrite, bench=bench)


def evaluate_member(config: Config, bench: BaseModelCache, console: Console, before: Sequence[Path]) -> None:
    """Score base and tuned model on `eval.data`, with the base model in memory. Answers in the journals are kept.

    Args:
        before: run folders in which the base model has been scored.
    """
    folder = RunFolder(config.run_folder)
    if config.eval.base:
        _take_over_journal(folder.eval / "base", [run / "eval" / "base" for run in before])
        score(config, "base", bench, console)
    score(config, "tuned", bench, console)


def score(config: Config, name: Literal["base", "tuned"], bench: BaseModelCache, console: Console) -> None:
    """Score one of the two, into `eval/NAME` of the run folder."""
    folder = RunFolder(config.run_folder)
    adapter = folder.adapter if name == "tuned" and config.lora is not None else None
    whole = folder.merged if name == "tuned" and config.lora is None else None
    if config.lora is None:
        bench.forget_model()  # it is in float32, or the tuned one
    with ExitStack() as stack:
        # With quantize, the scores are those of the unquantised model, which has to be loaded.
        in_memory = config.quantize == "none" and config.lora is not None
        start = partial(_start, config, bench, console, adapter, stack) if in_memory else None
        opened = open_engine(adapter or whole or config.model, EngineSettings(load=config.load), start=start)
        summary = evaluate_model(config, name, console, stack.enter_context(opened))
    console.print(f"{name}: well-formed {summary.format}, right {summary.strict}", highlight=False)


def _start(config: Config, bench: BaseModelCache, console: Console, adapter: Path | None, stack: ExitStack) -> Engine:
    from thinktune.inference.engines.hf.engine import TransformersEngine

    loaded = bench.take_model(config)
    model = stack.enter_context(adapter_to_ask(loaded, adapter)) if adapter else loaded.model
    return TransformersEngine(model, loaded.tokenizer, loaded.chat.stop_ids, max_batch_tokens=config.infer.batch_tokens)


def _take_over_journal(place: Path, others: Sequence[Path]) -> None:
    """Begin with the answers that the base model gave for another member; those to other questions are not used."""
    journals = [other / "journal.jsonl" for other in others if (other / "journal.jsonl").exists()]
    if journals and not (place / "journal.jsonl").exists():
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(journals[-1], place / "journal.jsonl")


def in_a_line(error: Exception) -> str:
    if isinstance(error, ThinktuneError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _free_memory() -> None:
    """Collect a trainer and its optimizer, which lie in cycles, so that the next member has their memory."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
