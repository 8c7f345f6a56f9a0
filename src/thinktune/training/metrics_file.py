"""metrics.jsonl: a line a logged step, and figures derived from it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thinktune.errors import Diverged
from thinktune.files import write_text
from thinktune.records import MetricsLine, read_records
from thinktune.training.peak_memory import peak_memory_gib
from thinktune.training.ranks import here
from thinktune.training.trainer import ThinkTrainer


class MetricsFile:
    """metrics.jsonl: one line a logged step.

    `step, epoch, loss` (nats a trained token since the last line) `, token_accuracy` (the share of trained tokens that
    were the likeliest) `, grad_norm, learning_rate, tokens, trained_tokens` depend on config and data alone;
    `tokens_per_second` (since the last line) and `memory_gib` (peak) on the machine. A line with `eval_loss` and
    `eval_token_accuracy` comes after each evaluation of held-out examples, one with `eval_accuracy` after each
    evaluation by generation (see eval_callback.py). With `method: grpo`, `rl/…` are of the step's rollouts. Lines after
    `after_step` are cut off: a resumed training writes them again. Every rank of a training has the lines; the first
    writes them.
    """

    def __init__(self, file: Path, *, after_step: int) -> None:
        self._file = file
        self.lines: list[dict[str, Any]] = []
        if file.exists():
            self.lines = [line for line in read_records(file, MetricsLine) if line["step"] <= after_step]
        write_text(file, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if not here().is_first:
            return
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def recorder(self, trainer: ThinkTrainer) -> TrainerCallback:
        """Return the callback that writes a line at each log."""
        return _Recorder(self, trainer)

    def has_eval_at(self, step: int) -> bool:
        return any(line["step"] == step and "eval_loss" in line for line in self.lines)

    def final(self, name: str) -> float | None:
        """Return the last held-out `loss` or `token_accuracy`; without held-out examples, its mean over the last tenth
        of the training's lines; None: there is none."""
        if held_out := [line[f"eval_{name}"] for line in self.lines if f"eval_{name}" in line]:
            return float(held_out[-1])
        values = [line[name] for line in self.lines if name in line]
        last = values[-max(1, len(values) // 10) :]
        return sum(last) / len(last) if last else None


class _Recorder(TrainerCallback):
    def __init__(self, metrics: MetricsFile, trainer: ThinkTrainer) -> None:
        self._metrics = metrics
        self._trainer = trainer
        self._before = (trainer.meter.tokens, trainer.meter.seconds)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if not ({"loss", "eval_loss", "eval_accuracy"} & set(logs)):
            return
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        line |= {
            name: float(logs[name]) for name in ("loss", "token_accuracy", "grad_norm", "learning_rate") if name in logs
        }
        for name in ("loss", "grad_norm"):  # before the weights that come of it are saved
            if not math.isfinite(line.get(name, 0.0)):
                raise Diverged(
                    f"training has diverged: in step {state.global_step} the {name} is {line[name]}",
                    hint=f"a train.learning_rate below {args.learning_rate:g}, or more train.warmup_steps; --overwrite",
                )
        line |= {name: value for name, value in logs.items() if name.startswith(("eval_", "rl/", "dpo/"))}
        if "loss" in logs:
            meter = self._trainer.meter
            tokens, seconds = meter.tokens - self._before[0], meter.seconds - self._before[1]
            self._before = (meter.tokens, meter.seconds)
            line |= {"tokens": meter.tokens, "trained_tokens": meter.trained_tokens}
            line["tokens_per_second"] = round(tokens / max(seconds, 1e-9), 1)
            line["memory_gib"] = round(peak_memory_gib(), 2)
        self._metrics.append(line)
