"""Causal attention over documents packed into one sequence, none of which sees another. Needs no flash-attn build.

On CUDA in bf16/fp16 it is one call of torch's own variable-length flash attention, with sliding windows and sinks, or
of a kernel compiled for soft caps and wide heads; else one causal SDPA call per document, which does no work on padding
because there is none. What SDPA lacks is computed by its formula, a part of a document's queries at a time, and again
in the backward pass: memory grows with the length of a document, not with its square. Registered with transformers
under `NAME`; batches carry `cu_seq_lens_q` and `max_length_q`, the keyword arguments transformers itself uses for flash
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils

from thinktune.errors import ModelError
from thinktune.models.attention_keywords import refuse_unknown
from thinktune.models.untouched import at_rest
from thinktune.training.fused import flash_attention, flex_attention
from thinktune.training.fused.attention_by_document import attend_behind_prompts, attend_each
from thinktune.training.fused.document_by_document import (
    changed_forwards,
    handing_on,
    one_at_a_time,
    wholly_one_at_a_time,
)
from thinktune.training.fused.layer_kinds import first_of_each_kind

NAME = "thinktune_packed"
_BY_POSITION = "thinktune_scales_queries"
"""Attribute of layers whose queries are scaled here: transformers' Llama 4 counts the columns of the pack."""
_UNTRAINED = "models of this family cannot be trained here yet: choose another base model"


@dataclass(frozen=True)
class Local:
    """A layer's mask as transformers states it, of a size instead of numbers: each token sees so many, or its block."""

    size: int


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Local | None = None,
    *,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    document_lengths: list[int] | None = None,
    repeats: bool = False,
    key_tokens: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_k: int = 0,
    key_lengths: list[int] | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
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
        key_tokens: int64, the tokens that are each document's keys, one document after the other: those of a prompt
            that it shares, and then its own; None: its own alone.
        cu_seq_lens_k, max_length_k, key_lengths: of these keys, what the three above are of tokens.
        sliding_window: tokens that a token sees, itself included.
        softcap: scores become softcap * tanh(score / softcap).
        s_aux: [query heads], attention sinks: a score a head in the softmax that attends to nothing.

    Returns:
        [1, tokens, query heads, value dim] and None for the attention weights.

    Raises:
        ModelError: the model asks for more than this computes (a mask of its own, a bias, …; over shared prompts also
            windows, caps and sinks), or its layers do not pass on the ends of documents.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    own_mask = None if isinstance(attention_mask, Local) else attention_mask
    wanted = {**others, "a mask of the model's own": own_mask, "attention to what comes later": not causal}
    refuse_unknown(wanted, "packed attention", _UNTRAINED)
    if cu_seq_lens_q is None or document_lengths is None:
        raise ModelError(
            "the model's layers do not pass on to attention where documents end, which training needs", hint=_UNTRAINED
        )
    if key_tokens is not None:
        wanted = {"a window": sliding_window or attention_mask, "a cap": softcap, "sinks": s_aux}
        wanted |= {"dropout": dropout or None, "a scale by position": getattr(module, _BY_POSITION, False)}
        refuse_unknown(wanted, "attention to shared prompts", _UNTRAINED)
        key, value = _Select.apply(key, key_tokens), _Select.apply(value, key_tokens)
        if flash_attention.is_taken(query, value):
            flash = partial(_flash, ends_k=cu_seq_lens_k, longest_k=max_length_k, scaling=scaling)
            return _of_tokens(flash, query, key, value, cu_seq_lens_q, max_length_q), None
        return attend_behind_prompts(query, key, value, document_lengths, key_lengths or [], scaling), None
    if getattr(module, _BY_POSITION, False) and max_length_q >= module.floor_scale:
        query = query * _query_scales(module, cu_seq_lens_q, query)
    window = _window(module, sliding_window, attention_mask)
    if isinstance(attention_mask, Local) and window is None and attention_mask.size < max_length_q:
        document_lengths = _blocks(document_lengths, attention_mask.size)
        max_length_q, repeats = attention_mask.size, False
        cu_seq_lens_q = torch.tensor([0, *document_lengths]).cumsum(0).to(cu_seq_lens_q)
    if window is not None and window >= max_length_q:
        window = None
    if dropout == 0.0 and softcap is None and flash_attention.is_taken(query, value):
        if window is not None or s_aux is not None:
            flash = partial(flash_attention.flash_attention, window=window, sinks=s_aux, scaling=scaling)
            return _of_tokens(flash, query, key, value, cu_seq_lens_q, max_length_q), None
        if repeats:
            return _dense(query, key, value, max_length_q, scaling), None
        return _of_tokens(partial(_flash, scaling=scaling), query, key, value, cu_seq_lens_q, max_length_q), None
    is_for_flex = softcap is not None or query.shape[3] > flash_attention.MAX_HEAD_DIM
    is_for_flex = is_for_flex and dropout == 0.0 and s_aux is None and bool(document_lengths)
    if is_for_flex and flex_attention.is_taken(query, key, value, capped=softcap is not None):
        out = flex_attention.attend(
            query, key, value, document_lengths, window=window, softcap=softcap, scaling=scaling
        )
        return out.transpose(1, 2).contiguous(), None
    asked = {"scaling": scaling, "softcap": softcap, "sinks": s_aux, "dropout": dropout}
    return attend_each(query, key, value, document_lengths, window, asked), None


def _query_scales(module: Any, ends: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Return Llama 4's scale of each query, [tokens, 1], by its position in its document."""
    tokens = torch.arange(query.shape[2], device=query.device)
    starts = ends[torch.bucketize(tokens, ends[1:].to(tokens), right=True)]
    scales = torch.log1p(torch.floor((tokens - starts + 1.0) / module.floor_scale)) * module.attn_scale + 1.0
    return scales[:, None].to(query.dtype)


def window_of(attention: Any) -> int | None:
    """Return the sliding window of an attention layer of transformers; Mistral's has it in its config alone."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window


def _window(module: Any, given: int | None, mask: Any) -> int | None:
    """Return the tokens that a token of this layer sees: as the layer says, or, where it says nothing, as its mask is.

    Raises:
        ModelError: layer and mask say different things.
    """
    if not isinstance(mask, Local) or _is_in_blocks(module):
        return given
    if given is not None and given != mask.size:
        raise ModelError(
            f"a layer of the model has a sliding window of {given:,} tokens and a mask of {mask.size:,}",
            hint=_UNTRAINED,
        )
    return mask.size


def _is_in_blocks(module: Any) -> bool:
    """Return whether a layer attends within blocks of a fixed size (Llama 4), not within a window."""
    kinds = getattr(getattr(module, "config", None), "layer_types", None) or []
    layer = getattr(module, "layer_idx", None)
    return layer is not None and layer < len(kinds) and kinds[layer] == "chunked_attention"


def _blocks(lengths: list[int], size: int) -> list[int]:
    return [min(size, length - start) for length in lengths for start in range(0, length, size)]


class _Select(torch.autograd.Function):
    """Takes keys or values by token. Of a prompt's, the gradients of all its completions are added up in float32."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(tokens)
        ctx.count = states.shape[2]
        return states.index_select(2, tokens)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (tokens,) = ctx.saved_tensors
        rows = grad.squeeze(0).transpose(0, 1)
        sums = torch.zeros(ctx.count, *rows.shape[1:], dtype=torch.float32, device=grad.device)
        sums.index_add_(0, tokens, rows.float())
        return sums.to(grad.dtype).transpose(0, 1)[None], None


def _of_tokens(
    attend: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    # [1, heads, tokens, dim] -> [tokens, heads, dim]; transposing back is free where the projections made it that way.
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    return attend(q, k, v, cu_seq_lens, longest).unsqueeze(0).contiguous()


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    longest: int,
    scaling: float | None,
    ends_k: torch.Tensor | None = None,
    longest_k: int = 0,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # A document's last query is that of its last key, also where it has more of these.
    ends_k, longest_k = (cu_seq_lens, longest) if ends_k is None else (ends_k, longest_k)
    return varlen_attn(q, k, v, cu_seq_lens, ends_k, longest, longest_k, scale=scaling, **_CAUSAL_GROUPED)


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


def _mask(*, mask_function: Any, local_size: int | None = None, use_vmap: bool = False, **_: Any) -> Any:
    """State a layer's mask for `packed_attention`; documents are kept apart there. Called by transformers.

    Raises:
        ModelError: the mask is a function of the model's own.
    """
    if use_vmap:
        raise ModelError("the model's mask is a function of its own, which packed attention lacks", hint=_UNTRAINED)
    return None if local_size is None else Local(local_size)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _mask)


@contextmanager
def packed_documents(model: PreTrainedModel) -> Iterator[str]:
    """Let `model` expect packed batches within the block, and yield the name of its attention; restore the one before.

    A model whose attention cannot be ours (its masks are computed from the states, say) keeps its own, and runs on one
    document at a time.
    """
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    on_gpu = model.device.type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(_places_known())
        stack.enter_context(one_at_a_time(model))
        stack.enter_context(sdpa_kernel(order, set_priority=True) if on_gpu else nullcontext())
        if _takes_ours(model, stack):
            stack.enter_context(_scaling_by_position(model))
        else:
            stack.enter_context(wholly_one_at_a_time(model))
        yield model.config._attn_implementation


@contextmanager
def _places_known() -> Iterator[None]:
    """Keep transformers from looking for documents in the positions, for which it waits for the GPU: no CUDA graph can
    do that. Its masks need none, since `_mask` states no places."""
    name = "find_packed_sequence_indices"
    found = getattr(masking_utils, name)
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, found)


def _scaling_by_position(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Let `packed_attention` scale the queries of Llama 4's layers without rotary embeddings within the block."""

    def told(layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **inputs: Any) -> Any:
            if inputs.get("cu_seq_lens_q") is None:  # no pack: the model answers
                return original(*args, **inputs)
            layer.attn_temperature_tuning, before = False, layer.attn_temperature_tuning
            setattr(layer, _BY_POSITION, True)
            try:
                return original(*args, **inputs)
            finally:
                layer.attn_temperature_tuning = before
                delattr(layer, _BY_POSITION)

        return forward

    tuned = [module for module in model.modules() if getattr(module, "attn_temperature_tuning", False)]
    return changed_forwards([layer for layer in tuned if not layer.use_rope], told)


def _takes_ours(model: PreTrainedModel, stack: ExitStack) -> bool:
    """Give the model our attention until `stack` ends, and tell whether it runs with it; else its own eager one."""
    if not model._can_set_attn_implementation():
        return False
    stack.callback(model.set_attn_implementation, model.config._attn_implementation)
    model.set_attn_implementation(NAME)
    if _runs(model):
        return True
    told = stack.enter_context(ExitStack())
    told.enter_context(handing_on(model))
    if _runs(model):
        return True
    told.close()
    model.set_attn_implementation("eager")
    return False


@torch.no_grad()
def _runs(model: PreTrainedModel) -> bool:
    """Return whether the model computes two packed documents."""
    lengths = [5, 3]
    ids = torch.arange(3, 3 + sum(lengths), device=model.device)[None] % model.get_input_embeddings().num_embeddings
    batch = {
        "position_ids": torch.cat([torch.arange(length, device=model.device) for length in lengths])[None],
        "cu_seq_lens_q": torch.tensor([0, 5, 8], dtype=torch.int32, device=model.device),
        "max_length_q": max(lengths),
        "document_lengths": lengths,
    }
    try:
        with at_rest(model), first_of_each_kind(model):
            model.base_model(input_ids=ids, **batch, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - a model may raise anything at what it does not know
        return False
    return True
