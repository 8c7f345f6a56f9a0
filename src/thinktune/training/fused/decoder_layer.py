"""A decoder layer with its adapters as one autograd node, for Llama-, Mistral-, Qwen2- and Qwen3-style models on CUDA.

Between the matrix products there is nothing but the kernels of `fused.kernels`: each reads the residual stream, or a
product, once, and does all of this there: bias, low-rank update, norm, rotary, SwiGLU, quantisation,
and in the backward pass the adapters' gradients. Saved activations are a choice (`RecomputePolicy`), not autograd's:
norms, activations and low-rank products are always computed again, products where memory is short.

With x the layer's input and n1, n2 the RMSNorms:

    attention(rotate(n1(x) Wqkv')) -> o;   m = x + o Wo';   [gate, up] = n2(m) Wgu';   y = m + (silu(gate) * up) Wd'

where each product has its low-rank update `s (rows A') B'`. Parameters, their names and PEFT's adapter format are
unchanged; the adapters' master weights may be, and are in our trainings, float32 under a bfloat16 model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from thinktune.planner.recompute_policy import Level, RecomputePolicy
from thinktune.training.fused.activation_offload import HostStore
from thinktune.training.fused.frozen_projection import Fp8Projection, Scratch, join, make_projection
from thinktune.training.fused.kernels.common import quantise
from thinktune.training.fused.kernels.qkv_rotary import Heads, rotate, rotate_grad
from thinktune.training.fused.kernels.rmsnorm_lora import add_norm_project, input_grad, output_grad
from thinktune.training.fused.kernels.swiglu import swiglu, swiglu_grad
from thinktune.training.fused.lora_buffers import Adapter, Sums, base_of, make_sums
from thinktune.training.fused.packed_attention import packed_attention, window_of

_GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}


@dataclass
class Batch:
    """The data of a packed batch that all layers share.

    Attributes:
        cos, sin: [tokens, head dim].
        documents: the keyword arguments of `packed_attention`.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    documents: dict[str, Any]


@dataclass
class Saved:
    """A layer's tensors saved for its backward pass; None is recomputed."""

    hidden: torch.Tensor | None
    low_down: torch.Tensor
    attention: Attention | None = None
    middle: torch.Tensor | None = None
    low: torch.Tensor | None = None
    gate_up: torch.Tensor | None = None


@dataclass
class Attention:
    """Attention's own autograd graph, and its inputs.

    Attributes:
        raw: the joined product if its heads are normed afterwards, else None.
        low: [tokens, 3 rank], of the projections before it.
        low_out: [tokens, rank], of the one behind it.
        inputs: queries, keys and values, [tokens, heads, dim] each, leaves of the graph.
        out: [tokens, heads * dim].
    """

    raw: torch.Tensor | None
    low: torch.Tensor
    low_out: torch.Tensor
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out: torch.Tensor


class FusedLayer:
    """One decoder layer: its frozen products, its adapters, and the tensors saved between forward and backward."""

    def __init__(
        self, layer: Any, number: int, rank: int, scaling: float, memory: RecomputePolicy, scratch: Scratch
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        groups = {
            group: [getattr(mlp if group in ("gate_up", "down") else attention, name) for name in names]
            for group, names in _GROUPS.items()
        }
        self._adapted = [module for modules in groups.values() for module in modules if isinstance(module, LoraLayer)]
        dtype = layer.input_layernorm.weight.dtype
        self.projections = {
            group: make_projection([base_of(module) for module in modules], dtype, scratch)
            for group, modules in groups.items()
        }
        self.adapters = {group: Adapter(modules, rank, scaling) for group, modules in groups.items()}
        self.parameters = [parameter for adapter in self.adapters.values() for parameter in adapter.parameters]
        self.norms = [
            (norm.weight, norm.variance_epsilon) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        dim = attention.head_dim
        biases = [base_of(module).bias for module in groups["qkv"]]
        self.heads = Heads(
            query=attention.q_proj.out_features // dim,
            key=attention.k_proj.out_features // dim,
            dim=dim,
            bias=None if biases[0] is None else join(biases),
            norms=(attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon)
            if hasattr(attention, "q_norm")
            else None,
        )
        self._attention_scale = attention.scaling
        self._window = window_of(attention)
        self._number = number
        self.memory = memory
        self.store: HostStore | None = None

    @property
    def level(self) -> Level:
        return self.memory.level(self._number)

    @property
    def is_disabled(self) -> bool:
        """Whether PEFT has switched the adapter off, or merged it."""
        return any(module.disable_adapters or module.merged for module in self._adapted)

    @contextmanager
    def without_fp8_products(self) -> Iterator[None]:
        """Multiply fp8 weights in the model's dtype within the block.

        Activations and gradients of three bits of mantissa put a gradient off by a quarter, which hides all else that a
        comparison with the model's own layers is there to find.
        """
        before = self.projections
        self.projections = {
            group: each.restored(Scratch()) if isinstance(each, Fp8Projection) else each
            for group, each in before.items()
        }
        try:
            yield
        finally:
            self.projections = before

    def forward(self, hidden: torch.Tensor, batch: Batch, *, keep: bool) -> tuple[torch.Tensor, Saved | None]:
        """Compute [tokens, width] -> [tokens, width], and save the tensors of the backward pass."""
        whole = keep and self.level != "full"
        attention: Attention | None = self._attend(hidden, batch, grad=whole)
        assert attention is not None
        middle, rows, low = self._after_attention(hidden, attention)
        if not whole:
            attention = None  # its memory is free for the MLP
        out = torch.empty_like(middle)
        low_down = torch.zeros(len(low), self.adapters["down"].rank, device=low.device)
        gate_up = None
        for part in self._chunks(len(hidden)):
            del gate_up
            gate_up = self._feed_forward(middle[part], rows[part], low[part], low_down[part], out[part])
        if not keep:
            return out, None
        if whole:
            gate_up = gate_up if self.level == "none" and self.memory.mlp_chunks == 1 else None
            return out, Saved(hidden, low_down, attention, middle, low, gate_up)
        if self.store is None:
            return out, Saved(hidden, low_down)
        self.store.put(self._number, hidden)
        return out, Saved(None, low_down)

    def backward(self, g: torch.Tensor, saved: Saved, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the gradient of the input, [tokens, width], and those of `parameters`."""
        hidden = saved.hidden
        if hidden is None:
            assert self.store is not None
            hidden = self.store.take(self._number)
        sums = make_sums(self.adapters, len(g))
        attention = saved.attention or self._attend(hidden, batch, grad=True)
        middle, low = saved.middle, saved.low
        rows: Any = None
        if middle is None or low is None:
            middle, rows, low = self._after_attention(hidden, attention)
        elif saved.gate_up is None:
            _, rows, _ = add_norm_project(middle, norm=self.norms[1], in_fp8=self.projections["gate_up"].quantised)
        g_middle = torch.empty_like(g)
        for part in self._chunks(len(g)):
            gate_up = saved.gate_up
            if gate_up is None:
                gate_up = self.projections["gate_up"].product(rows[part])
            self._feed_forward_grad(
                g[part], middle[part], low[part], saved.low_down[part], gate_up, sums, part, g_middle[part]
            )
            del gate_up
        del rows, low, middle
        saved.gate_up = saved.middle = None
        g_hidden = self._attention_grad(g_middle, hidden, attention, batch, sums)
        ordered = [
            part
            for group, adapter in self.adapters.items()
            for part in adapter.by_parameter(sums[group].a, sums[group].b)
        ]
        return g_hidden, ordered

    def _attend(self, hidden: torch.Tensor, batch: Batch, *, grad: bool) -> Attention:
        _, rows, low = add_norm_project(
            hidden, norm=self.norms[0], a=self.adapters["qkv"].a, in_fp8=self.projections["qkv"].quantised
        )
        raw = self.projections["qkv"].product(rows)
        turned = rotate(raw, low, self.adapters["qkv"].b, batch.cos, batch.sin, self.heads)
        heads = self.heads
        inputs = turned.view(len(hidden), -1, heads.dim).split([heads.query, heads.key, heads.key], dim=1)
        with torch.set_grad_enabled(grad):
            leaves = tuple(part.detach().requires_grad_(grad) for part in inputs)
            query, key, value = (leaf.transpose(0, 1)[None] for leaf in leaves)
            out, _ = packed_attention(
                None, query, key, value, None,
                scaling=self._attention_scale, sliding_window=self._window, **batch.documents,
            )  # fmt: skip
            out = out.reshape(len(hidden), -1)
        _, _, low_out = add_norm_project(out.detach(), a=self.adapters["o"].a, write=False)
        return Attention(raw if heads.norms else None, low, low_out, leaves, out)

    def _after_attention(self, hidden: torch.Tensor, attention: Attention) -> Any:
        """Return the residual stream after attention, its normed rows, and their low-rank product."""
        projection, out = self.projections["o"], attention.out.detach()
        product = projection.product(quantise(out) if projection.quantised else out)
        return add_norm_project(
            hidden, update=(product, attention.low_out, self.adapters["o"].b), norm=self.norms[1],
            a=self.adapters["gate_up"].a, in_fp8=self.projections["gate_up"].quantised,
        )  # fmt: skip

    def _feed_forward(
        self, middle: torch.Tensor, rows: Any, low: torch.Tensor, low_down: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """Write the layer's output, and the low-rank activation of down; return gate and up."""
        down, adapter = self.projections["down"], self.adapters["down"]
        gate_up = self.projections["gate_up"].product(rows)
        rows = swiglu(gate_up, low, self.adapters["gate_up"].b, adapter.a, low_down)
        product = down.product(quantise(rows) if down.quantised else rows)
        add_norm_project(middle, update=(product, low_down, adapter.b), write=False, into=out)
        return gate_up

    def _feed_forward_grad(
        self,
        g: torch.Tensor,
        middle: torch.Tensor,
        low: torch.Tensor,
        low_down: torch.Tensor,
        gate_up: torch.Tensor,
        sums: dict[str, Sums],
        part: slice,
        out: torch.Tensor,
    ) -> None:
        """Write the gradient of the residual stream before the MLP, for these tokens (`part` of all)."""
        down, wide = self.adapters["down"], self.adapters["gate_up"]
        down_sums, wide_sums = sums["down"], sums["gate_up"]
        down_low, wide_low = down_sums.low[part], wide_sums.low[part]
        scales = {group: projection.weight_scale for group, projection in self.projections.items()}
        rows = output_grad(g, low_down, down.b, down_low, down_sums.b, down.scaling, scales["down"])
        g_product = self.projections["down"].input_grad(rows)
        rows = swiglu_grad(
            gate_up, low, wide.b, down.a, g_product, down_low,
            wide_low, wide_sums.b, down_sums.a, wide.scaling, scales["gate_up"],
        )  # fmt: skip
        del g_product
        g_normed = self.projections["gate_up"].input_grad(rows)
        input_grad(g_normed, wide_low, wide.a, middle, wide_sums.a, norm=self.norms[1], residual=g, into=out)

    def _attention_grad(
        self, g: torch.Tensor, hidden: torch.Tensor, attention: Attention, batch: Batch, sums: dict[str, Sums]
    ) -> torch.Tensor:
        o, qkv, o_sums, qkv_sums = self.adapters["o"], self.adapters["qkv"], sums["o"], sums["qkv"]
        out = attention.out.detach()
        rows = output_grad(
            g, attention.low_out, o.b, o_sums.low, o_sums.b, o.scaling, self.projections["o"].weight_scale
        )
        g_out = input_grad(self.projections["o"].input_grad(rows), o_sums.low, o.a, out, o_sums.a)
        of_heads = torch.autograd.grad(attention.out, attention.inputs, g_out)
        contiguous = tuple(part.contiguous() for part in of_heads)
        rows = rotate_grad(
            contiguous, attention.raw, attention.low, qkv.b, batch.cos, batch.sin, self.heads,
            qkv_sums.low, qkv_sums.b, qkv.scaling, self.projections["qkv"].weight_scale,
        )  # fmt: skip
        g_rows = self.projections["qkv"].input_grad(rows)
        return input_grad(g_rows, qkv_sums.low, qkv.a, hidden, qkv_sums.a, norm=self.norms[0], residual=g)

    def _chunks(self, tokens: int) -> list[slice]:
        size = -(-tokens // self.memory.mlp_chunks)
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


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
