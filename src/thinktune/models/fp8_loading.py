"""Loading into fp8: each weight is quantised as it is read, so that no device has to hold the model in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from thinktune.models.fp8_linear import Fp8Linear

METHOD = "thinktune_fp8"


@register_quantization_config(METHOD)
class Fp8Config(QuantizationConfigMixin):
    """Asks `from_pretrained` for `Fp8Linear` in the place of every linear layer but the head."""

    def __init__(self) -> None:
        self.quant_method = METHOD


@register_quantizer(METHOD)
class Fp8Quantizer(HfQuantizer):
    """Leaves nothing of itself in the model that it has loaded."""

    is_trainable = True

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        place, _, name = param_name.rpartition(".")
        module = model.get_submodule(place)
        return name == "weight" and type(module) is torch.nn.Linear and module is not model.get_output_embeddings()

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        return 1 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantise()

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def postprocess_model(self, model: Any, **_: Any) -> None:
        self.remove_quantization_config(model)
        # transformers compares shapes only where nothing is quantised.
        for name, parameter in model.named_parameters():
            if parameter.shape != self._shapes.get(name, parameter.shape):
                raise ValueError(f"{name} is {list(parameter.shape)}, and should be {list(self._shapes[name])}")

    def is_serializable(self) -> bool:
        return False


class _Quantise(ConversionOps):
    def convert(self, input_dict: dict[str, Any], *_: Any, model: Any, **__: Any) -> dict[str, Any]:
        """Put an `Fp8Linear` in the place of each weight's layer, and return the weights that it holds."""
        return {name: _quantised(name, value, model) for name, value in input_dict.items()}


def _quantised(name: str, value: Any, model: Any) -> torch.nn.Parameter:
    place = name.rpartition(".")[0]
    parent, _, child = place.rpartition(".")
    linear = model.get_submodule(place)
    linear.weight = torch.nn.Parameter(value[0] if isinstance(value, list) else value, requires_grad=False)
    layer = Fp8Linear(linear)
    layer._is_hf_initialized = True  # else transformers would draw its weights anew
    setattr(model.get_submodule(parent), child, layer)
    return layer.weight
