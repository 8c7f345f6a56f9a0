"""The first half of a fused decoder layer: norm, queries, keys and values, attention, and the update it ends in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from thinktune.training.fused.adapted_projection import AdaptedProjection, AdapterSettings
from thinktune.training.fused.batch import Batch
from thinktune.training.fused.frozen_projection import Scratch, join
from thinktune.training.fused.kernels.low_rank import LowRank
from thinktune.training.fused.kernels.qkv_rotary import Heads, rotate, rotate_grad
from thinktune.training.fused.lora_buffers import base_of
from thinktune.training.fused.packed_attention import packed_attention, window_of


@dataclass
class Attended:
    """Attention's own autograd graph, and its inputs.

    Attributes:
        raw: the joined product if its heads are normed afterwards, else None.
        qkv, o: the low-rank products before and behind it.
        inputs: queries, keys and values, [tokens, heads, dim] each, leaves of the graph.
        out: [tokens, heads * dim].
    """

    raw: torch.Tensor | None
    qkv: LowRank
    o: LowRank
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out: torch.Tensor

    @property
    def products(self) -> list[LowRank]:
        return [self.qkv, self.o]


class AttentionHalf:
    """`attention(rotate(norm(x) Wqkv')) Wo'`, the update of the residual stream x."""

    def __init__(self, layer: Any, settings: AdapterSettings, scratch: Scratch, place: int) -> None:
        attention, norm = layer.self_attn, layer.input_layernorm
        modules = [attention.q_proj, attention.k_proj, attention.v_proj]
        dtype = norm.weight.dtype
        self.qkv = AdaptedProjection(modules, settings, dtype, scratch, place)
        self.o = AdaptedProjection([attention.o_proj], settings, dtype, scratch, place + 3)
        self.groups = [self.qkv, self.o]
        self._norm = norm.weight, norm.variance_epsilon
        dim = attention.head_dim
        biases = [base_of(module).bias for module in modules]
        self._heads = Heads(
            query=attention.q_proj.out_features // dim,
            key=attention.k_proj.out_features // dim,
            dim=dim,
            bias=None if biases[0] is None else join(biases),
            norms=(attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon)
            if hasattr(attention, "q_norm")
            else None,
        )
        self._scale = attention.scaling
        self._window = window_of(attention)

    def forward(self, hidden: torch.Tensor, batch: Batch, *, grad: bool) -> Attended:
        """Compute attention's output of the residual stream [tokens, width], with a graph of its own if `grad`."""
        qkv, o = (group.low_rank(batch.dropout) for group in self.groups)
        _, rows = self.qkv.enter(hidden, qkv, norm=self._norm)
        raw = self.qkv.product(rows, qkv)
        del rows
        heads = self._heads
        turned = rotate(raw, qkv.fused, batch.cos, batch.sin, heads)
        inputs = turned.view(len(hidden), -1, heads.dim).split([heads.query, heads.key, heads.key], dim=1)
        with torch.set_grad_enabled(grad):
            leaves = tuple(part.detach().requires_grad_(grad) for part in inputs)
            query, key, value = (leaf.transpose(0, 1)[None] for leaf in leaves)
            out, _ = packed_attention(
                None, query, key, value, None, scaling=self._scale, sliding_window=self._window, **batch.documents
            )
            out = out.reshape(len(hidden), -1)
        self.o.project(out.detach(), o)
        return Attended(raw if heads.norms else None, qkv, o, leaves, out)

    def update(self, attended: Attended) -> tuple[torch.Tensor, LowRank | None]:
        """Compute the update as `add_norm_project` takes it."""
        return self.o.product(attended.out.detach(), attended.o), attended.o.fused

    def backward(self, g: torch.Tensor, hidden: torch.Tensor, attended: Attended, batch: Batch) -> torch.Tensor:
        """Return the gradient of the residual stream before this half from that behind it, [tokens, width]."""
        g_out = self.o.product_grad(g, attended.o)
        g_out = self.o.project_grad(g_out, attended.out.detach(), attended.o)
        grads = torch.autograd.grad(attended.out, attended.inputs, g_out)
        query, key, value = (grad.contiguous() for grad in grads)
        turned = rotate_grad((query, key, value), attended.raw, attended.qkv.fused, batch.cos, batch.sin, self._heads)
        g_normed = self.qkv.product_grad(turned, attended.qkv, summed=True)
        return self.qkv.enter_grad(g_normed, hidden, attended.qkv, norm=self._norm, residual=g)
