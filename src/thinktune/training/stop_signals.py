"""A clean stop: Ctrl-C and SIGTERM end a training after the running step, with a checkpoint."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thinktune.training.ranks import here


class StopSignals:
    """Lets the first Ctrl-C or SIGTERM ask for a stop after the running step; a second Ctrl-C stops at once.

    Attributes:
        requested: of this process.
        agreed: how many ranks were asked to stop before the last step was made, on the device; None: there are no
            others.
    """

    def __init__(self) -> None:
        self.requested = False
        self.name = ""
        self.agreed: torch.Tensor | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def due(self) -> bool:
        """Whether to stop now, on all ranks alike."""
        return self.requested if self.agreed is None else bool(self.agreed)

    def callback(self) -> TrainerCallback:
        """Return the callback that saves a checkpoint and ends the training loop."""
        return _Stopper(self)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        if here().is_first:
            print(f"\n{self.name}: saving a checkpoint after this step", file=sys.stderr)


class _Stopper(TrainerCallback):
    def __init__(self, stop: StopSignals) -> None:
        self._stop = stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stop.due:
            control.should_save = True
            control.should_training_stop = True
