"""Models that are published with quantised weights only: these are dequantised at loading, and trained like others.

gpt-oss is in MXFP4 (4-bit numbers, a scale for 32 of them), Ministral 3 and DeepSeek V3 in FP8 (a scale a tensor or
block). transformers' kernels for both have no derivative. Every number of MXFP4 is one of bfloat16; of FP8, a number
times its scale is rounded to the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinktune.errors import ModelError
from thinktune.models.folder import read_json

SCALES = ("_blocks", "_scales", "_scale_inv", ".activation_scale", ".input_scale")
"""Ends of the names of tensors that only a quantised checkpoint has."""


def dequantised_method(folder: Path) -> str | None:
    """Return the number format of a model folder whose weights are dequantised at loading: `mxfp4`, `fp8` or None."""
    return method_of(read_json(folder / "config.json"))


def method_of(config: Mapping[str, Any]) -> str | None:
    """Return the same of the contents of a config.json."""
    method = (config.get("quantization_config") or {}).get("quant_method")
    return method if method in ("mxfp4", "fp8") else None


def dequantising(method: str) -> Any:
    """Return transformers' configuration that dequantises weights of a number format as they are read."""
    from transformers import FineGrainedFP8Config, Mxfp4Config

    return Mxfp4Config(dequantize=True) if method == "mxfp4" else FineGrainedFP8Config(dequantize=True)


def forget_scales(model: Any, dtype: Any) -> None:
    """Let a model that was dequantised at loading be saved as it is now: transformers would undo all that it did.

    Experts of MXFP4 come in bfloat16, whatever was asked for; where that was the wider float32, they are widened.
    """
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    for weight in model.parameters() if dtype == torch.float32 else ():
        weight.data = weight.data.float()
    renamed = [each for each in model._weight_conversions if not isinstance(each, WeightConverter)]
    own = get_model_conversion_mapping(model, add_legacy=False)
    model._weight_conversions = renamed + [each for each in own if isinstance(each, WeightConverter)]


def require_shapes(model: Any) -> None:
    """Check that the weights that bitsandbytes packed have the sizes of their layers, which transformers does not.

    Raises:
        ModelError: the first that has others.
    """
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and type(weight).__module__.startswith("bitsandbytes"):
            state = getattr(weight, "quant_state", None)
            found = tuple(weight.shape if state is None else state.shape)
            if found != (module.out_features, module.in_features):
                raise ModelError(
                    f"{name}.weight is {list(found)}, and should be {[module.out_features, module.in_features]}",
                    hint="config.json and the weights do not belong together",
                )
