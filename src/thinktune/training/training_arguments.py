"""Translates a config into the TrainingArguments of transformers."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from transformers import TrainingArguments

from thinktune.config import OWNED_TRAINER_FIELDS, Config
from thinktune.errors import ConfigError, MissingExtra
from thinktune.planner.plan import Plan
from thinktune.run_folder import RunFolder


def check_trainer_fields(config: Config) -> None:
    """Find a misspelt field, or a value of another type, before the time is spent to load anything.

    Raises:
        ConfigError: train.trainer has a field that TrainingArguments has not, or a value that its field cannot hold.
    """
    known = {field.name for field in fields(TrainingArguments) if field.init}
    if unknown := [name for name in config.train.trainer if name not in known]:
        close = get_close_matches(unknown[0], known - set(OWNED_TRAINER_FIELDS), 1)
        raise ConfigError(
            f"train.trainer: TrainingArguments has no field {', '.join(unknown)}",
            hint=f"did you mean {close[0]}?" if close else "",
        )
    types = get_type_hints(TrainingArguments)
    for name, value in config.train.trainer.items():
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ConfigError(f"train.trainer.{name}: {value!r}: {error.errors()[0]['msg']}") from None


def require_loggers(config: Config) -> None:
    if missing := [name for name in config.train.report_to if find_spec(name) is None]:
        raise MissingExtra(
            f"train.report_to: {', '.join(missing)} is not installed", hint=f"pip install {' '.join(missing)}"
        )


def training_arguments(
    config: Config, plan: Plan, run: RunFolder, *, on_gpu: bool, evaluates: bool, checkpointing: bool
) -> TrainingArguments:
    """Build the arguments of the trainer from a config.

    Args:
        checkpointing: whether transformers recomputes every layer.

    Raises:
        ConfigError: train.trainer has a value that TrainingArguments does not take.
    """
    settings = config.train
    optimizer = {"adamw": "adamw_torch_fused"}.get(settings.optimizer, settings.optimizer)
    if not on_gpu and settings.optimizer != "adamw":
        optimizer = "adamw_torch_fused"  # bitsandbytes' optimizers are CUDA kernels; same mathematics, more memory
    given: dict[str, Any] = {
        "output_dir": str(run.checkpoints),
        "per_device_train_batch_size": plan.packs,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": plan.rate.value,
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
        "gradient_checkpointing": checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "report_to": settings.report_to or "none",
        "run_name": run.path.name,
        "bf16": False,  # the weights are bf16 where the hardware has it; autocast on top would only cost
        "use_cpu": not on_gpu,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    try:
        arguments = TrainingArguments(**given, **settings.trainer)
    except (TypeError, ValueError, OSError, ImportError) as error:  # a file it names, a package that it takes
        raise ConfigError(f"train.trainer: {error}") from None
    arguments._n_gpu = 1  # of several visible ones; Trainer would take nn.DataParallel
    return arguments
