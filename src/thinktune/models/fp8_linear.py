"""Frozen linear layers in 8 bits: e4m3 weights with one float32 scale an output row, quantised once, after loading.

Half the memory of bfloat16, and on GPUs with fp8 tensor cores twice its speed (fused/ multiplies them directly).
Anywhere else, and without fused/, the weights are dequantised for each product.
"""

from __future__ import annotations

from typing import Any

import torch

_LARGEST = 448.0  # of e4m3


class Fp8Linear(torch.nn.Linear):
    """A frozen linear layer that holds its weights as bytes.

    Attributes:
        weight: uint8 [out, in], the bits of e4m3 numbers. (Not of a floating dtype, so that nothing that casts a
            model's floating weights, or makes an adapter in its base's dtype, touches them.)
        weight_scale: float32 [out]; weight = e4m3 * scale.
    """

    weight_scale: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scale = (weight.abs().amax(1).float() / _LARGEST).clamp_(min=1e-12)
        rows = (weight / scale[:, None]).clamp_(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(rows.view(torch.uint8), requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def dense_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the dequantised weights, [out, in]."""
        return (self.weight.view(torch.float8_e4m3fn).float() * self.weight_scale[:, None]).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _Product.apply(x, self)
        return out


class _Product(torch.autograd.Function):
    """The product with a dequantised weight, which the backward pass dequantises again: autograd would keep it for
    every layer, and the model would take more memory than in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Fp8Linear) -> torch.Tensor:
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.dense_weight(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None]:
        return g @ ctx.layer.dense_weight(g.dtype), None


def quantise_to_fp8(model: Any) -> None:
    """Replace every linear layer of a model but its head, one after the other, so that no second copy is held."""
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child is not head:
                setattr(parent, name, Fp8Linear(child))
                child.weight = None  # freed now, not when the last name of it goes
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the freed bfloat16 weights leave gaps that nothing of the training fits into


def has_quantised_weights(model: torch.nn.Module) -> bool:
    """Return whether the linear layers hold quantised weights: no adapter can be merged into those."""
    return any(
        isinstance(module, torch.nn.Linear) and not module.weight.is_floating_point() for module in model.modules()
    )
