"""The most memory that a training has had in use."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def peak_memory_gib() -> float:
    """Return the peak of memory so far, in GiB: allocated on the GPU if one is in use, else resident."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def reset_peak_memory() -> None:
    """Reset the peak, if the system can (CUDA, Linux): this process may have trained before."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:  # another system, or not permitted: then the peak is that of the whole process
        return
