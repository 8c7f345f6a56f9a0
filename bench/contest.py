"""What all contestants of bench/train.py share: the task, the result, and how time and memory are taken."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from workload import TARGETS, Workload

LEARNING_RATE, MAX_NORM = 1e-4, 1.0
WARM_UP = 3  # steps that no speed is taken from


@dataclass
class Task:
    """What to do, as bench/train.py asks for it."""

    name: str
    shape: str
    workload: Workload
    rank: int
    limit: float | None
    started: float
    folder: str
    checkpointing: str = "auto"
    dropout: float = 0.0
    optimizer: str = "adamw"  # of ours; the peers step with torch's
    targets: Sequence[str] = TARGETS
    fused: bool = True


@dataclass
class Result:
    """What came of it; times in seconds, memory in GiB."""

    label: str = ""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    first_step: float = 0.0
    allocated: float = 0.0
    reserved: float = 0.0
    loading: float = 0.0  # the peak before training, where it was seen
    rate: float = 0.0
    predicted: float | None = None
    predicted_rate: float | None = None
    parts: dict[str, int] = field(default_factory=dict)  # of what was predicted, bytes
    note: str = ""

    def finish(self) -> Result:
        self.allocated, self.reserved = peaks()
        if self.times and not self.rate:
            rates = [count / seconds for count, seconds in zip(self.tokens, self.times, strict=True)]
            self.rate = median(rates[WARM_UP:] or rates[-1:])
        return self


class Missing(Exception):
    """A contestant that is not installed, or cannot do this."""


def peaks() -> tuple[float, float]:
    import torch

    if not torch.cuda.is_available():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 0.0
    return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30


def begin_training(limit: float | None) -> None:
    """Count and limit memory from here on: loading may need more, for a moment, than training.

    Args:
        limit: GiB that the allocator may reserve, fragments included.
    """
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        share = 1.0 if limit is None else limit * 2**30 / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
