"""The device and the dtype that a model runs on, and their description in run.json."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.errors import DeviceError
from thinktune.imports import uncollected

if TYPE_CHECKING:
    import torch


class _Loading:
    """Held while a model is made: transformers switches weight tying off meanwhile, for all models of the process, and
    for good where two are loaded at once.

    Layers on the meta device, which hold no numbers, are left as they are: to draw them takes as long as real ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resets = ExitStack()

    def __enter__(self) -> None:
        self._lock.acquire()
        from torch.nn import Embedding, Linear

        self._resets.enter_context(uncollected())
        for kind in (Embedding, Linear):
            self._resets.enter_context(_empty_left_empty(kind))

    def __exit__(self, *exc: object) -> None:
        self._resets.close()
        self._lock.release()


@contextmanager
def _empty_left_empty(kind: Any) -> Iterator[None]:
    reset = kind.reset_parameters

    def reset_if_there(layer: Any) -> None:
        if not layer.weight.is_meta:
            reset(layer)

    kind.reset_parameters = reset_if_there
    try:
        yield
    finally:
        kind.reset_parameters = reset


LOADING = _Loading()


def choose_device(name: str) -> torch.device:
    """Return the device for `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: an unknown name, or hardware that is not there.
    """
    import torch

    if name == "auto":
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"load.device: {name!r} is not a device", hint="use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"load.device is {name}, and PyTorch sees no CUDA device here ({_why_no_cuda()})",
            hint="set load.device=auto or cpu; `thinktune doctor` says more",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"load.device is {name}, and there are {torch.cuda.device_count()} CUDA devices, from cuda:0")
    return _own_gpu() if device.type == "cuda" and device.index is None else device


def choose_dtype(device: torch.device, name: str) -> torch.dtype:
    """Return the dtype for `auto`, `bfloat16` or `float32`: `auto` is bfloat16 on hardware that multiplies it fast."""
    import torch

    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return True for GPUs since Ampere and CPUs with AVX512-BF16 or AMX, on which bfloat16 is about twice as fast as
    float32.

    Elsewhere it works too, emulated and slower than float32.
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def multiplies_fp8(device: torch.device) -> bool:
    """Return True for Hopper and later. (Ada has fp8, but torch's row-scaled product does not run on all of it.)"""
    import torch

    return device.type == "cuda" and bool(torch.cuda.get_device_capability(device) >= (9, 0))


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Describe the machine for run.json; memory in GiB."""
    import torch

    facts: dict[str, Any] = {
        "device": str(device),
        "cpu": cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "memory_gib": round(total_memory() / 2**30, 1),
        "bfloat16": multiplies_bfloat16(device),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": gpu.name,
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gib": round(gpu.total_memory / 2**30, 1),
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "cuda": torch.version.cuda,
        }
    return facts


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """Describe the hardware in one line, such as `AMD EPYC, 2 threads, 23.4 GiB, bfloat16`."""
    facts = describe_hardware(device)
    number = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{facts['gpu']} ({device}), {facts['gpu_memory_gib']} GiB, {number}"
    return f"{facts['cpu']}, {facts['cpu_threads']} threads, {facts['memory_gib']} GiB, {number}"


def cpu_name() -> str:
    """Return the processor's name, as far as this system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def total_memory() -> int:
    """Return the bytes of main memory."""
    import psutil

    return int(psutil.virtual_memory().total)


def free_memory(device: torch.device) -> int:
    """Return the free bytes of the device as far as the system tells; of a GPU's, those that this process may have."""
    import psutil
    import torch

    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_allocated(device)
        kept = torch.cuda.memory_reserved(device) - ours  # by the allocator, for what comes next
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - ours
        return int(max(0, min(free + kept, allowed)))
    return int(psutil.virtual_memory().available)


def _own_gpu() -> torch.device:
    """Return the GPU of this process: under torchrun the one of its local rank."""
    import torch

    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def _why_no_cuda() -> str:
    import torch

    return "this PyTorch is built for CPU" if torch.version.cuda is None else "no driver or no GPU answers"
