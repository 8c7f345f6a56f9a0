"""A decoder layer with its adapters, or half of one, as one autograd node on CUDA.

Between the matrix products there is nothing but the kernels of `fused.kernels`: each reads the residual stream, or a
product, once, and does all of this there: bias, low-rank update, norm, rotary, SwiGLU, quantisation, and in the
backward pass the adapters' gradients. Saved activations are a choice (`RecomputePolicy`), not autograd's:
norms, activations and low-rank products are always computed again, products where memory is short.

With x the layer's input and n1, n2 the RMSNorms:

    attention(rotate(n1(x) Wqkv')) -> o;   m = x + o Wo';   [gate, up] = n2(m) Wgu';   y = m + (silu(gate) * up) Wd'

where each product has its low-rank update `s (rows A') B'`, with dropout on its input where the adapter has it; that is
Llama, `layer_parts` has what other models do otherwise. Both halves, attention and MLP, are fused, or one of them. The
first hands its update on as it leaves the product: the kernel that norms for the second adds it to the residual stream,
in the same pass. Parameters, their names and PEFT's adapter format are unchanged; the adapters' master weights may be,
and are in our trainings, float32 under a bfloat16 model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from thinktune.planner.recompute_policy import Level, RecomputePolicy
from thinktune.training.fused.activation_offload import HostStore
from thinktune.training.fused.adapted_projection import Update
from thinktune.training.fused.attention_half import Attended, AttentionHalf
from thinktune.training.fused.batch import Batch
from thinktune.training.fused.frozen_projection import Scratch
from thinktune.training.fused.kernels.rmsnorm_lora import add_norm_project
from thinktune.training.fused.lora_buffers import begin_sums
from thinktune.training.fused.mlp_half import Fed, MlpHalf


@dataclass
class Saved:
    """A layer's tensors saved for its backward pass; None is recomputed, or of a half that is not there."""

    hidden: torch.Tensor | None
    attended: Attended | None
    fed: Fed | None


class FusedLayer:
    """The fused halves of a decoder layer, at least one, and the tensors saved between forward and backward.

    Attributes:
        number: in the model.
        can_decode: whether it could take single tokens of the rows of a cache, see `decoding`.
        decodes: whether it does now.
        refresh: brings the adapters of all layers up to date, as the first layer does before a batch.
    """

    def __init__(
        self, attention: AttentionHalf | None, mlp: MlpHalf | None, number: int, memory: RecomputePolicy
    ) -> None:
        self.attention, self.mlp = attention, mlp
        self.groups = [group for half in (attention, mlp) if half for group in half.groups]
        self.adapters = [group.adapter for group in self.groups]
        self.parameters = [parameter for adapter in self.adapters for parameter in adapter.parameters]
        self._adapted = [module for adapter in self.adapters for module in adapter.adapted]
        self.number = number
        self.memory = memory
        self.store: HostStore | None = None
        self.can_decode = self.decodes = False
        self.refresh: Callable[[], None] = lambda: None

    @property
    def level(self) -> Level:
        return self.memory.level(self.number)

    @property
    def is_whole(self) -> bool:
        """Whether both halves are fused."""
        return self.attention is not None and self.mlp is not None

    @property
    def is_disabled(self) -> bool:
        """Whether PEFT has switched the adapter off, or merged it."""
        return any(module.disable_adapters or module.merged for module in self._adapted)

    def forward(self, hidden: torch.Tensor, batch: Batch, *, keep: bool) -> tuple[torch.Tensor, Saved | None]:
        """Compute [tokens, width] -> [tokens, width], and save the tensors of the backward pass."""
        whole = keep and self.level != "full"
        attended = self._attend(hidden, batch, grad=whole)
        if self.mlp is None:
            out, _ = add_norm_project(hidden, update=self._update(attended), write=False)
            return out, self._saved(hidden, attended, None) if keep else None
        fed = self.mlp.enter(hidden, self._update(attended), batch)
        if not whole:
            attended = None  # its memory is free for the MLP
        out = self.mlp.forward(fed, self.memory.mlp_chunks)
        return out, self._saved(hidden, attended, fed) if keep else None

    def decode(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute [rows, width] -> [rows, width] with the attention of the batch, of a layer that is fused as a whole;
        nothing is saved."""
        assert self.attention is not None
        assert self.mlp is not None
        attended = self.attention.forward(hidden, batch, grad=False)
        fed = self.mlp.enter(hidden, self.attention.update(attended), batch)
        return self.mlp.forward(fed, 1)

    def _saved(self, hidden: torch.Tensor, attended: Attended | None, fed: Fed | None) -> Saved:
        if fed and (self.level != "none" or self.memory.mlp_chunks > 1):
            fed.gate_up = None
        if self.level != "full":
            return Saved(hidden, attended, fed)
        if fed:
            fed.middle = fed.wide = None
        if self.store is None:
            return Saved(hidden, None, fed)
        self.store.put(self.number, hidden)
        return Saved(None, None, fed)

    def backward(self, g: torch.Tensor, saved: Saved, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the gradient of the input, [tokens, width], and those of `parameters`."""
        hidden, fed = saved.hidden, saved.fed
        if hidden is None:
            assert self.store is not None
            hidden = self.store.take(self.number)
        attended = saved.attended or self._attend(hidden, batch, grad=True)
        if self.mlp and fed and fed.middle is None:
            self.mlp.enter(hidden, self._update(attended), batch, fed)
        products = [product for half in (attended, fed) if half for product in half.low_rank]
        begin_sums(self.adapters, products, len(g))
        if self.mlp and fed:
            g = self.mlp.backward(g, fed, self.memory.mlp_chunks)
        if self.attention and attended:
            g = self.attention.backward(g, hidden, attended, batch)
        ordered = [
            part
            for adapter, product in zip(self.adapters, products, strict=True)
            for part in adapter.by_parameter(product.g_a, product.g_b)
        ]
        return g, ordered

    def _attend(self, hidden: torch.Tensor, batch: Batch, *, grad: bool) -> Attended | None:
        return self.attention.forward(hidden, batch, grad=grad) if self.attention else None

    def _update(self, attended: Attended | None) -> Update | None:
        return self.attention.update(attended) if self.attention and attended else None


class LayerNode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: FusedLayer, batch: Batch, *parameters: torch.Tensor
    ) -> torch.Tensor:
        keep = any(ctx.needs_input_grad)
        out, ctx.saved = layer.forward(hidden[0], batch, keep=keep)
        ctx.layer, ctx.batch = layer, batch
        return out[None]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, ctx.saved = ctx.saved, None
        g_hidden, grads = ctx.layer.backward(g[0].contiguous(), saved, ctx.batch)
        return (g_hidden[None], None, None, *grads)


@contextmanager
def without_fp8_products(layers: Sequence[FusedLayer]) -> Iterator[None]:
    """Multiply fp8 weights in the model's dtype within the block.

    Activations and gradients of three bits of mantissa put a gradient off by a quarter, which hides all else that a
    comparison with the model's own layers is there to find.
    """
    groups, scratch = [group for layer in layers for group in layer.groups], Scratch()
    before = [group.frozen for group in groups]
    for group in groups:
        group.frozen = group.restored(scratch)
    try:
        yield
    finally:
        for group, frozen in zip(groups, before, strict=True):
            group.frozen = frozen
