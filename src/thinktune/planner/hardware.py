"""Memory, rates of matrix products and memory bandwidth of devices, for the plan.

Named GPUs have published values; those of the present machine are measured in a fraction of a second.
"""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from thinktune.errors import UsageError

if TYPE_CHECKING:
    import torch

GIB = 2**30
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hardware:
    """A device to plan for.

    Attributes:
        memory: bytes that a training may use.
        bf16: FLOP/s of dense matrix products in bfloat16 (on a CPU: in the dtype it trains in).
        fp8: the same in 8-bit floating point; 0 before Hopper, for which fused/ has no such products.
        bandwidth: bytes/s of its memory.
        source: origin of the figures.
        rated: whether the rates are those of this device; else they only tell which of two ways is faster.
        linked: whether several of them in a host are joined by NVLink.
    """

    name: str
    memory: int
    bf16: float
    fp8: float
    bandwidth: float
    source: str
    kind: str = "cuda"
    rated: bool = True
    linked: bool = False


_LINKED = ("B200", "H200", "H100", "A100", "A100 40GB")
"""Kinds that are sold on boards with NVLink between them."""

CONTEXT = int(0.6 * GIB)
"""Bytes of GPU memory for the driver, the CUDA context and the libraries' kernels, before any tensor."""


def _gpu(name: str, gib: float, bf16: float, fp8: float, gigabytes: float, source: str) -> Hardware:
    memory = int(gib * GIB) - CONTEXT
    return Hardware(name, memory, bf16 * 1e12, fp8 * 1e12, gigabytes * 1e9, source, linked=name in _LINKED)


_TABLE = (
    # name, GiB, TFLOP/s dense with float32 accumulation in bf16 and fp8, GB/s, source
    _gpu("B200", 180, 2250, 4500, 7700, "NVIDIA HGX B200 data sheet"),
    _gpu("H200", 141, 989, 1979, 4800, "NVIDIA H200 data sheet"),
    _gpu("H100", 80, 989, 1979, 3350, "NVIDIA H100 data sheet, SXM"),
    _gpu("H100 NVL", 94, 835, 1671, 3900, "NVIDIA H100 data sheet, NVL"),
    _gpu("H100 PCIe", 80, 756, 1513, 2000, "NVIDIA H100 PCIe data sheet"),
    _gpu("A100", 80, 312, 0, 2039, "NVIDIA A100 data sheet, 80 GB SXM"),
    _gpu("A100 PCIe", 80, 312, 0, 1935, "NVIDIA A100 data sheet, 80 GB PCIe"),
    _gpu("A100 40GB", 40, 312, 0, 1555, "NVIDIA A100 data sheet, 40 GB"),
    _gpu("A30", 24, 165, 0, 933, "NVIDIA A30 data sheet"),
    _gpu("A40", 48, 150, 0, 696, "NVIDIA A40 data sheet"),
    _gpu("A10", 24, 125, 0, 600, "NVIDIA A10 data sheet"),
    _gpu("L40S", 48, 362, 0, 864, "NVIDIA L40S data sheet"),
    _gpu("L40", 48, 181, 0, 864, "NVIDIA L40 data sheet"),
    _gpu("L4", 24, 121, 0, 300, "NVIDIA L4 data sheet"),
    _gpu("RTX A6000", 48, 155, 0, 768, "NVIDIA Ampere GA102 white paper"),
    _gpu("RTX 6000 Ada", 48, 364, 0, 960, "NVIDIA RTX 6000 Ada data sheet"),
    _gpu("RTX 5090", 32, 209.5, 419, 1792, "NVIDIA RTX Blackwell white paper"),
    _gpu("RTX 5080", 16, 112.6, 225.1, 960, "NVIDIA RTX Blackwell white paper"),
    _gpu("RTX 4090", 24, 165.2, 0, 1008, "NVIDIA Ada white paper"),
    _gpu("RTX 4080", 16, 97.5, 0, 717, "NVIDIA Ada white paper"),
    _gpu("RTX 3090", 24, 71, 0, 936, "NVIDIA Ampere GA102 white paper"),
    _gpu("RTX 3080", 10, 59.5, 0, 760, "NVIDIA Ampere GA102 white paper"),
)


def find_gpu(text: str) -> Hardware:
    """Find a GPU by a name such as `h100` or `rtx4090`, or a size such as `16GiB`.

    Raises:
        UsageError: neither.

    >>> find_gpu("rtx4090").name
    'RTX 4090'
    """
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gib)?", text.strip(), re.IGNORECASE):
        # Cards are sold in GB and have as many GiB. Rates of a card of this kind, to rank one way against another.
        memory = int(float(size[1]) * GIB) - CONTEXT
        if memory <= 0:
            raise UsageError(f"--gpu {text}: the driver alone takes {CONTEXT / GIB:.1f} GiB")
        return replace(find_gpu("rtx4090"), name=f"a GPU of {size[1]} GiB", memory=memory, source="", rated=False)
    if found := next((gpu for gpu in _TABLE if _key(gpu.name) == _key(text)), None):
        return found
    known = ", ".join(_key(gpu.name) for gpu in _TABLE)
    raise UsageError(f"--gpu {text}: not known", hint=f"a size such as 16GiB, or one of {known}")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def hardware_here(device: torch.device, dtype: torch.dtype, limit: float | None = None) -> Hardware:
    """Describe the device at hand: the memory that is free or ours already, and published rates or else measured ones.

    Args:
        limit: GiB to plan with at most.
    """
    import psutil
    import torch

    from thinktune.models.device import cpu_name, free_memory, multiplies_fp8

    ours = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    free = free_memory(device) + ours
    memory = min(free, int(limit * GIB)) if limit else free
    if device.type == "cpu":
        rate, bandwidth = _measure(device, dtype)
        return Hardware(cpu_name(), memory, rate, 0.0, bandwidth, "measured just now", kind="cpu")
    name = torch.cuda.get_device_name(device)
    if (known := _published(name, torch.cuda.get_device_properties(device).total_memory)) is not None:
        return replace(known, name=name, memory=memory)
    rate, bandwidth = _measure(device, dtype)
    fp8 = 2 * rate if multiplies_fp8(device) else 0.0
    return Hardware(name, memory, rate / _SHARE_OF_PEAK, fp8 / _SHARE_OF_PEAK, bandwidth, "measured just now")


_SHARE_OF_PEAK = 0.72
"""Share of the published rate that large products reach: the cost model starts from published rates."""


def _published(name: str, total: int) -> Hardware | None:
    """Return the entry for a device name of CUDA's, such as "NVIDIA H100 80GB HBM3": the longest that is in it."""
    key = _key(name)
    fitting = [gpu for gpu in _TABLE if _key(gpu.name) in key and abs(total / (gpu.memory + CONTEXT) - 1) < 0.15]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None)


_MEASURED = 0.15
"""Seconds for which each rate of a CPU is measured: its best moment is not what a training gets."""
_LEFT = 0.7
"""Share of a CPU's time below which it is said that others have the rest."""


@cache
def _measure(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measure FLOP/s of matrix products and bytes/s, once in a process.

    Of a GPU by the best of three, and a copy within its memory. Of a CPU by the median, with sizes of the models that
    are trained there and operations that training has most of, in processor time: what other programs do in this moment
    says nothing about the hour of a training, and is said beside it.
    """
    import torch

    on_gpu = device.type == "cuda"
    rows, width, wide = (8192, 4096, 4096) if on_gpu else (512, 768, 2048)
    x, weight = (torch.ones(size, width, device=device, dtype=dtype) for size in (rows, wide))
    y = x @ weight.t()
    activation = torch.ones(2**25 if on_gpu else 2**22, device=device, dtype=dtype)  # none that a CPU's caches hold
    other = torch.float32 if dtype != torch.float32 else torch.float64
    left: list[float] = []

    def multiply() -> object:
        return (x @ weight.t(), y @ weight)

    def move() -> object:
        return activation.clone() if on_gpu else (activation * activation, activation.to(other))

    def seconds(work: Callable[[], object]) -> float:
        if on_gpu:
            return min(_seconds_on_gpu(work, device) for _ in range(4))  # the first is to warm up
        work()
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < 5 or sum(times) < _MEASURED:
            before = time.process_time()
            work()
            times.append((time.process_time() - before) / torch.get_num_threads())
        left.append(sum(times) / (time.perf_counter() - start))
        return statistics.median(times)

    moved = 2 * activation.nbytes if on_gpu else 4 * activation.nbytes + activation.numel() * other.itemsize
    rates = 4 * rows * width * wide / seconds(multiply), moved / seconds(move)
    if left and min(left) < _LEFT:
        logger.warning(
            f"only {min(left):.0%} of this CPU's time was to be had while its speed was measured: "
            "the plan's tokens/s are those without other programs"
        )
    return rates


def _seconds_on_gpu(work: Callable[[], object], device: torch.device) -> float:
    import torch

    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
