"""What a person sees of a training and what stays of it: a line, metrics.jsonl, loss.png, a clean stop."""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thinktune.errors import Diverged
from thinktune.files import write_text
from thinktune.records import MetricsLine, read_records
from thinktune.training.trainer import ThinkTrainer

_PLAIN_SECONDS = 15
"""Between two lines where the output is no terminal."""


def peak_memory_gib() -> float:
    """Most memory in use so far, in GiB: allocated on the GPU where one is in use, else resident in main memory."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak_memory() -> None:
    """Forget earlier peaks, where the system lets us (CUDA, Linux): this process may have trained before."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # another system, or not permitted: then the peak is that of the whole process
        return


class MetricsFile:
    """metrics.jsonl: one line a logged step.

    `step, epoch, loss` (nats a trained token since the last line) `, grad_norm, learning_rate, tokens, trained_tokens`
    depend on config and data alone; `tokens_per_second` (since the last line) and `memory_gib` (peak) on the machine.
    A line with `eval_loss` comes after each evaluation of the held-out loss, one with `eval_accuracy` after each
    evaluation by generation (see eval_callback.py). Lines after `after_step` are cut off: a resumed training
    writes them again.
    """

    def __init__(self, file: Path, *, after_step: int) -> None:
        self._file = file
        self.lines: list[dict[str, Any]] = []
        if file.exists():
            self.lines = [line for line in read_records(file, MetricsLine) if line["step"] <= after_step]
        write_text(file, "".join(json.dumps(line) + "\n" for line in self.lines))

    def append(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def recorder(self, trainer: ThinkTrainer) -> TrainerCallback:
        """The callback that writes a line at each log."""
        return _Recorder(self, trainer)

    def has_eval_at(self, step: int) -> bool:
        return any(line["step"] == step and "eval_loss" in line for line in self.lines)

    def final_loss(self) -> float:
        """The last held-out loss; where nothing is held out, the training loss over the last tenth of the lines."""
        if held_out := [line["eval_loss"] for line in self.lines if "eval_loss" in line]:
            return float(held_out[-1])
        losses = [line["loss"] for line in self.lines if "loss" in line]
        last = losses[-max(1, len(losses) // 10) :]
        return sum(last) / len(last) if last else math.nan


class _Recorder(TrainerCallback):
    def __init__(self, metrics: MetricsFile, trainer: ThinkTrainer) -> None:
        self._metrics = metrics
        self._trainer = trainer
        self._before = (trainer.meter.tokens, trainer.meter.seconds)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        if not state.is_world_process_zero or not ({"loss", "eval_loss", "eval_accuracy"} & set(logs)):
            return
        line: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4)}
        line |= {name: float(logs[name]) for name in ("loss", "grad_norm", "learning_rate") if name in logs}
        for name in ("loss", "grad_norm"):  # before the weights that come of it are saved
            if not math.isfinite(line.get(name, 0.0)):
                raise Diverged(
                    f"training has diverged: in step {state.global_step} the {name} is {line[name]}",
                    hint=f"a train.learning_rate below {args.learning_rate:g}, or more train.warmup_steps; --overwrite",
                )
        line |= {name: value for name, value in logs.items() if name.startswith("eval_")}
        if "loss" in logs:
            meter = self._trainer.meter
            tokens, seconds = meter.tokens - self._before[0], meter.seconds - self._before[1]
            self._before = (meter.tokens, meter.seconds)
            line |= {"tokens": meter.tokens, "trained_tokens": meter.trained_tokens}
            line["tokens_per_second"] = round(tokens / max(seconds, 1e-9), 1)
            line["memory_gib"] = round(peak_memory_gib(), 2)
        self._metrics.append(line)


class ProgressLine(TrainerCallback):
    """One bar with loss, real tokens/s, memory and time left; plain lines now and then where there is no terminal."""

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
        facts = f"loss {logs['loss']:.3f} · {rate:,.0f} tokens/s · {peak_memory_gib():.1f} GiB"
        self._bar.update(self._task, completed=state.global_step, facts=facts)
        if not self._console.is_terminal and time.monotonic() - self._printed > _PLAIN_SECONDS:
            self._printed = time.monotonic()
            left = seconds / max(1, state.global_step - step) * (state.max_steps - state.global_step)
            self._console.print(
                f"step {state.global_step}/{state.max_steps} · {facts} · {left:.0f} s left", highlight=False
            )


class StopSignals:
    """Within, the first Ctrl-C or SIGTERM asks for a stop after the running step; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def callback(self) -> TrainerCallback:
        """The callback that saves a checkpoint and ends the training loop."""
        return _Stopper(self)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        print(f"\n{self.name}: saving a checkpoint after this step", file=sys.stderr)


class _Stopper(TrainerCallback):
    def __init__(self, stop: StopSignals) -> None:
        self._stop = stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stop.requested:
            control.should_save = True
            control.should_training_stop = True
