"""Loading a base that is spread: of each weight, as it is read and quantised, this process keeps its part.

No device and no process ever holds more of the layers than its part and a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from thinktune.models.fp8_loading import METHOD as FP8
from thinktune.models.fp8_loading import Fp8Quantizer
from thinktune.models.sharded_base import ShardedBase

_METHOD = "thinktune_sharded"
_into: list[ShardedBase] = []  # transformers makes quantisers itself, of configs that it copies


@contextmanager
def loading_into(base: ShardedBase) -> Iterator[None]:
    """Let the weights of a model that is loaded within the block go into a sharded base."""
    usual = dict(AUTO_QUANTIZER_MAPPING)
    AUTO_QUANTIZER_MAPPING.update({FP8: _ShardedFp8, "bitsandbytes_4bit": _ShardedNf4})
    _into.append(base)
    try:
        yield
    finally:
        _into.clear()
        AUTO_QUANTIZER_MAPPING.update(usual)


@register_quantization_config(_METHOD)
class ShardedConfig(QuantizationConfigMixin):
    """Asks `from_pretrained` for weights one after another, in the model's own dtype."""

    def __init__(self) -> None:
        self.quant_method = _METHOD


class _Sharding(HfQuantizer):
    """Hands weights, in their last form, to the sharded base."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        (self._base,) = _into

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        super()._process_model_before_weight_loading(model, **kwargs)
        self._base.lay_out(model)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return param_name in self._base or super().param_needs_quantization(model, param_name, **kwargs)

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        if param_name in self._base:
            return 0.0  # their memory is there
        return float(super().param_element_size(model, param_name, param))

    def get_quantize_ops(self) -> ConversionOps:
        return _Keep(super().get_quantize_ops(), self._base)


class _Keep(ConversionOps):
    def __init__(self, before: ConversionOps, base: ShardedBase) -> None:
        self._before, self._base = before, base

    def convert(self, input_dict: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return each weight as the sharded base has it, after another conversion."""
        converted = self._before.convert(input_dict, *args, **kwargs)
        return {
            name: self._base.keep(name, value) if name in self._base else value for name, value in converted.items()
        }


class _AsRead(ConversionOps):
    def convert(self, input_dict: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        """Return frozen parameters."""
        values = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        return {name: torch.nn.Parameter(value, requires_grad=False) for name, value in values.items()}


class _PlainQuantizer(Fp8Quantizer):
    """Quantises nothing, and leaves nothing of itself either."""

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return False

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        return float(param.element_size())

    def get_quantize_ops(self) -> ConversionOps:
        return _AsRead()


@register_quantizer(_METHOD)
class _Sharded(_Sharding, _PlainQuantizer):
    pass


class _ShardedFp8(_Sharding, Fp8Quantizer):
    pass


class _ShardedNf4(_Sharding, Bnb4BitHfQuantizer):
    pass
