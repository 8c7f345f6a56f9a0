"""torch's variable-length flash attention, for sliding windows and sinks, in time and memory of the plain one.

The operators behind `torch.nn.attention.varlen` take windows in every torch that is supported; its public function does
from 2.12 on only, and takes no sinks in any.
"""

from __future__ import annotations

from typing import Any

import torch

MAX_HEAD_DIM = 256


def is_taken(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether the kernel takes heads of these sizes, dtype and device."""
    size = query.shape[-1]
    fits = size == value.shape[-1] and size % 8 == 0 and size <= MAX_HEAD_DIM
    return fits and query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)


class FlashAttention(torch.autograd.Function):
    """Causal attention over packed documents, [tokens, heads, size]; arguments as in `flash_attention`.

    A sink is one more score in the softmax: with lse the log of the sum of exp(scores), outputs shrink by
    sigmoid(lse - sink). The backward kernel needs no change: it takes the shares of a softmax from exp(score - lse),
    and the sum over its row from output times gradient, and both are right with the sink when lse and output are.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        ends: torch.Tensor,
        longest: int,
        window: int | None,
        scaling: float | None,
    ) -> torch.Tensor:
        shape = {"is_causal": window is None, "scale": scaling}
        shape |= {"window_size_left": -1 if window is None else window - 1, "window_size_right": 0}
        out, lse, *random, _ = torch.ops.aten._flash_attention_forward(
            query, key, value, ends, ends, longest, longest, 0.0, shape.pop("is_causal"), False, **shape
        )
        if sinks is not None:
            column = sinks.float()[:, None]
            out = (out * torch.sigmoid(lse - column).t()[..., None]).to(out.dtype)
            lse = torch.logaddexp(lse, column)
        ctx.save_for_backward(query, key, value, out, lse, ends, sinks, *random)
        ctx.longest, ctx.window, ctx.shape = longest, window, shape
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse, ends, sinks, *random = ctx.saved_tensors
        grads = torch.ops.aten._flash_attention_backward(
            grad.contiguous(), query, key, value, out, lse, ends, ends, ctx.longest, ctx.longest, 0.0,
            ctx.window is None, *random, **ctx.shape,
        )  # fmt: skip
        of_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            share = torch.exp(sinks.float()[:, None] - lse).t()
            of_sinks = -(share * (grad.float() * out.float()).sum(-1)).sum(0).to(sinks.dtype)
        return (*grads, of_sinks, None, None, None, None)


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    *,
    window: int | None,
    sinks: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attend over packed documents, [tokens, heads, size] each; key heads may be fewer.

    Args:
        ends: int32 [documents + 1], cumulative lengths.
        longest: length of the longest document.
        window: tokens that a token sees, itself included.
        sinks: [heads].
    """
    out: torch.Tensor = FlashAttention.apply(query, key, value, sinks, ends, longest, window, scaling)
    return out
