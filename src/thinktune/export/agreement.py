"""Agreement of two ways of running a model: their weights element by element, their predictions relative to the
adapter's effect.

Rounding is no difference between two models, and a small adapter makes no large one. So each gap is held against the
effect of the adapter, the gap between it and its base; and the weights, where no noise of any arithmetic is in the way,
have to be the sum of base and adapter to the last bit that their number format has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thinktune.models.device import free_memory
from thinktune.models.folder import check_model_folder, stored_dtype

if TYPE_CHECKING:
    import torch

    from thinktune.models import Resolved

TOP = 20
SUM_BOUND = 0.01
"""Of the adapter's effect: how far base and adapter summed in float32 may be from the two side by side. Correct sums
stay below a thousandth."""
_NOISE = {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.005}
"""What rounding in computing leaves of logits, in parts of their mean size: gaps below are not judged."""
_TOLERANCE = 2.0**-18
"""Error of a weight that the order of additions and divisions in float32 may cause before it is rounded."""


@dataclass(frozen=True)
class Gap:
    """The gap between two ways of running a model.

    Attributes:
        mean, largest: differences, absolute.
        agreement: share of positions at which both would choose the same token.
        positions: number of compared positions.
    """

    mean: float
    largest: float
    agreement: float
    positions: int


def comparison_dtype(resolved: Resolved, device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return float32 if a model in it (and the work on it) surely fits into free memory, else `dtype`."""
    import torch

    if resolved.gguf:
        parameters = (resolved.folder / resolved.gguf).stat().st_size  # a byte each: packed weights take less
    else:
        files = check_model_folder(resolved.folder)
        width = {"F32": 4, "F64": 8, "F8_E4M3": 1, "U8": 0.5}.get(stored_dtype(files), 2)
        parameters = int(sum(file.stat().st_size for file in files) / width)
    return torch.float32 if 1.5 * 4 * parameters < free_memory(device) else dtype


def gap_of(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Gap:
    """Measure the gap between logits, or log-probabilities: [positions, tokens] a prompt."""
    gaps = [(first - second).abs() for first, second in zip(one, other, strict=True)]
    same = [first.argmax(-1) == second.argmax(-1) for first, second in zip(one, other, strict=True)]
    positions = sum(len(gap) for gap in gaps)
    return Gap(
        mean=sum(float(gap.mean(-1).sum()) for gap in gaps) / positions,
        largest=max(float(gap.max()) for gap in gaps),
        agreement=sum(int(equal.sum()) for equal in same) / positions,
        positions=positions,
    )


def allowed(effect: float, logits: Sequence[torch.Tensor], dtype: torch.dtype) -> float:
    """Return the largest mean gap of two correct ways of computing the same logits, if the adapter makes `effect`.

    In 16 bits, rounding on two ways may be as large as the effect itself: there only more than that is an error.
    """
    import torch

    size = sum(float(each.abs().mean()) for each in logits) / len(logits)
    part = SUM_BOUND if dtype == torch.float32 else 1.0
    return part * effect + noise(dtype) * size


def noise(dtype: torch.dtype) -> float:
    return _NOISE[str(dtype).removeprefix("torch.")]


def wrong_weights(
    expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], *, rounded: bool
) -> Iterator[tuple[str, float]]:
    """Name the weights that differ from the expected ones, each with the share of its differing elements.

    Args:
        expected: the sums, in float32; or, where `rounded`, in the dtype of `found` already.
        found: the stored weights.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected or expected[name].shape != found[name].shape:
            yield name, 1.0
        elif (share := _share_apart(expected[name], found[name].to(expected[name].device), rounded)) > 0:
            yield name, share


def _share_apart(sums: torch.Tensor, stored: torch.Tensor, rounded: bool) -> float:
    """Return the share of elements of `stored` that `sums`, rounded to nearest, cannot have given.

    An element is right if its sum lies no further than half a step of the number format away, plus the rounding of
        float32 itself. Sums that were rounded already may be a whole step away, in one element of 500: near the middle.
    """
    import torch

    if not stored.is_floating_point():
        return float((sums != stored).float().mean())
    if torch.equal(sums.to(stored.dtype), stored) and torch.isfinite(stored).all():
        return 0.0  # as nearly always; the rest takes ten times as long
    wide, exact = stored.float(), sums.float()
    away = (wide - exact).abs()
    # Where an exponent changes the step is smaller on one side: rounding used that of the larger of the two.
    step = _step(torch.maximum(wide.abs(), exact.abs()), stored.dtype)
    if rounded:
        apart = away > 1.01 * step
        if float((away > 0).float().mean()) > 0.002:
            apart |= away > 0
    else:
        slack = _TOLERANCE * (exact.abs() + exact.square().mean().sqrt())
        apart = away > 0.5 * step + slack
    return float((apart | ~torch.isfinite(wide)).float().mean())


def _step(size: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the distance of neighbouring numbers of a dtype at a (positive) size; float32's counts in `_TOLERANCE`."""
    import torch

    limits = torch.finfo(dtype)
    if dtype == torch.float32:
        return torch.zeros_like(size)
    exponent = torch.frexp(size.clamp_min(limits.smallest_normal)).exponent - 1
    return torch.ldexp(torch.full_like(size, limits.eps), exponent)


def folder_digest(folder: Path) -> str:
    """Digest every byte of a model's weights and its config: samples would miss a single layer."""
    import hashlib

    from thinktune.models.folder import sha256

    files = [*check_model_folder(folder), folder / "config.json"]
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
