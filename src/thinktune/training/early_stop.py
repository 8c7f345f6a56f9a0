"""Early stopping: after each evaluation of held-out examples, whether to go on, and whose weights are kept.

Both are decided from the evaluations so far alone, which lie in every checkpoint: a resumed training decides as one
that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thinktune.config import Config, Stop
from thinktune.data import Prepared
from thinktune.errors import ConfigError, RunFolderError
from thinktune.training.checkpoints import damage
from thinktune.training.ranks import by_first

_FIELDS = {"loss": "eval_loss", "token_accuracy": "eval_token_accuracy"}


@dataclass(frozen=True)
class Verdict:
    """A view of the evaluations so far.

    Attributes:
        best: the logged evaluation with the best value, the first of equal ones.
        idle: evaluations since the last one that improved by more than `min_delta`.
        ends: whether these are enough.
    """

    best: Mapping[str, Any]
    idle: int
    ends: bool

    @property
    def step(self) -> int:
        return int(self.best["step"])


class EarlyStop:
    """The decisions of `train.stop` over a trainer's logged evaluations."""

    def __init__(self, settings: Stop) -> None:
        self.settings = settings
        self.field = _FIELDS[settings.monitor]

    def judge(self, history: Sequence[Mapping[str, Any]], until: int | None = None) -> Verdict | None:
        """Judge the logged evaluations, in their order; None: there are none.

        Args:
            history: `TrainerState.log_history`.
            until: leave out those after this step.
        """
        seen = [line for line in history if self.field in line and (until is None or line["step"] <= until)]
        if not seen:
            return None
        best = reference = seen[0]
        idle = 0
        for line in seen[1:]:
            if self._gain(line, best) > 0:
                best = line
            if self._gain(line, reference) > self.settings.min_delta:
                reference, idle = line, 0
            else:
                idle += 1
        return Verdict(best, idle, ends=idle >= self.settings.patience)

    def kept(self, history: Sequence[Mapping[str, Any]], steps: set[int]) -> set[int]:
        """Return the steps of the checkpoints to keep: the given ones, and the best as of each, on which a training
        that is resumed from it depends."""
        verdicts = [self.judge(history, until=step) for step in steps]
        return {*steps, *(verdict.step for verdict in verdicts if verdict)}

    def _gain(self, line: Mapping[str, Any], before: Mapping[str, Any]) -> float:
        gain = float(line[self.field]) - float(before[self.field])
        return -gain if self.settings.monitor == "loss" else gain

    def line(self, verdict: Verdict) -> str:
        """Say the best evaluation so far."""
        value = verdict.best[self.field]
        told = f"{value:.4f}" if self.settings.monitor == "loss" else f"{value:.2%}"
        return f"best held-out {self.settings.monitor.replace('_', ' ')} {told} after step {verdict.step}"


class EarlyStopCallback(TrainerCallback):
    """Saves a checkpoint of each best evaluation, and ends the training when it no longer improves."""

    def __init__(self, early: EarlyStop, console: Console) -> None:
        self._early = early
        self._console = console

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        verdict = self._early.judge(state.log_history)
        if verdict is not None and verdict.step != state.global_step:
            by_first(lambda: require_whole(Path(args.output_dir), verdict.step))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        verdict = self._early.judge(state.log_history)
        assert verdict is not None
        if verdict.step == state.global_step:
            control.should_save = True
        if verdict.ends and state.global_step < state.max_steps:
            control.should_training_stop = True
            self._console.print(
                f"stopping after step {state.global_step} of {state.max_steps}: {self._early.line(verdict)}, and "
                f"{verdict.idle} evaluations without improvement",
                highlight=False,
            )


def require_whole(checkpoints: Path, step: int) -> Path:
    """Find the checkpoint of a step.

    Raises:
        RunFolderError: it is missing or damaged.
    """
    folder = checkpoints / f"checkpoint-{step}"
    if problem := damage(folder):
        raise RunFolderError(
            f"the best checkpoint is not whole: {problem}", hint="bring its files back, or start anew with --overwrite"
        )
    return folder


def check_evaluated(config: Config, prepared: Prepared) -> None:
    """Make sure that `train.stop` has something to go by: an evaluation before the end.

    Raises:
        ConfigError: it has not.
    """
    train = config.train
    if train.stop is None or train.eval_every is None:
        return
    an_epoch = math.ceil(len(prepared.packs) / (train.batch_size * train.accumulation))
    steps = min(train.max_steps or math.inf, math.ceil(train.epochs * an_epoch))
    if train.eval_every >= steps:
        raise ConfigError(
            f"train.stop: training has {steps} optimizer steps, and train.eval_every={train.eval_every} evaluates none "
            "before the last",
            hint=f"train.eval_every={max(1, int(steps) // 10)}, say",
        )
