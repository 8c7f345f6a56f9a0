"""Weights in the number format that they are stored in, and whether they were stored as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.errors import ModelError
from thinktune.models.folder import check_model_folder, stored_dtype

if TYPE_CHECKING:
    import torch


def plain_dtype(folder: Path) -> torch.dtype | None:
    """Return the dtype that the weights of a model folder are stored in; None: they are quantised."""
    import torch

    known = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    return known.get(stored_dtype(check_model_folder(folder)))


def cast_weights(model: Any, dtype: torch.dtype) -> None:
    """Cast the weights only: `model.to(dtype)` would also round buffers, such as rotary frequencies.

    Weights that transformers holds in float32 in any model of the class (routers of experts) stay in it.
    """
    import torch

    wide = [re.compile(part.replace("*", ".*")) for part in getattr(model, "_keep_in_fp32_modules_strict", None) or ()]
    for name, weight in model.named_parameters():
        if weight.is_floating_point():
            stays = any(part.search(name) for part in wide)
            weight.data = weight.data.to(torch.float32 if stays else dtype)


def sums_of_bits(model: Any) -> dict[str, int]:
    """Return for each weight the sum of its bits as integers, also for a tied head."""
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(weight.detach().contiguous().view(integers[weight.element_size()]).sum(dtype=torch.int64))
        for name, weight in model.named_parameters(remove_duplicate=False)
    }


def require_saved(expected: dict[str, int], found: dict[str, int]) -> None:
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ModelError(
            f"the saved model, loaded again, has {len(wrong)} other weights than were saved, among them {wrong[0]}",
            hint="no folder was written: an adapter can be used unmerged, as infer --unmerged does; please report this",
        )
