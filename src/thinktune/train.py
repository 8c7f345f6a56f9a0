"""`thinktune train`: a config becomes a run folder with an adapter in it.

Read `train` top to bottom: load, prepare, check, train, save, answer. The optimisation itself is TRL's; what we change
in it is in trainer.py and fast/.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PrinterCallback, set_seed
from transformers.integrations import TensorBoardCallback
from trl import SFTConfig

from thinktune import plots
from thinktune.ask import answer
from thinktune.checkup import Checkup, checkup_problems
from thinktune.config import OWNED_TRAINER_FIELDS, Config, Train, dump_config
from thinktune.data import Example, Prepared, Tokens, pack
from thinktune.engines.transformers import TransformersEngine
from thinktune.errors import ConfigError, Interrupted, MissingExtra, ModelError, OutOfMemory, RunFolderError
from thinktune.fast import attention
from thinktune.files import replacing, write_json, write_text
from thinktune.models import Loaded, write_settings
from thinktune.models.device import describe_hardware
from thinktune.progress import MetricsFile, ProgressLine, StopSignals, peak_memory_gib, reset_peak_memory
from thinktune.runs import RunFolder, library_versions
from thinktune.trainer import PackedCollator, ThinkTrainer, as_dataset, whole_checkpoints
from thinktune.workbench import Workbench, adapter_to_train


def train(
    config: Config,
    *,
    console: Console,
    resume: bool = False,
    overwrite: bool = False,
    bench: Workbench | None = None,
) -> dict[str, Any]:
    """Fine-tune as `config` says, into its run folder, and return what run.json records.

    Args:
        console: for progress and notices; answers to `ask.questions` go there too.
        resume: go on from the newest whole checkpoint of the run folder, if it has one.
        overwrite: replace a run folder that exists.
        bench: where several trainings share base model and data; the base model is left as it was.

    Raises:
        RunFolderError: the run folder exists, or holds another config than the one to resume.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved first.
        OutOfMemory: with what to change.
        ThinktuneError: what loading the model and the data raise.
    """
    _require_loggers(config)
    run = RunFolder(config.run_folder)
    _check_run(run, config, resume=resume, overwrite=overwrite)
    started = time.monotonic()
    reset_peak_memory()
    notify = lambda line: console.print(line, style="dim", highlight=False)  # noqa: E731
    loaded, prepared = (bench or Workbench()).take(config, notify)
    console.print(prepared.report.one_line(), highlight=False)
    problems = checkup_problems(config, notify)
    set_seed(config.train_seed)  # only now, so that it is the same wherever model and data came from
    with adapter_to_train(loaded, config, notify) as model:
        checkpoint = _open_run(run, config, prepared, overwrite=overwrite)
        trainer = _build_trainer(model, loaded, prepared, config, run)
        console.print(_parameter_line(model), highlight=False)
        with _out_of_memory_explained(config), StopSignals() as stop, attention.packed_documents(loaded.model):
            if not _documents_are_isolated(model, prepared.train):
                _require_single_documents(config)
            checkup = _checkup(problems, model, loaded, config, trainer, console)
            metrics = _optimise(trainer, run, checkpoint, stop, checkup, console)
        if stop.requested:
            raise Interrupted(
                f"stopped by {stop.name} after step {trainer.state.global_step}; a checkpoint is saved",
                hint="go on with the same command and --resume",
            )
        _save_adapter(model, loaded, config, run)
        record = _record(trainer, model, loaded, prepared, config, metrics, time.monotonic() - started)
        write_json(run.record, record)
        plots.save(plots.training_figure(metrics.lines), run.loss_plot)
        console.print(_closing_line(record, run), highlight=False)
        _answer_questions(model, loaded, config, console)
    return record


def _require_loggers(config: Config) -> None:
    if missing := [name for name in config.train.report_to if find_spec(name) is None]:
        raise MissingExtra(
            f"train.report_to: {', '.join(missing)} is not installed", hint=f"pip install {' '.join(missing)}"
        )


def _check_run(run: RunFolder, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Make sure that the run folder may be used, before the time is spent to load anything."""
    if not run.exists:
        return
    if not run.config.exists():
        raise RunFolderError(f"{run.path} exists and is not a run folder", hint="output=FOLDER goes elsewhere")
    if resume:
        run.require_same_config(config)
        if run.is_trained:
            raise RunFolderError(f"{run.path} is trained to its end", hint="--overwrite trains it anew")
    elif not overwrite:
        state = "holds a finished run" if run.is_trained else "holds an unfinished run"
        hint = "--resume goes on, --overwrite starts anew, output=FOLDER goes elsewhere"
        raise RunFolderError(f"{run.path} {state}", hint)


def _open_run(run: RunFolder, config: Config, prepared: Prepared, *, overwrite: bool) -> Path | None:
    """Begin the run folder, or find the checkpoint to go on from in the one that is there."""
    if overwrite and run.exists:
        shutil.rmtree(run.path)
    run.path.mkdir(parents=True, exist_ok=True)
    write_text(run.config, dump_config(config))
    write_json(run.data_report, prepared.report.to_dict())
    whole = whole_checkpoints(run.checkpoints)
    for folder in run.checkpoints.glob("checkpoint-*"):
        if folder not in (path for _, path in whole):
            shutil.rmtree(folder)  # cut off while it was written
    return whole[-1][1] if whole else None


def _build_trainer(
    model: PeftModel, loaded: Loaded, prepared: Prepared, config: Config, run: RunFolder
) -> ThinkTrainer:
    settings = config.train
    examples = [*prepared.train, *prepared.held_out]
    train_set = as_dataset(_packs(prepared.train, config))
    held_out = as_dataset([[index] for index in range(len(prepared.held_out))], offset=len(prepared.train))
    arguments = _sft_config(settings, config, loaded, run, evaluates=bool(prepared.held_out))
    trainer = ThinkTrainer(
        model=model,
        args=arguments,
        train_dataset=train_set,
        eval_dataset=held_out if prepared.held_out else None,
        data_collator=PackedCollator(examples),
        processing_class=loaded.tokenizer,
        keep_checkpoints=settings.keep_checkpoints,
    )
    trainer.remove_callback(PrinterCallback)  # ours prints a better line
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run.logs)  # else it would be inside checkpoints/
    for parameter in model.parameters():
        if parameter.requires_grad:  # TRL makes them bf16 on quantised bases, where small steps then round to nothing
            parameter.data = parameter.data.float()
    return trainer


def _packs(examples: list[Tokens], config: Config) -> list[list[int]]:
    if not config.train.packing:
        return [[index] for index in range(len(examples))]
    return pack([len(example) for example in examples], config.train.pack_length or config.data.max_length)


def _sft_config(settings: Train, config: Config, loaded: Loaded, run: RunFolder, *, evaluates: bool) -> SFTConfig:
    on_gpu = loaded.device.type == "cuda"
    optimizer = {"adamw": "adamw_torch_fused"}.get(settings.optimizer, settings.optimizer)
    if not on_gpu and settings.optimizer != "adamw":
        optimizer = "adamw_torch_fused"  # bitsandbytes' optimizers are CUDA kernels; same mathematics, more memory
    fields: dict[str, Any] = {
        "output_dir": str(run.checkpoints),
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": optimizer,
        "seed": config.train_seed,
        "data_seed": config.train_seed,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "eval_strategy": "steps" if evaluates and settings.eval_every else "no",
        "eval_steps": settings.eval_every,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "report_to": settings.report_to or "none",
        "run_name": run.path.name,
        "bf16": False,  # the weights are bf16 where the hardware has it; autocast on top would only cost
        "use_cpu": not on_gpu,
        "max_length": None,  # nothing is cut here; data.overlong has decided
        "packing": False,  # packed already
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "disable_tqdm": True,
    }
    try:
        return SFTConfig(**fields, **settings.trainer)
    except TypeError as error:
        name = str(error).rpartition("argument ")[2]
        if name.strip("'") in fields and name.strip("'") not in OWNED_TRAINER_FIELDS:
            raise ConfigError(f"train.trainer: {name} is set by thinktune") from None
        raise ConfigError(f"train.trainer: SFTConfig has no field {name}") from None
    except ValueError as error:
        raise ConfigError(f"train.trainer: {error}") from None


def _checkup(
    problems: list[Example], model: PeftModel, loaded: Loaded, config: Config, trainer: ThinkTrainer, console: Console
) -> Checkup | None:
    if not problems:
        return None
    try:
        return Checkup(problems, model, loaded, config, trainer, console)
    except ModelError as error:  # it can be trained nevertheless
        console.print(f"no evaluation during training: {error.message}", highlight=False)
        return None


def _optimise(
    trainer: ThinkTrainer,
    run: RunFolder,
    checkpoint: Path | None,
    stop: StopSignals,
    checkup: Checkup | None,
    console: Console,
) -> MetricsFile:
    """Run the training loop, with a last evaluation of the held-out loss."""
    step = 0
    if checkpoint is not None:
        step = int(checkpoint.name.rpartition("-")[2])
        trainer.resume_meter(checkpoint)
        console.print(f"resuming after step {step}", style="dim", highlight=False)
    metrics = MetricsFile(run.metrics, after_step=step)
    line = ProgressLine(trainer, console)
    for callback in (metrics.recorder(trainer), line, stop.callback()):
        trainer.add_callback(callback)
    if checkup is not None:
        checkup.resume(metrics.lines)
        trainer.add_callback(checkup)
    with line:
        trainer.start_clock()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if (
            trainer.eval_dataset is not None
            and not stop.requested
            and not metrics.has_eval_at(trainer.state.global_step)
        ):
            trainer.evaluate()
    return metrics


@torch.no_grad()
def _documents_are_isolated(model: PeftModel, examples: list[Tokens]) -> bool:
    """Whether a document gets the same hidden states behind another one as it gets alone."""
    shortest = sorted(range(len(examples)), key=lambda index: len(examples[index]))[:2]
    if len(shortest) < 2:
        return True
    collate = PackedCollator(examples)
    base = model.get_base_model().base_model

    def hidden(documents: list[int]) -> torch.Tensor:
        batch = collate([{"documents": documents}])
        for unused in ("labels", "positions", "targets"):
            del batch[unused]
        inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        states: torch.Tensor = base(**inputs, use_cache=False).last_hidden_state[0]
        return states.float()

    model.eval()
    alone = hidden(shortest[1:])
    packed = hidden(shortest)[-len(alone) :]
    model.train()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05  # bf16 rounds in every layer
    return bool((packed - alone).norm() <= tolerance * alone.norm())


def _require_single_documents(config: Config) -> None:
    if config.train.packing or config.train.batch_size > 1:
        raise ModelError(
            "with this model, examples that share a sequence would see each other: "
            "its layers do not keep packed documents apart",
            hint="set train.packing=false train.batch_size=1, and train.accumulation to the rows a step should have",
        )


@contextmanager
def _out_of_memory_explained(config: Config) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated() / 2**30
        tokens = (config.train.pack_length or config.data.max_length) * config.train.batch_size
        message = f"out of GPU memory in training: {peak:.1f} GiB were in use, with batches of up to {tokens:,} tokens"
        raise OutOfMemory(message, hint="try " + ", or ".join(_ways_to_save_memory(config))) from error


def _ways_to_save_memory(config: Config) -> Iterator[str]:
    if not config.train.gradient_checkpointing:
        yield "train.gradient_checkpointing=true"
    if (rows := config.train.batch_size) > 1:
        accumulation = math.ceil(rows * config.train.accumulation / (rows // 2))
        yield f"train.batch_size={rows // 2} train.accumulation={accumulation} (the same step)"
    if config.quantize == "none":
        yield "quantize=nf4"
    yield "a smaller data.max_length"


def _save_adapter(model: PeftModel, loaded: Loaded, config: Config, run: RunFolder) -> None:
    with replacing(run.adapter) as folder:
        model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        base = {"base_model": config.model, "system": loaded.chat.system_text}
        write_settings(folder, {**base, "format": config.format.model_dump()})


def _record(
    trainer: ThinkTrainer,
    model: PeftModel,
    loaded: Loaded,
    prepared: Prepared,
    config: Config,
    metrics: MetricsFile,
    seconds: float,
) -> dict[str, Any]:
    meter = trainer.meter
    trainable, total = model.get_nb_trainable_parameters()
    return {
        "model": config.model,
        "system": loaded.chat.system_text,
        "seed": config.train_seed,
        "versions": library_versions(),
        "hardware": describe_hardware(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "data_fingerprint": prepared.fingerprint,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "trainable_parameters": trainable,
        "parameters": total,
        "tokens": meter.tokens,
        "trained_tokens": meter.trained_tokens,
        "train_seconds": round(meter.seconds, 2),
        "wall_seconds": round(seconds, 2),
        "tokens_per_second": round(meter.tokens / max(meter.seconds, 1e-9), 1),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "evaluation_seconds": round(sum(line.get("eval_seconds", 0.0) for line in metrics.lines), 2),
        "final_loss": metrics.final_loss(),
    }


def _parameter_line(model: PeftModel) -> str:
    trainable, total = model.get_nb_trainable_parameters()
    return f"{trainable:,} trainable of {total:,} parameters ({trainable / total:.2%})"


def _closing_line(record: dict[str, Any], run: RunFolder) -> str:
    return (
        f"trained {record['steps']} steps, {record['tokens']:,} tokens in {record['train_seconds']:.0f} s: "
        f"{record['tokens_per_second']:,.0f} tokens/s, {record['peak_memory_gib']:.2f} GiB, "
        f"final loss {record['final_loss']:.4f}; the adapter is in {run.adapter}"
    )


def _answer_questions(model: PeftModel, loaded: Loaded, config: Config, console: Console) -> None:
    if not config.ask.questions:
        return
    sampling = config.ask.sampling
    if sampling.seed is None:
        sampling = sampling.model_copy(update={"seed": config.seed})
    with TransformersEngine(model, loaded.tokenizer, loaded.chat.stop_ids) as engine:
        for question in config.ask.questions:
            console.print(f"\n[bold]{question}[/]", highlight=False)
            answer(engine, loaded.chat, question, sampling, console)
