"""The first half of a fused decoder layer: norm, queries, keys and values, attention, and the update it ends in."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thinktune.training.fused.adapted_projection import AdaptedProjection, AdapterSettings, Ending, Update
from thinktune.training.fused.batch import Batch
from thinktune.training.fused.frozen_projection import Scratch, join
from thinktune.training.fused.kernels.low_rank import LowRank
from thinktune.training.fused.kernels.qkv_rotary import Heads, rotate, rotate_grad
from thinktune.training.fused.layer_parts import AttentionParts
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
        product: the complete product behind it, if it is normed afterwards.
    """

    raw: torch.Tensor | None
    qkv: LowRank
    o: LowRank
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out: torch.Tensor
    product: torch.Tensor | None = None

    @property
    def low_rank(self) -> list[LowRank]:
        return [self.qkv, self.o]


class AttentionHalf:
    """`attention(rotate(norm(x) Wqkv')) Wo'`, the update of the residual stream x, normed where the model does."""

    def __init__(
        self, parts: AttentionParts, settings: AdapterSettings, dtype: torch.dtype, scratch: Scratch, place: int
    ) -> None:
        self.qkv = AdaptedProjection(parts.qkv, settings, dtype, scratch, place)
        self.o = AdaptedProjection([parts.o], settings, dtype, scratch, place + 3)
        self.groups = [self.qkv, self.o]
        self._norm = parts.before
        self._ending = Ending(parts.after, parts.gain)
        biases = [base_of(module).bias for module in parts.qkv]
        self._heads = Heads(
            query=parts.query_heads,
            key=parts.key_heads,
            dim=parts.head_dim,
            bias=None if biases[0] is None else join(biases),
            norms=parts.head_norms and (parts.head_norms[0][0], *parts.head_norms[1]),
            turn=parts.turns,
        )
        self._scale = parts.scale
        self._window = window_of(parts.module)

    def forward(self, hidden: torch.Tensor, batch: Batch, *, grad: bool) -> Attended:
        """Compute attention's output of the residual stream [tokens, width], with a graph of its own if `grad`."""
        qkv, o = (group.low_rank(batch.dropout) for group in self.groups)
        _, rows = self.qkv.enter(hidden, qkv, norm=self._norm)
        raw = self.qkv.product(rows, qkv)
        del rows
        heads = self._heads
        turned = rotate(raw, qkv.fused, batch.positions, heads)
        inputs = turned.view(len(hidden), -1, heads.dim).split([heads.query, heads.key, heads.key], dim=1)
        with torch.set_grad_enabled(grad):
            leaves = tuple(part.detach().requires_grad_(grad) for part in inputs)
            query, key, value = (leaf.transpose(0, 1)[None] for leaf in leaves)
            if batch.attend is not None:
                out = batch.attend(query, key, value, self._scale)
            else:
                out, _ = packed_attention(
                    None, query, key, value, scaling=self._scale, sliding_window=self._window, **batch.documents
                )
            out = out.reshape(len(hidden), -1)
        self.o.project(out.detach(), o)
        return Attended(raw if heads.norms else None, qkv, o, leaves, out)

    def update(self, attended: Attended) -> Update:
        product = self.o.product(attended.out.detach(), attended.o)
        if self._ending.norm:
            attended.product = product
        return self._ending.update(product, attended.o)

    def backward(self, g: torch.Tensor, hidden: torch.Tensor, attended: Attended, batch: Batch) -> torch.Tensor:
        """Return the gradient of the residual stream before this half from that behind it, [tokens, width]."""
        if self._ending.norm and attended.product is None:
            self.update(attended)
        g_product = self._ending.product_grad(g, attended.product)
        g_out = self.o.product_grad(g_product, attended.o)
        g_out = self.o.project_grad(g_out, attended.out.detach(), attended.o)
        grads = torch.autograd.grad(attended.out, attended.inputs, g_out)
        query, key, value = (grad.contiguous() for grad in grads)
        turned = rotate_grad((query, key, value), attended.raw, attended.qkv.fused, batch.positions, self._heads)
        g_normed = self.qkv.product_grad(turned, attended.qkv, summed=True)
        return self.qkv.enter_grad(g_normed, hidden, attended.qkv, norm=self._norm, residual=g)
