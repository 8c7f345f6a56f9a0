"""run.json of a training, and the two lines that say it in short."""

from __future__ import annotations

import math
from typing import Any

from peft import PeftModel

from thinktune.config import Config
from thinktune.data import Prepared
from thinktune.models import Loaded
from thinktune.models.chat import date_settings
from thinktune.models.device import describe_hardware
from thinktune.planner.hardware import GIB
from thinktune.planner.plan import Plan
from thinktune.run_folder import RunFolder, library_versions
from thinktune.training.adapter_coverage import coverage_table, uncovered
from thinktune.training.metrics_file import MetricsFile
from thinktune.training.peak_memory import peak_memory_gib
from thinktune.training.ranks import agree
from thinktune.training.trainer import ThinkTrainer


def run_record(
    config: Config,
    loaded: Loaded,
    prepared: Prepared,
    plan: Plan,
    trainer: ThinkTrainer,
    metrics: MetricsFile,
    best: dict[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    """Collect the facts of a training that has ended, for run.json; on all of its ranks.

    Args:
        best: the evaluation whose weights were taken, of `ThinkTrainer.take_best`.
        seconds: since the command began, loading included.
    """
    model, meter = trainer.model, trainer.meter
    peak: float = agree(peak_memory_gib(), max)
    trainable, total = _counts(model)
    return {
        "model": config.model,
        "whole": config.lora is None,
        "system": loaded.chat.system_text,
        **date_settings(loaded.chat),
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
        "peak_memory_gib": round(peak, 2),
        "predicted_memory_gib": round(plan.parts["peak"] / GIB, 2),
        "setup": plan.describe(),
        "learning_rate": plan.rate.value,
        "learning_rate_rule": plan.rate.rule,
        "uncovered": uncovered(model, config.lora.targets) if config.lora else [],
        "evaluation_seconds": round(sum(line.get("eval_seconds", 0.0) for line in metrics.lines), 2),
        **_final(metrics, best),
    }


def _final(metrics: MetricsFile, best: dict[str, Any] | None) -> dict[str, Any]:
    """Collect loss and token accuracy of the weights that are saved, and how they came to be these."""
    taken = best or {}
    loss = taken.get("eval_loss", metrics.final("loss"))
    accuracy = taken.get("eval_token_accuracy", metrics.final("token_accuracy"))
    return {
        "final_loss": math.nan if loss is None else loss,
        **({} if accuracy is None else {"final_token_accuracy": accuracy}),
        **({} if best is None else {"best": best}),
    }


def _counts(model: Any) -> tuple[int, int]:
    """Count the parameters that are trained, and all."""
    if isinstance(model, PeftModel):
        trainable, total = model.get_nb_trainable_parameters()
        return trainable, total
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def parameter_line(model: Any) -> str:
    """Say how many parameters are trained, and in which layers."""
    trainable, total = _counts(model)
    if not isinstance(model, PeftModel):
        return f"all {total:,} parameters are trained, in float32"
    return f"{trainable:,} trainable of {total:,} parameters ({trainable / total:.2%}), {coverage_table(model)}"


def closing_line(record: dict[str, Any], run: RunFolder) -> str:
    learnt = f"final loss {record['final_loss']:.4f}"
    if "final_token_accuracy" in record:
        learnt += f", {record['final_token_accuracy']:.1%} of tokens right"
    of_step = f" of step {record['best']['step']}, the best," if "best" in record else ""
    what, place = ("model", run.merged) if record["whole"] else ("adapter", run.adapter)
    return (
        f"trained {record['steps']} steps, {record['tokens']:,} tokens in {record['train_seconds']:.0f} s: "
        f"{record['tokens_per_second']:,.0f} tokens/s, {record['peak_memory_gib']:.2f} GiB, "
        f"{learnt}; the {what}{of_step} is in {place}"
    )
