"""Attention by its formula, for models that ask for more than the fused kernels compute: soft caps, sinks, masks added.

Scores are a matrix of queries times keys in memory: callers hand queries over in parts.
"""

from __future__ import annotations

import torch

SCORES = 2**26
"""Scores in memory at once, over all rows and heads."""


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Compute attention as transformers' eager functions do; softmax in float32.

    Args:
        query: [rows, heads, n, size]; key and value [rows, key heads, m, size].
        mask: True where attended, or numbers added to the scores, broadcast to [rows, heads, n, m]; None: all is seen.
        scaling: None: size ** -0.5.
        softcap: scores become softcap * tanh(score / softcap).
        sinks: [heads], a score a head that takes part in the softmax and attends to nothing.

    Returns:
        [rows, heads, n, value size].
    """
    rows, heads, length, size = query.shape
    groups = query.reshape(rows, key.shape[1], -1, size)  # heads that share a key stand in for a longer sequence
    scores = (groups @ key.transpose(2, 3)).view(rows, heads, length, -1) * (size**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(rows, -1, length, -1).to(scores.dtype)], -1)
    shares = scores.softmax(-1, dtype=torch.float32)[..., : key.shape[2]].to(value.dtype)
    shares = torch.nn.functional.dropout(shares, dropout)
    return (shares.reshape(rows, key.shape[1], -1, key.shape[2]) @ value).view(rows, heads, length, -1)
