"""Loading into int8: each weight is quantised on the device that it was read to.

transformers takes it from there to main memory and back first, which was most of the time of loading.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.functional import int8_vectorwise_quant
from bitsandbytes.nn import Int8Params
from transformers.integrations.bitsandbytes import Bnb8bitQuantize
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer


def quantise_where_weights_are() -> None:
    """Register the quantiser below in place of transformers', for this process."""
    AUTO_QUANTIZER_MAPPING["bitsandbytes_8bit"] = Int8Quantizer


class Int8Quantizer(Bnb8BitHfQuantizer):
    """transformers' own, but for the way of the weights."""

    def get_quantize_ops(self) -> Bnb8bitQuantize:
        kept_whole = self.quantization_config.llm_int8_has_fp16_weight
        return super().get_quantize_ops() if kept_whole else _Quantise(self)


class _Quantise(Bnb8bitQuantize):
    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any, **__: Any) -> dict[str, Any]:
        """Return each weight in int8, with its scales, as bitsandbytes makes them of weights in main memory."""
        return {name: _quantised(name, value, model) for name, value in input_dict.items()}


def _quantised(name: str, value: Any, model: Any) -> Int8Params:
    weight: torch.Tensor = value[0] if isinstance(value, list) else value
    if issubclass(model.get_submodule(name.rpartition(".")[0]).source_cls, Conv1D):
        weight = weight.T
    packed, scales, _ = int8_vectorwise_quant(weight.contiguous().to(torch.float16))
    return Int8Params(packed, requires_grad=False, CB=packed, SCB=scales)
