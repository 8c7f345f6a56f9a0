"""Attention to one document after another, by SDPA, or by its formula for what SDPA lacks: windows, caps and sinks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from thinktune.models.plain_attention import SCORES, plain_attention
from thinktune.training.fused import flash_attention

_SHORT = 512
"""Documents below this many tokens are attended to in float32 on a CPU: its bf16 kernel takes up to twice as long."""
_PART = 512
"""Queries at a time, at most, where scores are in memory."""


def attend_each(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    window: int | None,
    asked: dict[str, Any],
) -> torch.Tensor:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if q.device.type == "cpu" and q.shape[2] < _SHORT:
            q, k, v = q.float(), k.float(), v.float()
        plain = asked["softcap"] is None and asked["sinks"] is None
        attend_to = _causal if plain and (window is None or window >= q.shape[2]) else partial(_in_parts, window=window)
        return attend_to(q, k, v, asked=asked).to(query.dtype)

    documents = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    return torch.cat([attend(*document) for document in documents], dim=2).transpose(1, 2).contiguous()


def attend_behind_prompts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    key_lengths: list[int],
    scaling: float | None,
) -> torch.Tensor:
    """Attend document by document, where some have more keys than queries, which are those of the last ones."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        missing = k.shape[2] - q.shape[2]
        # SDPA counts queries from the first key on: those that are not wanted cost less than a mask.
        return _causal(F.pad(q, (0, 0, missing, 0)), k, v, asked={"scaling": scaling, "dropout": 0.0})[:, :, missing:]

    dtype = query.dtype
    if max(key_lengths) < _SHORT and query.device.type == "cpu":
        query, key, value = query.float(), key.float(), value.float()
    documents = zip(query.split(lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2), strict=True)
    return torch.cat([attend(*document) for document in documents], dim=2).to(dtype).transpose(1, 2).contiguous()


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: dict[str, Any]) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and q.shape[3] > flash_attention.MAX_HEAD_DIM:  # or no kernel without all scores takes it
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=asked["scaling"], dropout_p=asked["dropout"], enable_gqa=grouped
    )


def _in_parts(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, asked: dict[str, Any]
) -> torch.Tensor:
    """Attend by the formula, a part of the queries at a time, to the keys that the part can see."""
    length = q.shape[2]
    seen = min(length, window + _PART if window else length)
    size = max(16, min(_PART, SCORES // (q.shape[1] * seen)))
    parts = []
    for start in range(0, length, size):
        end = min(start + size, length)
        first = 0 if window is None else max(0, start - window + 1)
        distance = torch.arange(start, end, device=q.device)[:, None] - torch.arange(first, end, device=q.device)
        mask = (distance >= 0) & (distance < (window or length))
        inputs = q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], mask
        attend: Callable[..., torch.Tensor] = partial(plain_attention, **asked)
        again = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        parts.append(checkpoint(attend, *inputs, use_reentrant=False) if again else attend(*inputs))
    return torch.cat(parts, dim=2)
