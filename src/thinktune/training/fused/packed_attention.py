"""Causal attention over documents packed into one sequence, none of which sees another. Needs no flash-attn build.

On CUDA in bf16/fp16 it is one call of torch's own variable-length flash attention; elsewhere one causal SDPA call per
document, which does no work on padding because there is none. Registered with transformers under `NAME`; batches carry
`cu_seq_lens_q` and `max_length_q`, the keyword arguments transformers itself uses for flash attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PreTrainedModel

from thinktune.errors import ModelError
from thinktune.models.attention_keywords import refuse_unknown

NAME = "thinktune_packed"
_SHORT = 512
"""Documents below this many tokens are attended to in float32 on a CPU: its bf16 kernel takes up to twice as long."""
_UNTRAINED = "models of this family cannot be trained here yet: choose another base model"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    document_lengths: list[int] | None = None,
    repeats: bool = False,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention with the signature that transformers calls.

    Args:
        query: [1, query heads, tokens, head dim]; key and value have [1, key heads, tokens, head dim].
        cu_seq_lens_q: int32 [documents + 1], the cumulative document lengths.
        max_length_q: length of the longest document.
        document_lengths: the same lengths as a list, so that no device has to be waited for.
        repeats: the documents have one length, and the batch before was like this one.

    Returns:
        [1, tokens, query heads, head dim] and None for the attention weights.

    Raises:
        ModelError: the model asks for more than this computes (a cap on scores, sinks, a mask of its own, …), or its
            layers do not pass on the ends of documents.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    wanted = {**others, "a mask of the model's own": attention_mask, "attention to what comes later": not causal}
    refuse_unknown(wanted, "packed attention", _UNTRAINED)
    if cu_seq_lens_q is None or document_lengths is None:
        raise ModelError(
            "the model's layers do not pass on to attention where documents end, which training needs", hint=_UNTRAINED
        )
    require_within(sliding_window, max_length_q)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0:
        if repeats:
            return _dense(query, key, value, max_length_q, scaling), None
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    return _per_document(query, key, value, document_lengths, scaling, dropout), None


def window_of(attention: Any) -> int | None:
    """Return the sliding window of an attention layer of transformers; Mistral's has it in its config alone."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window


def require_within(window: int | None, length: int) -> None:
    """
    Raises:
        ModelError: a document of this length is longer than the sliding window.
    """
    if window is not None and window < length:
        raise ModelError(
            f"an example of {length:,} tokens is longer than the model's sliding window of {window:,}",
            hint=f"data.max_length={window} drops such examples",
        )


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    max_length: int,
    scaling: float | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # [1, heads, tokens, dim] -> [tokens, heads, dim]; transposing back is free, the projections made it that way.
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    out = varlen_attn(q, k, v, cu_seq_lens, cu_seq_lens, max_length, max_length, scale=scaling, **_CAUSAL_GROUPED)
    return out.unsqueeze(0)


def _dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int, scaling: float | None
) -> torch.Tensor:
    """Attend over documents of one length as a batch: cuDNN's attention takes that, and is 1.6 times as fast as the
    other.

    But it makes a plan for each new shape, which takes up to a second: only where shapes come again.
    """

    def batched(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view(tensor.shape[1], -1, length, tensor.shape[3]).transpose(0, 1)

    out = F.scaled_dot_product_attention(
        batched(query), batched(key), batched(value), is_causal=True, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2).reshape(1, -1, query.shape[1], query.shape[3])


def _varlen_arguments() -> dict[str, Any]:
    """torch 2.11 spells causal and grouped heads as `is_causal` and by head counts; from 2.12 on they are
    `window_size` and `enable_gqa`."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    arguments: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    if "enable_gqa" in names:
        arguments["enable_gqa"] = True
    return arguments


_CAUSAL_GROUPED = _varlen_arguments()


def _per_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.device.type == "cpu" and q.shape[2] < _SHORT:
            q, k, v = q.float(), k.float(), v.float()
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        ).to(query.dtype)

    documents = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([attend(*document) for document in documents], dim=2).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, packed_attention)


@contextmanager
def packed_documents(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` expect packed batches within the block; afterwards it has the attention it had before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    try:
        with sdpa_kernel(order, set_priority=True) if model.device.type == "cuda" else nullcontext():
            yield
    finally:
        model.set_attn_implementation(before)
