"""A frozen linear layer and its low-rank update as one autograd node.

PEFT's own forward casts the input to the adapter's dtype, keeps the dropped-out and the scaled intermediate, and adds
the update in a separate pass over the output. Here the update accumulates into the base product (addmm), the only
saved activations are the input, which the neighbouring projections share, and the rank-wide `input @ A.T`; the frozen
weight gets no gradient. The adapter's master weights stay in the dtype PEFT gave them (float32).

    y  = x W' + b + s (x A') B'             x: [tokens, in], W: [out, in], A: [r, in], B: [out, r]
    gx = g W + s (g B) A,   gA = s (g B)' x,   gB = s g' (x A')
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a_low, b_low = a.to(x.dtype), (b * scaling).to(x.dtype)
        low = rows @ a_low.t()
        out = F.linear(rows, weight, bias).addmm_(low, b_low.t())
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        grad_low = grad @ (b * ctx.scaling).to(grad.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_low, a.to(grad.dtype)).view(ctx.shape)
        grad_a = (grad_low.t() @ rows).to(a.dtype)
        grad_b = (grad.t() @ low).to(b.dtype) * ctx.scaling
        return grad_x, None, None, grad_a, grad_b, None


def fuse_lora(model: PeftModel) -> int:
    """Give every plain LoRA linear of `model` the fused forward; return how many got it.

    Left to PEFT: quantised bases, dropout above 0, variants (DoRA, …), several adapters at once, bias on the adapter.
    """
    fused = 0
    for module in model.modules():
        if isinstance(module, PeftLinear) and is_plain(module):
            module.forward = types.MethodType(_forward, module)
            fused += 1
    return fused


@contextmanager
def low_copies(model: PeftModel) -> Iterator[None]:
    """Hold the matrices of fused adapters in the dtype of their base within the block, where they must not change: to
    cast them takes longer than to use them for one token."""
    fused = [module for module in model.modules() if vars(module).get("forward") and isinstance(module, PeftLinear)]
    for module in fused:
        (name,) = module.lora_A
        dtype, b = module.get_base_layer().weight.dtype, module.lora_B[name].weight
        with torch.no_grad():
            low = module.lora_A[name].weight.to(dtype), (b * module.scaling[name]).to(dtype)
        module.low_copies = low
    try:
        yield
    finally:
        for module in fused:
            del module.low_copies


def is_plain(module: PeftLinear) -> bool:
    names = list(module.lora_A)
    return (
        type(module) is PeftLinear
        and type(module.get_base_layer()) is torch.nn.Linear
        and len(names) == 1
        and isinstance(module.lora_dropout[names[0]], torch.nn.Identity)
        and not module.lora_variant
        and module.lora_B[names[0]].bias is None
    )


def _forward(self: PeftLinear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged or args or kwargs:
        return PeftLinear.forward(self, x, *args, **kwargs)
    (name,) = self.lora_A
    base = self.get_base_layer()
    if (low := vars(self).get("low_copies")) is not None and low[0].dtype == x.dtype:
        rows = x.reshape(-1, x.shape[-1])
        # By the layer's own forward, which an engine on a CPU replaces by one over a packed weight.
        given: torch.Tensor = base.forward(rows).addmm_(rows @ low[0].t(), low[1].t())
        return given.view(*x.shape[:-1], -1)
    a, b = self.lora_A[name].weight, self.lora_B[name].weight
    out: torch.Tensor = _LoraLinear.apply(x, base.weight, base.bias, a, b, self.scaling[name])
    return out.view(*x.shape[:-1], -1)  # outside the node: Gemma 3n changes it in place
