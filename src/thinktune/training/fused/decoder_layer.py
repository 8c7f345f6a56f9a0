"""A decoder layer with its adapters as one autograd node, for Llama-, Mistral-, Qwen2- and Qwen3-style models on CUDA.

Between the matrix products there is nothing but the kernels of `fused.kernels`: each reads the residual stream, or a
product, once, and does all of this there: bias, low-rank update, norm, rotary, SwiGLU, quantisation,
and in the backward pass the adapters' gradients. Saved activations are a choice (`RecomputePolicy`), not autograd's:
norms, activations and low-rank products are always computed again, products where memory is short.

With x the layer's input and n1, n2 the RMSNorms:

    attention(rotate(n1(x) Wqkv')) -> o;   m = x + o Wo';   [gate, up] = n2(m) Wgu';   y = m + (silu(gate) * up) Wd'

where each product has its low-rank update `s (rows A') B'`, with dropout on its input where the adapter has it. Above
rank 32 these are no part of the kernels, but products of their own (`low_rank`). Parameters, their names and PEFT's
adapter format are unchanged; the adapters' master weights may be, and are in our trainings, float32 under a bfloat16
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from thinktune.planner.recompute_policy import Level, RecomputePolicy
from thinktune.training.fused import low_rank
from thinktune.training.fused.activation_offload import HostStore
from thinktune.training.fused.frozen_projection import Fp8Projection, Scratch, join, make_projection
from thinktune.training.fused.kernels.common import Rows, quantise
from thinktune.training.fused.kernels.dropout import Dropout
from thinktune.training.fused.kernels.qkv_rotary import Heads, rotate, rotate_grad
from thinktune.training.fused.kernels.rmsnorm_lora import add_norm_project, input_grad, output_grad
from thinktune.training.fused.kernels.swiglu import plain_swiglu, swiglu, swiglu_grad
from thinktune.training.fused.lora_buffers import Adapter, Sums, base_of, dropout_of, make_sums
from thinktune.training.fused.packed_attention import packed_attention, window_of

_GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
_PLACES = {"qkv": 0, "o": 3, "gate_up": 4, "down": 6}  # of a group's first projection among the seven of a layer


@dataclass
class Batch:
    """The data of a packed batch that all layers share.

    Attributes:
        cos, sin: [tokens, head dim].
        documents: the keyword arguments of `packed_attention`.
        dropout: of the first projection of the first layer; None: nothing is dropped.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    documents: dict[str, Any]
    dropout: Dropout | None = None

    def dropout_of(self, layer: int, group: str, part: slice = slice(None)) -> Dropout | None:
        """The dropout on the input of a layer's group of adapters, for these tokens."""
        return None if self.dropout is None else self.dropout[part].of_slot(8 * layer + _PLACES[group])


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
        self.adapters = {group: Adapter(modules, rank, scaling) for group, modules in groups.items()}
        large = not self.adapters["down"].in_kernels
        # The two widest matrices that a low-rank product is added to, of gate and up forward, of down backward.
        beside = {"gate_up": 2 * rank if large else 0}
        below = {"down": rank if large and not dropout_of(self._adapted[0]) else 0}
        self.projections = {
            group: make_projection(
                [base_of(module) for module in modules], dtype, scratch,
                beside=beside.get(group, 0), below=below.get(group, 0),
            )
            for group, modules in groups.items()
        }  # fmt: skip
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
        middle, rows, low = self._after_attention(hidden, attention, batch)
        if not whole:
            attention = None  # its memory is free for the MLP
        out = torch.empty_like(middle)
        down = self.adapters["down"]
        low_down = torch.zeros(
            len(low), down.rank, dtype=torch.float32 if down.in_kernels else low.dtype, device=low.device
        )
        gate_up = None
        for part in self._chunks(len(hidden)):
            del gate_up
            gate_up = self._product("gate_up", rows[part], low[part])
            self._feed_forward(gate_up, middle[part], low[part], low_down[part], out[part], batch, part)
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
            middle, rows, low = self._after_attention(hidden, attention, batch)
        elif saved.gate_up is None:
            rows = self._rows_again(middle, low)
        g_middle = torch.empty_like(g)
        in_kernels = self.adapters["down"].in_kernels
        feed_forward_grad = self._feed_forward_grad if in_kernels else self._feed_forward_grad_of_large_rank
        for part in self._chunks(len(g)):
            gate_up = saved.gate_up
            if gate_up is None:
                gate_up = self._product("gate_up", rows[part], low[part])
            feed_forward_grad(
                g[part], middle[part], low[part], saved.low_down[part], gate_up, sums, batch, part, g_middle[part]
            )
            del gate_up
        del rows, low, middle
        saved.gate_up = saved.middle = None
        attention_grad = self._attention_grad if in_kernels else self._attention_grad_of_large_rank
        g_hidden = attention_grad(g_middle, hidden, attention, batch, sums)
        ordered = [
            part
            for group, adapter in self.adapters.items()
            for part in adapter.by_parameter(sums[group].a, sums[group].b)
        ]
        return g_hidden, ordered

    def _attend(self, hidden: torch.Tensor, batch: Batch, *, grad: bool) -> Attention:
        _, rows, low = self._enter("qkv", hidden, batch, norm=self.norms[0])
        raw = self._product("qkv", rows, low)
        turned = rotate(raw, *self._update("qkv", low), batch.cos, batch.sin, self.heads)
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
        o, entered, dropout = self.adapters["o"], out.detach(), batch.dropout_of(self._number, "o")
        if o.in_kernels:
            _, _, low_out = add_norm_project(entered, a=o.a, dropout=dropout, write=False)
        else:
            low_out = low_rank.project(entered, o, dropout)
        return Attention(raw if heads.norms else None, low, low_out, leaves, out)

    def _after_attention(self, hidden: torch.Tensor, attention: Attention, batch: Batch) -> Any:
        """Return the residual stream after attention, its normed rows, and their low-rank product."""
        out = attention.out.detach()
        product = self._product("o", quantise(out) if self.projections["o"].quantised else out, attention.low_out)
        update = (product, *self._update("o", attention.low_out))
        return self._enter("gate_up", hidden, batch, norm=self.norms[1], update=update)

    def _rows_again(self, middle: torch.Tensor, low: torch.Tensor) -> Any:
        """Return what `_after_attention` returned as normed rows."""
        projection = self.projections["gate_up"]
        beside = low_rank.beside(projection)
        _, rows, _ = add_norm_project(
            middle, norm=self.norms[1], in_fp8=projection.quantised and self.adapters["gate_up"].in_kernels,
            beside=beside,
        )  # fmt: skip
        if isinstance(rows, torch.Tensor) and beside:
            rows[:, middle.shape[1] :] = low
        return quantise(rows) if isinstance(rows, torch.Tensor) and projection.quantised else rows

    def _enter(self, group: str, x: torch.Tensor, batch: Batch, *, norm: Any, update: Any = None) -> Any:
        """Add an update to the residual stream and norm it; return the sum, the rows as the group's product takes
        them, and their low-rank product."""
        adapter, in_fp8 = self.adapters[group], self.projections[group].quantised
        dropout = batch.dropout_of(self._number, group)
        if adapter.in_kernels:
            return add_norm_project(x, update=update, norm=norm, a=adapter.a, dropout=dropout, in_fp8=in_fp8)
        beside = low_rank.beside(self.projections[group])
        total, rows, _ = add_norm_project(x, update=update, norm=norm, beside=beside)
        assert isinstance(rows, torch.Tensor)
        low = low_rank.project(rows[:, : x.shape[1]], adapter, dropout)
        if beside:
            rows[:, x.shape[1] :] = low
        return total, quantise(rows) if in_fp8 else rows, low

    def _product(self, group: str, rows: Rows, low: torch.Tensor) -> torch.Tensor:
        """Multiply by the frozen weights; a low-rank update that the kernel behind does not add is in it too."""
        product = self.projections[group].product(rows)
        if not self.adapters[group].in_kernels and not low_rank.beside(self.projections[group]):
            low_rank.add_update(product, low, self.adapters[group])
        return product

    def _update(self, group: str, low: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The low-rank product and B of the update that the kernel behind a product adds to it."""
        adapter = self.adapters[group]
        return (low, adapter.b) if adapter.in_kernels else (None, None)

    def _feed_forward(
        self,
        gate_up: torch.Tensor,
        middle: torch.Tensor,
        low: torch.Tensor,
        low_down: torch.Tensor,
        out: torch.Tensor,
        batch: Batch,
        part: slice,
    ) -> None:
        """Write the layer's output, and the low-rank activation of down, of these tokens (`part` of all)."""
        down, adapter = self.projections["down"], self.adapters["down"]
        dropout = batch.dropout_of(self._number, "down", part)
        if adapter.in_kernels:
            rows = swiglu(gate_up, low, self.adapters["gate_up"].b, adapter.a, low_down, dropout)
        else:
            rows = plain_swiglu(gate_up)
            low_down.copy_(low_rank.project(rows, adapter, dropout))
        product = self._product("down", quantise(rows) if down.quantised else rows, low_down)
        add_norm_project(middle, update=(product, *self._update("down", low_down)), write=False, into=out)

    def _feed_forward_grad(
        self,
        g: torch.Tensor,
        middle: torch.Tensor,
        low: torch.Tensor,
        low_down: torch.Tensor,
        gate_up: torch.Tensor,
        sums: dict[str, Sums],
        batch: Batch,
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
            batch.dropout_of(self._number, "down", part),
        )  # fmt: skip
        del g_product
        g_normed = self.projections["gate_up"].input_grad(rows)
        input_grad(
            g_normed, wide_low, wide.a, middle, wide_sums.a, norm=self.norms[1], residual=g,
            dropout=batch.dropout_of(self._number, "gate_up", part), into=out,
        )  # fmt: skip

    def _attention_grad(
        self, g: torch.Tensor, hidden: torch.Tensor, attention: Attention, batch: Batch, sums: dict[str, Sums]
    ) -> torch.Tensor:
        o, qkv, o_sums, qkv_sums = self.adapters["o"], self.adapters["qkv"], sums["o"], sums["qkv"]
        out = attention.out.detach()
        rows = output_grad(
            g, attention.low_out, o.b, o_sums.low, o_sums.b, o.scaling, self.projections["o"].weight_scale
        )
        g_out = input_grad(
            self.projections["o"].input_grad(rows), o_sums.low, o.a, out, o_sums.a,
            dropout=batch.dropout_of(self._number, "o"),
        )  # fmt: skip
        rows = rotate_grad(
            _grads_of_heads(attention, g_out), attention.raw, attention.low, qkv.b, batch.cos, batch.sin, self.heads,
            qkv_sums.low, qkv_sums.b, qkv.scaling, self.projections["qkv"].weight_scale,
        )  # fmt: skip
        return input_grad(
            self.projections["qkv"].input_grad(rows), qkv_sums.low, qkv.a, hidden, qkv_sums.a, norm=self.norms[0],
            residual=g, dropout=batch.dropout_of(self._number, "qkv"),
        )  # fmt: skip

    def _feed_forward_grad_of_large_rank(
        self,
        g: torch.Tensor,
        middle: torch.Tensor,
        low: torch.Tensor,
        low_down: torch.Tensor,
        gate_up: torch.Tensor,
        sums: dict[str, Sums],
        batch: Batch,
        part: slice,
        out: torch.Tensor,
    ) -> None:
        """Do the same as `_feed_forward_grad`, with low-rank products of their own."""
        g_active, finish = self._input_grad("down", g, low_down, sums, batch, part)
        finish(plain_swiglu(gate_up, g_active))
        del g_active
        g_normed, finish = self._input_grad("gate_up", gate_up, low, sums, batch, part)
        finish(add_norm_project(middle, norm=self.norms[1])[1])
        input_grad(g_normed, None, None, middle, None, norm=self.norms[1], residual=g, into=out)

    def _attention_grad_of_large_rank(
        self, g: torch.Tensor, hidden: torch.Tensor, attention: Attention, batch: Batch, sums: dict[str, Sums]
    ) -> torch.Tensor:
        g_out, finish = self._input_grad("o", g, attention.low_out, sums, batch)
        finish(attention.out.detach())
        turned = rotate_grad(
            _grads_of_heads(attention, g_out), attention.raw, None, None, batch.cos, batch.sin, self.heads,
            None, None, 1.0,
        )  # fmt: skip
        assert isinstance(turned, torch.Tensor)
        g_normed, finish = self._input_grad("qkv", turned, attention.low, sums, batch)
        finish(add_norm_project(hidden, norm=self.norms[0])[1])
        return input_grad(g_normed, None, None, hidden, None, norm=self.norms[0], residual=g)

    def _input_grad(
        self,
        group: str,
        g: torch.Tensor,
        low: torch.Tensor,
        sums: dict[str, Sums],
        batch: Batch,
        part: slice = slice(None),
    ) -> tuple[torch.Tensor, Callable[[Any], None]]:
        """Return the complete gradient of a group's input; and a function that adds A's gradient, given that input."""
        adapter, scale = self.adapters[group], self.projections[group].weight_scale
        dropout = batch.dropout_of(self._number, group, part)
        g_low = low_rank.output_grad(g, low, adapter, sums[group])
        if low_rank.below(self.projections[group]):
            g_in = self.projections[group].input_grad(torch.cat([g, g_low], 1))
        else:
            g_in = self.projections[group].input_grad(g if scale is None else quantise(g, scale))
            low_rank.add_input_grad(g_in, g_low, adapter, dropout)
        return g_in, lambda x: low_rank.add_a_grad(g_low, x, adapter, sums[group], dropout)

    def _chunks(self, tokens: int) -> list[slice]:
        size = -(-tokens // self.memory.mlp_chunks)
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _grads_of_heads(attention: Attention, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of queries, keys and values from that of attention's output, contiguous."""
    query, key, value = torch.autograd.grad(attention.out, attention.inputs, g)
    return query.contiguous(), key.contiguous(), value.contiguous()


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
