"""The line that a person watches while a training runs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thinktune.training.peak_memory import peak_memory_gib
from thinktune.training.trainer import ThinkTrainer

_PLAIN_SECONDS = 15
"""Seconds between two lines if the output is no terminal."""


class ProgressLine(TrainerCallback):
    """A bar with loss, real tokens/s, memory and time left; without a terminal, plain lines now and then."""

    def __init__(self, trainer: ThinkTrainer, console: Console) -> None:
        self._trainer = trainer
        self._console = console
        columns = ("[bold]train", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=console)
        self._task = self._bar.add_task("train", total=None, facts="")
        self._start = (0, 0.0, 0)  # step, monotonic seconds and tokens when this process began
        self._printed = time.monotonic()

    def __enter__(self) -> ProgressLine:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._start = (state.global_step, time.monotonic(), self._trainer.meter.tokens)
        self._bar.update(self._task, total=state.max_steps, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if "loss" not in logs:
            return
        step, began, tokens = self._start
        seconds = max(time.monotonic() - began, 1e-9)
        rate = (self._trainer.meter.tokens - tokens) / seconds
        learnt = f"loss {logs['loss']:.3f}"
        if "token_accuracy" in logs:
            learnt += f" · {logs['token_accuracy']:.1%} of tokens right"
        if "rl/reward" in logs:
            learnt = f"reward {logs['rl/reward']:.3f} · {logs['rl/accuracy']:.0%} right"
        facts = f"{learnt} · {rate:,.0f} tokens/s · {peak_memory_gib():.1f} GiB"
        self._bar.update(self._task, completed=state.global_step, facts=facts)
        if not self._console.is_terminal and time.monotonic() - self._printed > _PLAIN_SECONDS:
            self._printed = time.monotonic()
            left = seconds / max(1, state.global_step - step) * (state.max_steps - state.global_step)
            self._console.print(
                f"step {state.global_step}/{state.max_steps} · {facts} · {left:.0f} s left", highlight=False
            )
