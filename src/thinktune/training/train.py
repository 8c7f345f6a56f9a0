"""`thinktune train`: a config becomes a run folder with an adapter in it.

Read `train` top to bottom: load, prepare, check, train, save, answer. The optimisation itself is that of transformers'
Trainer; our changes to it are in trainer.py, model_with_loss.py and fused/.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import set_seed

from thinktune.config import Config
from thinktune.data import Example, Prepared, Tokens
from thinktune.data.sources import check_local, is_local
from thinktune.errors import (
    DataError,
    GenerationError,
    Interrupted,
    ModelError,
    OutOfMemory,
    UsageError,
)
from thinktune.files import replacing, telling_full_disk, write_json
from thinktune.inference.chat_cli import answer
from thinktune.inference.engines import Opened
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Loaded, resolve, write_settings
from thinktune.models.chat import date_settings
from thinktune.models.sharded_base import ShardedBase, sharded_base_of
from thinktune.models.template_date import date_of
from thinktune.planner.dealing import share
from thinktune.planner.hardware import GIB
from thinktune.planner.pack_lengths import measure_packs
from thinktune.planner.plan import Plan
from thinktune.run_folder import RunFolder
from thinktune.training import plots
from thinktune.training.adapter import adapter_to_train
from thinktune.training.adapter_coverage import uncovered
from thinktune.training.base_model_cache import BaseModelCache, checksum
from thinktune.training.build_trainer import build_trainer
from thinktune.training.compiled_kernels import compile_kernels
from thinktune.training.early_stop import EarlyStopCallback, check_evaluated
from thinktune.training.eval_callback import GenerationEvalCallback, checkup_problems
from thinktune.training.fidelity import examine_as_set_up, examine_in_float32
from thinktune.training.launch import needs_one_gpu
from thinktune.training.metrics_file import MetricsFile
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.opened_run import check_run, held_run, newest_step, open_run
from thinktune.training.out_of_memory import (
    free_memory_of_the_past,
    leave_lighter_plan,
    memory_agreed,
    memory_limited,
    next_lighter_plan,
    warm_up_step,
)
from thinktune.training.packing_check import require_single_documents, share_sequences
from thinktune.training.peak_memory import reset_peak_memory
from thinktune.training.plan import record_plan, recorded_plan, resolve_plan, settings_without_effect
from thinktune.training.prepare_model import set_up
from thinktune.training.progress_bar import ProgressLine
from thinktune.training.ranks import (
    agree,
    by_first,
    gathered,
    here,
    host_first,
    joined,
    leave,
    was_restarted,
)
from thinktune.training.reinforce.problems import PreparedProblems
from thinktune.training.reinforce.reinforce_trainer import ReinforceTrainer
from thinktune.training.reinforce.setup import (
    drawing,
    leave_dropout_out,
    longest_rollouts,
    plan_rollouts,
)
from thinktune.training.run_record import closing_line, parameter_line, run_record
from thinktune.training.sharding import base_to_fill, require_adapters
from thinktune.training.stop_signals import StopSignals
from thinktune.training.trainer import ThinkTrainer
from thinktune.training.training_arguments import check_trainer_fields, require_loggers
from thinktune.training.tried_families import untried
from thinktune.training.whole_model import products_dtype, save_whole_model, whole_model_to_train


def train(
    config: Config,
    *,
    console: Console,
    resume: bool = False,
    overwrite: bool = False,
    bench: BaseModelCache | None = None,
) -> dict[str, Any]:
    """Fine-tune as `config` says, into its run folder, and return the record of run.json.

    Args:
        console: for progress and notices; answers to `ask.questions` go there too.
        resume: go on from the newest whole checkpoint of the run folder, if it has one.
        overwrite: replace a run folder that exists.
        bench: where several trainings share base model and data; the base model is left as it was.

    Raises:
        RunFolderError: the run folder exists, or was started with other settings or data than those to resume.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved first.
        OutOfMemory: with the settings to change.
        ThinktuneError: from loading the model and the data.
    """
    if here().size > 1 and (setting := needs_one_gpu(config)):
        raise UsageError(f"{setting} runs on one GPU", hint="without torchrun")
    require_loggers(config)
    check_trainer_fields(config)
    with joined(config.load.device):
        return _train(config, console, bench or BaseModelCache(), resume=resume, overwrite=overwrite)


def _train(config: Config, console: Console, bench: BaseModelCache, *, resume: bool, overwrite: bool) -> dict[str, Any]:
    run = RunFolder(config.run_folder)
    if was_restarted() and by_first(lambda: run.exists):
        resume, overwrite = True, False
    by_first(lambda: check_run(run, config, resume=resume, overwrite=overwrite))
    for source in config.data.sources:
        check_local(source.source, source.split or config.data.split)
    for known in config.data.problems:
        check_local(known.source, known.split)
    if config.eval.data is not None:
        check_local(config.eval.data, config.eval.split)
    started = time.monotonic()
    now = by_first(lambda: (date_of(run.data_report) if resume else None) or bench.now)
    base = base_to_fill(config)
    loaded, prepared = _take(config, bench, now, base)
    if len(set(gathered((prepared.fingerprint, checksum(loaded.model))))) > 1:
        raise DataError(
            "the processes of this training have read other data, or another model", hint="bring them alike"
        )
    console.print(prepared.report.one_line(), highlight=False)
    check_evaluated(config, prepared)
    if resume:
        by_first(lambda: run.require_same_data(prepared.fingerprint))
    problems = checkup_problems(config)
    reset_peak_memory()  # loading may have needed more for a moment
    with memory_limited(config, loaded.device):
        attempt = _Attempt(config, loaded, prepared, problems, run, console, resume=resume, overwrite=overwrite)
        while isinstance(outcome := attempt.train(started), _Shortage):
            overwrite = overwrite and not outcome.opened
            if outcome.alone:
                leave_lighter_plan(config, outcome.plan, run if outcome.opened else None)
            after = 0 if overwrite else by_first(lambda: newest_step(run))
            plan = next_lighter_plan(config, outcome.plan, console, after=after)
            attempt = replace(attempt, overwrite=overwrite, plan=plan)
        return outcome


def _take(
    config: Config, bench: BaseModelCache, now: datetime | None, base: ShardedBase | None
) -> tuple[Loaded, Prepared]:
    """Load model and data; what has to be downloaded is, on each host, by one rank."""
    if base is not None:  # which all ranks have to load at the same time
        host_first(lambda: resolve(config.model, config.load))
        bench.take_model(config, now, base)
    if all(is_local(source.source) for source in config.data.sources):
        host_first(lambda: resolve(config.model, config.load))
        return bench.take(config, now)
    return host_first(lambda: bench.take(config, now))


@dataclass(frozen=True)
class _Shortage:
    """An outcome: memory ran out under this plan, with the run folder `opened` or not yet; `alone`: while other ranks
    go on, and wait for this one."""

    plan: Plan
    opened: bool
    alone: bool


@dataclass(frozen=True)
class _Attempt:
    """A training under one plan, from the newest checkpoint to the end; the first one makes the plan."""

    config: Config
    loaded: Loaded
    prepared: Prepared
    problems: list[Example]
    run: RunFolder
    console: Console
    resume: bool
    overwrite: bool
    plan: Plan | None = None

    def train(self, started: float) -> dict[str, Any] | _Shortage:
        """Train, and return the record of run.json, or that memory ran out.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved first.
        """
        config, loaded, console = self.config, self.loaded, self.console
        set_seed(config.train_seed)  # only now, so that it is the same wherever model and data came from
        to_train = adapter_to_train if config.lora is not None else whole_model_to_train
        with to_train(loaded, config) as model, held_run(self.run):
            if config.method != "sft":
                leave_dropout_out(model)  # the policy that is trained is the one that draws
            with_loss = ModelWithLoss(model)
            console.print(parameter_line(model), highlight=False)
            if notice := untried(loaded.model):
                console.print(notice, style="yellow", highlight=False)
            if sharded := sharded_base_of(model) is not None:
                require_adapters(model)
            for left_out in uncovered(model, config.lora.targets) if config.lora else ():
                console.print(f"warning: {left_out}", style="yellow", highlight=False)
            # Made now, as it warns of models that it answers slowly, and fails before the training if it does.
            asks = config.ask.questions and here().is_first
            if asks and sharded:
                asks = False
                console.print("ask.questions are left out: the base is spread over GPUs", highlight=False)
            engine = TransformersEngine(model, loaded.tokenizer, loaded.chat.stop_ids) if asks else None
            plan, opened, steps = self.plan or self._resolve_plan(model), False, False
            try:
                packs, examples = share_sequences(config), self.prepared.train
                with memory_agreed(apart=not sharded):
                    apart = examine_in_float32(with_loss, examples, loaded.dtype, packs=packs)
                with StopSignals() as stop, ExitStack() as stack:
                    with memory_agreed(apart=not sharded):
                        stack.enter_context(set_up(model, loaded, plan))
                        if plan.fused:
                            compile_kernels(with_loss, self._longest_batch(plan))
                        apart = examine_as_set_up(with_loss, examples, loaded.dtype, packs=packs, apart=apart)
                    if config.lora is None:  # after the checks, which are in float32
                        with_loss.round_products_to(products_dtype(config, loaded))
                    if not agree(apart, min):
                        require_single_documents(config)
                        plan = replace(plan, packs=1, accumulation=share(config.train.accumulation, plan.gpus))
                    free_memory_of_the_past()  # the peak that is told is that of the training
                    by_first(lambda: self._open_run(plan))
                    opened = True
                    with memory_agreed(apart=not sharded):
                        trainer = build_trainer(with_loss, config, loaded, self.prepared, self.run, plan, stop)
                        checkup = _checkup(self, trainer)
                        self._warm_up(trainer, plan)
                    steps = True
                    metrics, best = self._optimise(trainer, checkup, stop)
            except torch.OutOfMemoryError:  # returned, not raised on: it holds the tensors that there is no room for
                return _Shortage(plan, opened, alone=(steps or sharded) and here().size > 1)
            if stop.due:
                name = next(filter(None, gathered(stop.name)))
                raise Interrupted(
                    f"stopped by {name} after step {trainer.state.global_step}; a checkpoint is saved",
                    hint="go on with the same command and --resume",
                )
            record = run_record(config, loaded, self.prepared, plan, trainer, metrics, best, time.monotonic() - started)
            by_first(lambda: self._save(model, record, metrics))
            console.print(closing_line(record, self.run), highlight=False)
            leave()
            if engine is not None:
                _answer_questions(engine, loaded, config, console)
        return record

    def _open_run(self, plan: Plan) -> None:
        open_run(self.run, self.config, self.prepared, date_settings(self.loaded.chat), overwrite=self.overwrite)
        record_plan(self.run, self.config, plan)

    def _save(self, model: Any, record: dict[str, Any], metrics: MetricsFile) -> None:
        _save_result(model, self.loaded, self.config, self.run)
        write_json(self.run.record, record)
        plots.save(plots.training_figure(metrics.lines, f"Training of {self.run.path.name}"), self.run.loss_plot)

    def _resolve_plan(self, model: Any) -> Plan:
        """Make the plan, or take a resumed run's, and say it, with the settings that have no effect under it."""
        config, loaded, console = self.config, self.loaded, self.console
        if isinstance(self.prepared, PreparedProblems):
            plan = plan_rollouts(model, config, loaded, self.prepared)
        else:
            plan = resolve_plan(model, config, loaded, measure_packs(self.prepared.train, self.prepared.packs))
        if self.resume:
            plan = by_first(lambda: recorded_plan(self.run, config, plan))
        console.print(plan.line(), highlight=False)
        if plan.rate.rule is not None:
            console.print(plan.rate.line(), highlight=False)
        if config.lora is None and not plan.fits:
            raise OutOfMemory(
                f"full fine-tuning of {config.model} takes {plan.parts['peak'] / GIB:.1f} GiB, and there are "
                f"{plan.limit / GIB:.1f}",
                hint="train an adapter (lora), or a smaller model, or train.optimizer=adamw_8bit on a GPU",
            )
        for warning in settings_without_effect(config, loaded, self.prepared, plan):
            console.print(warning, style="yellow", highlight=False)
        return plan

    def _optimise(
        self, trainer: ThinkTrainer, checkup: GenerationEvalCallback | None, stop: StopSignals
    ) -> tuple[MetricsFile, dict[str, Any] | None]:
        """Run the training loop, with a last evaluation of the held-out loss, and take the weights of the best one
        where `train.stop` asks for it; return what was logged, and the best."""
        step = by_first(lambda: newest_step(self.run))
        checkpoint = str(self.run.checkpoints / f"checkpoint-{step}") if step else None
        if checkpoint is not None:
            trainer.resume_meter(Path(checkpoint))
            self.console.print(f"resuming after step {step}", style="dim", highlight=False)
        metrics = by_first(lambda: MetricsFile(self.run.metrics, after_step=step))
        line = ProgressLine(trainer, self.console)
        early = [EarlyStopCallback(trainer.early, self.console)] if trainer.early else []
        for callback in (metrics.recorder(trainer), line, stop.callback(), *early):
            trainer.add_callback(callback)
        if checkup is not None:
            checkup.resume(metrics.lines)
            trainer.add_callback(checkup)
        draws: AbstractContextManager[None] = nullcontext()
        if isinstance(trainer, ReinforceTrainer) and isinstance(self.prepared, PreparedProblems):
            draws = drawing(trainer, self.prepared, self.loaded, self.config, metrics, self.console)
        with line, draws:
            trainer.start_clock()
            trainer.train(resume_from_checkpoint=checkpoint)
            if trainer.eval_dataset is not None and not stop.due and not metrics.has_eval_at(trainer.state.global_step):
                trainer.evaluate()
            return metrics, None if stop.due else trainer.take_best()

    def _longest_batch(self, plan: Plan) -> list[Tokens]:
        """Return the documents of the longest batch that may come."""
        examples = self.prepared.train
        if isinstance(self.prepared, PreparedProblems):
            return longest_rollouts(self.config, self.prepared, plan)
        packs = sorted(self.prepared.packs, key=lambda pack: -sum(len(examples[index]) for index in pack))
        return [examples[index] for pack in packs[: plan.packs] for index in pack]

    def _warm_up(self, trainer: ThinkTrainer, plan: Plan) -> None:
        if self.loaded.device.type != "cuda":
            return
        peak = warm_up_step(trainer, self._longest_batch(plan))
        self.console.print(
            f"proved on the longest batch: {peak:.1f} GiB, {plan.parts['peak'] / GIB:.1f} predicted",
            style="dim",
            highlight=False,
        )


def _checkup(attempt: _Attempt, trainer: ThinkTrainer) -> GenerationEvalCallback | None:
    if not attempt.problems:
        return None
    if sharded_base_of(trainer.model) is not None:
        attempt.console.print("no evaluation during training: the base is spread over GPUs", highlight=False)
        return None
    try:
        return GenerationEvalCallback(
            attempt.problems, trainer.model, attempt.loaded, attempt.config, trainer, attempt.console
        )
    except ModelError as error:  # it can be trained nevertheless
        attempt.console.print(f"no evaluation during training: {error.message}", highlight=False)
        return None


def _save_result(model: Any, loaded: Loaded, config: Config, run: RunFolder) -> None:
    """Save what was trained, the adapter or the whole model, with what later verbs need to use it as trained."""
    base = {"base_model": config.model, "system": loaded.chat.system_text, **date_settings(loaded.chat)}
    settings = {**base, "format": config.format.model_dump()}
    if config.lora is None:
        save_whole_model(loaded, config, run, settings)
        return
    with telling_full_disk(run.adapter), replacing(run.adapter) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        write_settings(folder, settings)


def _answer_questions(engine: TransformersEngine, loaded: Loaded, config: Config, console: Console) -> None:
    """Answer the questions of the config. What fails is said: the training has succeeded."""
    sampling = config.ask.sampling
    if sampling.seed is None:
        sampling = sampling.model_copy(update={"seed": config.seed})
    opened = Opened(engine, loaded.chat, fingerprint="", tuned=True, format_settings=config.format.model_dump())
    for question in config.ask.questions:
        console.print(f"\n[bold]{question}[/]", highlight=False)
        try:
            answer(opened, question, sampling, console)
        except (GenerationError, OutOfMemory, UsageError) as error:
            console.print(f"no answer: {error.message}", style="yellow", highlight=False)
