"""A decoder layer with its adapters as one autograd node on a CPU, of PyTorch's own operations.

The products of a small model take a CPU milliseconds, and PEFT's modules start 200 operations a layer around them, each
on one core while the other waits. Here projections that read one input are one product, in which the low-rank update
is a part of the rows and of the weights, norms and activations go straight into the rows of the next one, and autograd
sees the layer as a whole:

    [x | x A'] [W | s B]' = x W' + s (x A') B';   [g | s g B] [W; A] = g W + s g B A

The weights of the layers become parts of the joined ones until `undo`; names and adapters are unchanged.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from thinktune.training.fused.document_by_document import KEYS
from thinktune.training.fused.layer_parts import (
    AttentionParts,
    MlpParts,
    Norm,
    NotFusable,
    decoder_layers,
    parts_of,
)
from thinktune.training.fused.lora_buffers import base_of, matrices
from thinktune.training.fused.lora_linear import is_plain
from thinktune.training.fused.packed_attention import packed_attention, window_of

_DOCUMENTS = ("attention_mask", "cu_seq_lens_q", "max_length_q", "document_lengths", "repeats", *KEYS)


@contextmanager
def layers_on_cpu(model: Any) -> Iterator[bool]:
    """Run the decoder layers of a model as single nodes within the block, if it is one that they compute; yield whether
    they do."""
    parts = _parts(model)
    if parts is None:
        yield False
        return
    layers = [_Layer(attention, mlp) for attention, mlp in parts]
    own = decoder_layers(model.get_base_model())
    for module, layer in zip(own, layers, strict=True):
        module.forward = types.MethodType(_forward_of(layer, type(module).forward), module)
    try:
        yield True
    finally:
        for module, layer in zip(own, layers, strict=True):
            del module.forward
            layer.undo()


def _parts(model: Any) -> list[tuple[AttentionParts, MlpParts]] | None:
    """Return the parts of all layers; None where one of them has something that is not computed here."""
    if not isinstance(model, PeftModel) or model.get_base_model().device.type != "cpu":
        return None
    base = model.get_base_model()
    try:
        parts = [parts_of(layer, base.config.get_text_config()) for layer in decoder_layers(base)]
    except NotFusable:
        return None
    known = [(attention, mlp) for attention, mlp in parts if attention and mlp and _is_known(attention, mlp)]
    frozen = all("lora_" in name or not each.requires_grad for name, each in model.named_parameters())
    return known if known and len(known) == len(parts) and frozen else None


def _is_known(attention: AttentionParts, mlp: MlpParts) -> bool:
    modules = [*attention.projections, *mlp.projections]
    return (
        all(is_plain(each) if isinstance(each, LoraLayer) else type(each) is torch.nn.Linear for each in modules)
        and any(isinstance(each, LoraLayer) for each in modules)
        and attention.before is not None
        and mlp.before is not None
        and (attention.after, mlp.after, attention.head_norms, attention.query_scale) == (None, None, None, None)
        and attention.gain == mlp.gain == 1.0
        and attention.turns
        and mlp.activation == "silu"
    )


class _Joined:
    """Projections of one input, and their adapters, as one product.

    Attributes:
        width: of the input.
        outputs: of all projections together.
        low: columns of all low-rank products.
    """

    def __init__(self, modules: Sequence[Any]) -> None:
        self._layers = [base_of(module) for module in modules]
        self._adapted = [module for module in modules if isinstance(module, LoraLayer)]
        pairs = [matrices(module) for module in self._adapted]
        self.parameters = [matrix for pair in pairs for matrix in pair]
        self._scalings = [module.scaling[next(iter(module.lora_A))] for module in self._adapted]
        weights = [layer.weight.data for layer in self._layers]
        sizes = [len(weight) for weight in weights]
        self.outputs, self.width, self.low = sum(sizes), weights[0].shape[1], sum(len(a) for a, _ in pairs)
        self._weight = weights[0].new_zeros(self.outputs + self.low, self.width + self.low)
        self._frozen = self._weight[: self.outputs, : self.width].split(sizes)
        for layer, part, weight in zip(self._layers, self._frozen, weights, strict=True):
            layer.weight.data = part.copy_(weight)
        biases = [layer.bias for layer in self._layers]
        self._bias = None if biases[0] is None else torch.cat([bias.data for bias in biases])
        ends = dict(zip(map(id, modules), torch.tensor(sizes).cumsum(0).tolist(), strict=True))
        self._places, start = [], 0  # of each adapter: columns of the output, and of the low-rank products
        for module, (a, b) in zip(self._adapted, pairs, strict=True):
            end = ends[id(module)]
            self._places.append((slice(end - len(b), end), slice(start, start := start + len(a))))

    def undo(self) -> None:
        """Give the layers weights of their own back."""
        for layer, part in zip(self._layers, self._frozen, strict=True):
            layer.weight.data = part.contiguous()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring A and B in the weights up to date."""
        a, b = self._weight[self.outputs :, : self.width], self._weight[: self.outputs, self.width :]
        for number, (out, part) in enumerate(self._places):
            a[part].copy_(self.parameters[2 * number])
            torch.mul(self.parameters[2 * number + 1], self._scalings[number], out=b[out, part])

    def rows(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make rows for `product`; return them, and the part of them that takes the input."""
        rows = like.new_empty(len(like), self.width + self.low)
        return rows, rows[:, : self.width]

    def gradient(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make a gradient for `backward`; return it, and the part of it that takes the gradient of the output."""
        gradient = like.new_empty(len(like), self.outputs + self.low)
        return gradient, gradient[:, : self.outputs]

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply [tokens, width + low], whose last columns are filled in, to [tokens, outputs]."""
        if self.low:
            torch.mm(rows[:, : self.width], self._weight[self.outputs :, : self.width].t(), out=rows[:, self.width :])
        product = rows @ self._weight[: self.outputs].t()
        return product if self._bias is None else product.add_(self._bias)

    def backward(
        self, g: torch.Tensor, rows: torch.Tensor, *, wanted: bool = True
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the gradient of the input, where it is wanted, and those of `parameters`."""
        low, g_low = rows[:, self.width :], g[:, self.outputs :]
        b = self._weight[: self.outputs, self.width :]
        for out, part in self._places:
            torch.mm(g[:, out], b[out, part], out=g_low[:, part])
        of_a = (g_low.t() @ rows[:, : self.width]).float()
        grads = []
        for (out, part), scaling in zip(self._places, self._scalings, strict=True):
            grads += [of_a[part], (g[:, out].t() @ low[:, part]).float().mul_(scaling)]
        return (g @ self._weight[:, : self.width] if wanted else g), grads


@dataclass
class _Saved:
    """Tensors of a layer between forward and backward: its input, the rows of each product, queries and keys, values,
    and attention's own graph of them; the stream between the halves, and gate and up."""

    hidden: torch.Tensor
    rows: list[torch.Tensor]
    leaves: tuple[torch.Tensor, torch.Tensor]
    attended: torch.Tensor
    middle: torch.Tensor
    gate_up: torch.Tensor


class _Layer:
    def __init__(self, attention: AttentionParts, mlp: MlpParts) -> None:
        assert attention.before is not None
        assert mlp.before is not None
        self.qkv, self.o = _Joined(attention.qkv), _Joined([attention.o])
        self.gate_up, self.down = _Joined(mlp.gate_up), _Joined([mlp.down])
        self.groups = [self.qkv, self.o, self.gate_up, self.down]
        self.parameters = [parameter for group in self.groups for parameter in group.parameters]
        self.adapted = [each for each in (*attention.projections, *mlp.projections) if isinstance(each, LoraLayer)]
        self.head_dim = attention.head_dim
        self._norms = attention.before, mlp.before
        self._heads = attention.query_heads, attention.key_heads
        self._scale, self._window = attention.scale, window_of(attention.module)

    def undo(self) -> None:
        for group in self.groups:
            group.undo()

    def forward(
        self, hidden: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], documents: dict[str, Any], *, keep: bool
    ) -> tuple[torch.Tensor, _Saved | None]:
        """Compute [tokens, width] -> [tokens, width]."""
        for group in self.groups:
            group.refresh()
        (queries, keys), f = self._heads, self.down.width
        entered, into = self.qkv.rows(hidden)
        _norm(hidden, self._norms[0], into)
        heads = self.qkv.product(entered).view(len(hidden), -1, self.head_dim)
        leaves = _turn(heads[:, : queries + keys], turn), heads[:, queries + keys :]
        with torch.set_grad_enabled(keep):
            leaves = leaves[0].requires_grad_(keep), leaves[1].detach().requires_grad_(keep)
            query, key = leaves[0].transpose(0, 1)[None].split([queries, keys], dim=1)
            value = leaves[1].transpose(0, 1)[None]
            attended, _ = packed_attention(
                None,
                query, key, value, scaling=self._scale, sliding_window=self._window, **documents,
            )  # fmt: skip
        seen, into = self.o.rows(hidden)
        into.copy_(attended.detach().view(len(hidden), -1))
        middle = self.o.product(seen).add_(hidden)
        fed, into = self.gate_up.rows(hidden)
        _norm(middle, self._norms[1], into)
        gate_up = self.gate_up.product(fed)
        active, into = self.down.rows(hidden)
        torch.mul(F.silu(gate_up[:, :f]), gate_up[:, f:], out=into)
        out = self.down.product(active).add_(middle)
        return out, _Saved(hidden, [entered, seen, fed, active], leaves, attended, middle, gate_up) if keep else None

    def backward(
        self, g: torch.Tensor, saved: _Saved, turn: tuple[torch.Tensor, torch.Tensor], *, wanted: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return the gradient of the input, where it is wanted, and those of `parameters`."""
        f, (queries, keys) = self.down.width, self._heads
        entered, seen, fed, active = saved.rows
        gate, up = saved.gate_up[:, :f], saved.gate_up[:, f:]
        entering, into = self.down.gradient(g)
        into.copy_(g)
        g_active, of_down = self.down.backward(entering, active)
        entering, into = self.gate_up.gradient(g)
        torch.mul(g_active, F.silu(gate), out=into[:, f:])
        into[:, :f] = torch.ops.aten.silu_backward(g_active.mul_(up), gate)
        g_normed, of_gate_up = self.gate_up.backward(entering, fed)
        g_middle = _norm_grad(g_normed, saved.middle, self._norms[1], residual=g)
        entering, into = self.o.gradient(g)
        into.copy_(g_middle)
        g_seen, of_o = self.o.backward(entering, seen)
        g_turned, g_value = torch.autograd.grad(saved.attended, saved.leaves, g_seen.view_as(saved.attended))
        entering, into = self.qkv.gradient(g)
        heads = into.view(len(g), -1, self.head_dim)
        _turn(g_turned, (turn[0], -turn[1]), heads[:, : queries + keys])
        heads[:, queries + keys :] = g_value
        g_normed, of_qkv = self.qkv.backward(entering, entered, wanted=wanted)
        grads = [*of_qkv, *of_o, *of_gate_up, *of_down]
        return (_norm_grad(g_normed, saved.hidden, self._norms[0], residual=g_middle) if wanted else None), grads


class _LayerNode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: _Layer, turn: Any, documents: dict[str, Any], *parameters: torch.Tensor
    ) -> torch.Tensor:
        out, ctx.saved = layer.forward(hidden[0], turn, documents, keep=any(ctx.needs_input_grad))
        ctx.layer, ctx.turn = layer, turn
        return out[None]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, ctx.saved = ctx.saved, None
        g_hidden, grads = ctx.layer.backward(g[0], saved, ctx.turn, wanted=ctx.needs_input_grad[0])
        return (None if g_hidden is None else g_hidden[None], None, None, None, *grads)


def _forward_of(layer: _Layer, original: Any) -> Any:
    def forward(module: Any, hidden_states: torch.Tensor, *args: Any, **inputs: Any) -> Any:
        turn: Any = inputs.get("position_embeddings")
        packed = not args and turn is not None and inputs.get("cu_seq_lens_q") is not None
        if not packed or turn[0].shape[-1] != layer.head_dim or any(map(_is_off, layer.adapted)):
            return original(module, hidden_states, *args, **inputs)
        documents = {name: inputs.get(name) for name in _DOCUMENTS}
        return _LayerNode.apply(hidden_states, layer, (turn[0][0], turn[1][0]), documents, *layer.parameters)

    return forward


def _is_off(module: Any) -> bool:
    return bool(module.disable_adapters or module.merged)


def _norm(x: torch.Tensor, norm: Norm, into: torch.Tensor) -> None:
    weight, eps = norm
    wide = x.float()
    torch.mul((wide * _inverse(wide, eps)).to(x.dtype), weight, out=into)


def _norm_grad(g: torch.Tensor, x: torch.Tensor, norm: Norm, *, residual: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a norm's input, with that which goes around it added."""
    weight, eps = norm
    wide = x.float()
    inverse = _inverse(wide, eps)
    normed = wide * inverse
    g_wide = g.float().mul_(weight)
    mean = torch.linalg.vecdot(g_wide, normed).div_(-x.shape[-1])
    return g_wide.addcmul_(normed, mean[:, None]).mul_(inverse).add_(residual).to(x.dtype)


def _inverse(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def _turn(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], into: torch.Tensor | None = None) -> torch.Tensor:
    """Turn [tokens, heads, dim] by positions; by the negative sine, that is the gradient."""
    (cos, sin), half = (each[:, None] for each in turn), x.shape[-1] // 2
    turned = torch.mul(x, cos) if into is None else torch.mul(x, cos, out=into)
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned
