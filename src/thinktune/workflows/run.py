"""`thinktune run` and `thinktune quickstart`: data → train → merge → verify → infer → eval, one after the other.

Every step can be stopped and called again: training goes on from its newest checkpoint, inference and evaluation from
their journals, and whole results of the same inputs are not made again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from thinktune.config import Config, Data, load_config
from thinktune.config.shipped import shipped_configs
from thinktune.errors import Interrupted
from thinktune.evaluation.evaluate import Summary, comparison_table, evaluate_data
from thinktune.export.merge import merge
from thinktune.export.verify import verify
from thinktune.files import write_json
from thinktune.inference.batch import infer
from thinktune.inference.batch_file import read_batch_file
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.profiles import samplings
from thinktune.records import RunRecord, read_record
from thinktune.report.html import write_report
from thinktune.run_folder import RunFolder
from thinktune.training.imports import import_train
from thinktune.training.launch import launch_training


def quickstart_config(overrides: Sequence[str]) -> Config:
    """Read the shipped config of the built-in model and data, with `overrides`."""
    return load_config(next(file for file in shipped_configs() if file.name == "quickstart.yaml"), overrides)


def run(
    config: Config, *, console: Console, overwrite: bool = False, cluster: str | None = None, gpus: int = 1
) -> None:
    """Do every step that `config` has settings for, and print base against tuned on stdout.

    Args:
        overwrite: begin anew, throwing away the contents of the run folder.
        cluster: address of the Ray cluster that answers; None: this host.
        gpus: of this host, for the training.

    Raises:
        ThinktuneError: the error of a step.
    """
    as_merged = config.infer.merge or config.lora is None
    asked = {config.eval.sampling} if config.eval.data is not None else set()
    if config.infer.file is not None:  # a fault in it is better told now than after training
        items = read_batch_file(config.infer.file, samplings=samplings(config.infer, config.seed))
        asked |= {item.sampling for item in items if as_merged}
    folder = RunFolder(config.run_folder)
    steps = _Steps(folder.path / "steps.json", console, anew=overwrite)
    with steps("train"):
        _train(config, folder, console, overwrite, gpus)
    if config.lora is not None:
        with steps("merge"):
            merged = merge(folder.path, load=config.load)
            console.print(merged.summary(), highlight=False, markup=False)
    summaries: dict[str, Summary] = {}
    # One engine for all that is asked of the tuned model; it starts at the first question.
    settings = EngineSettings.of(config.infer.model_copy(update={"merge": True}), config.load, cluster=cluster)
    with open_engine(folder.path, settings) as tuned:
        for sampling in asked:  # so that "auto" chooses an engine for all of it
            tuned.engine.require_supported(sampling)
        with steps("verify"):
            _verify(config, folder, console, tuned)
        if config.infer.file is not None and as_merged:
            with steps("infer"):
                _infer(config, folder, console, tuned)
        if config.eval.data is not None:
            with steps("eval tuned"):
                summaries["tuned"] = evaluate_model(config, "tuned", console, tuned)
    if config.infer.file is not None and not as_merged:  # an engine of its own, when that one has gone
        unmerged = EngineSettings.of(config.infer, config.load, cluster=cluster)
        with steps("infer"), open_engine(folder.path, unmerged) as opened:
            _infer(config, folder, console, opened)
    if config.eval.data is not None:
        if config.eval.base:
            # The adapter gone on with, too, so that a training which makes its model worse is seen as that.
            start = config.lora.init if config.lora else None
            for name, reference in (("start", start), ("base", config.model)):
                if reference is not None:
                    with steps(f"eval {name}"), open_engine(reference, settings) as other:
                        summaries = {name: evaluate_model(config, name, console, other), **summaries}
        write_json(folder.eval / "summary.json", _summary(summaries, folder, steps.seconds))
        Console().print(comparison_table(summaries))
    console.print(f"everything on one page: {write_report(folder.path)}", highlight=False)


def _train(config: Config, folder: RunFolder, console: Console, overwrite: bool, gpus: int) -> None:
    if folder.is_trained and not overwrite:
        folder.require_same_config(config)
        console.print(f"{folder.path} is trained", style="dim", highlight=False)
        return
    resume = folder.exists and not overwrite
    if gpus > 1:
        launch_training(config, gpus, resume=resume, overwrite=overwrite)
        return
    try:
        import_train(config)(config, console=console, resume=resume, overwrite=overwrite)
    except Interrupted as stop:
        raise Interrupted(stop.message, hint="the same command goes on from there") from None


def _verify(config: Config, folder: RunFolder, console: Console, tuned: Opened) -> None:
    verified = verify(tuned, folder.path, prompts=4)
    console.print(verified.table())
    if verified.agrees is None:
        console.print("the training's effect is too small to tell tuned and base apart", style="yellow")
    elif not verified.agrees:
        differ = f"adapter, merged model and engine differ: thinktune merge {folder.path} --overwrite"
        if config.lora is None:
            differ = "the engine answers otherwise than the model: try --engine transformers, and report this, please"
        console.print(differ, style="bold red")
    if not verified.stops:
        console.print("the model has not learnt to end its turn: train longer, or on more rows", style="yellow")


def _infer(config: Config, folder: RunFolder, console: Console, opened: Opened) -> None:
    infer(
        opened,
        read_batch_file(config.infer.file or "", samplings=samplings(config.infer, config.seed)),
        config.infer.out or folder.infer / "results.json",
        name=str(folder.path),
        console=console,
    )


def evaluate_model(config: Config, name: str, console: Console, opened: Opened) -> Summary:
    """Score a model as the `eval` section says, into the folder `eval/NAME` of its run."""
    return evaluate_data(
        opened,
        Data(source=config.eval.data or "", split=config.eval.split, sample=config.eval.sample),
        RunFolder(config.run_folder).eval / name,
        sampling=config.eval.sampling,
        seed=config.seed,
        console=console,
    )


def _summary(summaries: dict[str, Summary], folder: RunFolder, seconds: dict[str, float]) -> dict[str, Any]:
    record = read_record(folder.record, RunRecord, whole=True)
    return {
        **{name: summary.as_dict() for name, summary in summaries.items()},
        "train_seconds": record["train_seconds"],
        "total_seconds": round(sum(seconds.values()), 1),
        "train_tokens_per_second": record["tokens_per_second"],
        "peak_memory_gib": record["peak_memory_gib"],
    }


@dataclass
class _Steps:
    """Announces each step, and keeps how long it took when it was really done, over calls."""

    file: Path
    console: Console
    anew: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.console.rule(f"[bold]{name}", align="left")
        start = time.monotonic()
        yield
        took = time.monotonic() - start
        if self.file.exists() and not self.seconds and not self.anew:
            self.seconds = read_record(self.file, dict[str, float])
        # A step that was skipped took next to nothing, and its real time is there already.
        self.seconds[name] = round(max(took, self.seconds.get(name, 0.0)), 2)
        write_json(self.file, self.seconds)
