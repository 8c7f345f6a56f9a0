"""A decoder layer with its adapters as one autograd node, for Llama-, Mistral-, Qwen2- and Qwen3-style models on CUDA.

Between the matrix products there is nothing but the kernels of fast/kernels: each reads the residual stream, or a
product, once, and does there everything that is to be done: bias, low-rank update, norm, rotary, SwiGLU, quantisation,
and in the backward pass the adapters' gradients. What autograd would keep for itself, here is kept by choice
(`Memory`): norms, activations and low-rank products are always computed again, products where memory is short.

With x the layer's input and n1, n2 the RMSNorms:

    attention(rotate(n1(x) Wqkv')) -> o;   m = x + o Wo';   [gate, up] = n2(m) Wgu';   y = m + (silu(gate) * up) Wd'

where each product has its low-rank update `s (rows A') B'`. Parameters, their names and PEFT's adapter format stay what
they are; the adapters' master weights may be, and are in our trainings, float32 under a bfloat16 model.
"""

from __future__ import annotations

import math
import types
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from thinktune.fast.attention import packed_attention
from thinktune.fast.kernels.heads import Heads, rotate, rotate_grad
from thinktune.fast.kernels.launch import power_of_two, quantise
from thinktune.fast.kernels.mlp import swiglu, swiglu_grad
from thinktune.fast.kernels.rows import add_norm_project, input_grad, output_grad
from thinktune.fast.memory import Level, Memory
from thinktune.fast.offload import HostStore
from thinktune.fast.projection import Scratch, join, make_projection

_KNOWN = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"}
_GROUPS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
_LARGEST_RANK = 64


@dataclass
class Batch:
    """What all layers need to know of a packed batch.

    Attributes:
        cos, sin: [tokens, head dim].
        documents: the keyword arguments of `packed_attention`.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    documents: dict[str, Any]


@dataclass
class Saved:
    """What a layer keeps for its backward pass; None is computed again."""

    hidden: torch.Tensor | None
    attention: Attention | None = None
    middle: torch.Tensor | None = None
    low_down: torch.Tensor | None = None
    gate_up: torch.Tensor | None = None


@dataclass
class Attention:
    """Attention's own autograd graph, and what led to it.

    Attributes:
        raw: the joined product where its heads are normed afterwards, else None.
        low: [tokens, 3 rank].
        inputs: queries, keys and values, [tokens, heads, dim] each, leaves of the graph.
        out: [tokens, heads * dim].
    """

    raw: torch.Tensor | None
    low: torch.Tensor
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out: torch.Tensor


class Adapter:
    """The adapters of a group of projections that read one input.

    Attributes:
        modules: PEFT's, or the plain linear layer where one has no adapter.
        a: [slots, rank, in], b: [out, rank] times the scaling: what the kernels read, in the model's dtype. A slot
            without an adapter is zero.
    """

    a: torch.Tensor
    b: torch.Tensor

    def __init__(self, modules: list[Any], rank: int, scaling: float) -> None:
        self.rank, self.scaling = rank, scaling
        self.modules = modules
        self._outs = [module.out_features for module in modules]
        self._trained = [index for index, module in enumerate(modules) if isinstance(module, LoraLayer)]
        self.shape_a = (len(modules), rank, modules[0].in_features)
        self.shape_b = (sum(self._outs), rank)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """A and B of each module that has them."""
        return [matrix for index in self._trained for matrix in _matrices(self.modules[index])]

    def make_grads(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros, float32, in the shapes of a and b."""
        sizes = [math.prod(self.shape_a), math.prod(self.shape_b)]
        of_a, of_b = torch.zeros(sum(sizes), dtype=torch.float32, device=self.a.device).split(sizes)
        return of_a.view(self.shape_a), of_b.view(self.shape_b)

    def by_parameter(self, of_a: torch.Tensor, of_b: torch.Tensor) -> list[torch.Tensor]:
        """Tensors of the shapes of a and b as parts that belong to `parameters`."""
        parts = of_b.split(self._outs)
        return [part for index in self._trained for part in (of_a[index], parts[index])]


class Adapters:
    """All adapters of a model in two flat buffers, so that what the kernels read is refreshed by two copies.

    The parameters become parts of a float32 buffer; where somebody gives one other memory (TRL casts those of quantised
    models), its values are taken over at the next refresh.
    """

    def __init__(self, adapters: list[Adapter], scaling: float, dtype: torch.dtype, device: torch.device) -> None:
        self._scaling = scaling
        sizes_a = [math.prod(adapter.shape_a) for adapter in adapters]
        sizes_b = [math.prod(adapter.shape_b) for adapter in adapters]
        self._masters = [torch.zeros(sum(sizes), device=device) for sizes in (sizes_a, sizes_b)]
        self._copies = [torch.zeros_like(master, dtype=dtype) for master in self._masters]
        self._homes: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        buffers = zip(
            adapters, *(flat.split(sizes) for flat, sizes in zip(self._masters, (sizes_a, sizes_b), strict=True)),
            *(flat.split(sizes) for flat, sizes in zip(self._copies, (sizes_a, sizes_b), strict=True)), strict=True,
        )  # fmt: skip
        for adapter, master_a, master_b, copy_a, copy_b in buffers:
            adapter.a, adapter.b = copy_a.view(adapter.shape_a), copy_b.view(adapter.shape_b)
            homes = adapter.by_parameter(master_a.view(adapter.shape_a), master_b.view(adapter.shape_b))
            self._homes += zip(adapter.parameters, homes, strict=True)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring what the kernels read up to date with the parameters."""
        for parameter, home in self._homes:
            if parameter.data_ptr() != home.data_ptr():
                parameter.data = home.copy_(parameter.data)
        self._copies[0].copy_(self._masters[0])
        torch.mul(self._masters[1], self._scaling, out=self._copies[1])


class FusedLayer:
    """One decoder layer: its frozen products, its adapters, and what it keeps between forward and backward."""

    def __init__(self, layer: Any, number: int, rank: int, scaling: float, memory: Memory, scratch: Scratch) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        groups = {
            group: [getattr(mlp if group in ("gate_up", "down") else attention, name) for name in names]
            for group, names in _GROUPS.items()
        }
        self._adapted = [module for modules in groups.values() for module in modules if isinstance(module, LoraLayer)]
        dtype = layer.input_layernorm.weight.dtype
        self.projections = {
            group: make_projection([_base(module) for module in modules], dtype, scratch)
            for group, modules in groups.items()
        }
        self.adapters = {group: Adapter(modules, rank, scaling) for group, modules in groups.items()}
        self.norms = [
            (norm.weight, norm.variance_epsilon) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ]
        dim = attention.head_dim
        biases = [_base(module).bias for module in groups["qkv"]]
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
        self._window = getattr(attention, "sliding_window", None)
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

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for adapter in self.adapters.values() for parameter in adapter.parameters]

    def forward(self, hidden: torch.Tensor, batch: Batch, *, keep: bool) -> tuple[torch.Tensor, Saved | None]:
        """[tokens, width] -> [tokens, width], and what the backward pass will want."""
        attention = self._attend(hidden, batch, grad=keep and self.level != "full")
        middle, rows, low = self._after_attention(hidden, attention.out.detach())
        if not (keep and self.level != "full"):
            attention = None  # type: ignore[assignment]  # its memory is free for the MLP
        out = torch.empty_like(middle)
        low_down = torch.empty(len(low), self.adapters["down"].rank, device=low.device)
        gate_up = None
        for part in self._chunks(len(hidden)):
            gate_up, low_down[part] = self._feed_forward(middle[part], rows[part], low[part], out[part])
        if not keep:
            return out, None
        if self.level == "full":
            kept = None
            if self.store is not None:
                self.store.put(self._number, hidden)
            else:
                kept = hidden
            return out, Saved(kept, low_down=low_down)
        whole = self.level == "none" and self.memory.mlp_chunks == 1
        return out, Saved(hidden, attention, middle, low_down, gate_up if whole else None)

    def backward(self, g: torch.Tensor, saved: Saved, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The gradient of the input, [tokens, width], and those of `parameters`."""
        hidden = saved.hidden
        if hidden is None:
            assert self.store is not None
            hidden = self.store.take(self._number)
        grads = {group: adapter.make_grads() for group, adapter in self.adapters.items()}
        attention = saved.attention or self._attend(hidden, batch, grad=True)
        middle = saved.middle
        rows = low = None
        if middle is None:
            middle, rows, low = self._after_attention(hidden, attention.out.detach())
        else:
            _, rows, low = self._norm(1, middle, "gate_up", write=saved.gate_up is None)
        g_middle = torch.empty_like(g)
        assert low is not None and saved.low_down is not None
        for part in self._chunks(len(g)):
            gate_up = saved.gate_up
            if gate_up is None:
                gate_up = self.projections["gate_up"].product(rows[part])
            self._feed_forward_grad(
                g[part], middle[part], low[part], saved.low_down[part], gate_up, grads, g_middle[part]
            )
        del rows, low, gate_up, middle
        saved.gate_up = saved.middle = None
        g_hidden = self._attention_grad(g_middle, hidden, attention, batch, grads)
        ordered = [part for group, adapter in self.adapters.items() for part in adapter.by_parameter(*grads[group])]
        return g_hidden, ordered

    def _attend(self, hidden: torch.Tensor, batch: Batch, *, grad: bool) -> Attention:
        _, rows, low = self._norm(0, hidden, "qkv")
        raw = self.projections["qkv"].product(rows)
        turned = rotate(raw, low, self.adapters["qkv"].b, batch.cos, batch.sin, self.heads)
        heads = self.heads
        inputs = turned.view(len(hidden), -1, heads.dim).split([heads.query, heads.key, heads.key], dim=1)
        with torch.set_grad_enabled(grad):
            leaves = tuple(part.detach().requires_grad_(grad) for part in inputs)
            query, key, value = (leaf.transpose(0, 1)[None] for leaf in leaves)
            out, _ = packed_attention(
                None, query, key, value, None,  # type: ignore[arg-type]
                scaling=self._attention_scale, sliding_window=self._window, **batch.documents,
            )  # fmt: skip
            out = out.reshape(len(hidden), -1)
        return Attention(raw if heads.norms else None, low, leaves, out)  # type: ignore[arg-type]

    def _norm(self, which: int, hidden: torch.Tensor, group: str, *, write: bool = True) -> Any:
        return add_norm_project(
            hidden, norm=self.norms[which], a=self.adapters[group].a, write=write,
            in_fp8=self.projections[group].quantised,
        )  # fmt: skip

    def _after_attention(self, hidden: torch.Tensor, out: torch.Tensor) -> Any:
        """The residual stream after attention, its normed rows, and their low-rank product."""
        projection, adapter = self.projections["o"], self.adapters["o"]
        _, rows, low = add_norm_project(
            out, a=adapter.a, write=projection.quantised, in_fp8=projection.quantised
        )
        product = projection.product(out if rows is None else rows)
        assert low is not None
        return add_norm_project(
            hidden, update=(product, low, adapter.b), norm=self.norms[1], a=self.adapters["gate_up"].a,
            in_fp8=self.projections["gate_up"].quantised,
        )  # fmt: skip

    def _feed_forward(
        self, middle: torch.Tensor, rows: Any, low: torch.Tensor, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the layer's output; return gate and up, and the low-rank activation of down."""
        down = self.projections["down"]
        gate_up = self.projections["gate_up"].product(rows)
        rows, low_down = swiglu(gate_up, low, self.adapters["gate_up"].b, self.adapters["down"].a)
        product = down.product(quantise(rows) if down.quantised else rows)
        add_norm_project(middle, update=(product, low_down, self.adapters["down"].b), write=False, into=out)
        return gate_up, low_down

    def _feed_forward_grad(
        self,
        g: torch.Tensor,
        middle: torch.Tensor,
        low: torch.Tensor,
        low_down: torch.Tensor,
        gate_up: torch.Tensor,
        grads: dict[str, tuple[torch.Tensor, torch.Tensor]],
        out: torch.Tensor,
    ) -> None:
        """Write the gradient of the residual stream before the MLP."""
        down, wide = self.adapters["down"], self.adapters["gate_up"]
        scales = {group: projection.weight_scale for group, projection in self.projections.items()}
        g_low_down, rows = output_grad(g, low_down, down.b, grads["down"][1], down.scaling, scales["down"])
        g_product = self.projections["down"].input_grad(rows)
        rows, g_low = swiglu_grad(
            gate_up, low, wide.b, down.a, g_product, g_low_down,
            grads["gate_up"][1], grads["down"][0], wide.scaling, scales["gate_up"],
        )  # fmt: skip
        del g_product
        g_normed = self.projections["gate_up"].input_grad(rows)
        input_grad(g_normed, g_low, wide.a, middle, grads["gate_up"][0], norm=self.norms[1], residual=g, into=out)

    def _attention_grad(
        self,
        g: torch.Tensor,
        hidden: torch.Tensor,
        attention: Attention,
        batch: Batch,
        grads: dict[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        o, qkv = self.adapters["o"], self.adapters["qkv"]
        out = attention.out.detach()
        low = self._low_of_attention(out)
        g_low, rows = output_grad(g, low, o.b, grads["o"][1], o.scaling, self.projections["o"].weight_scale)
        g_out = input_grad(self.projections["o"].input_grad(rows), g_low, o.a, out, grads["o"][0])
        of_heads = torch.autograd.grad(attention.out, attention.inputs, g_out)
        contiguous = tuple(part.contiguous() for part in of_heads)
        rows, g_low = rotate_grad(
            contiguous, attention.raw, attention.low, qkv.b, batch.cos, batch.sin, self.heads,  # type: ignore[arg-type]
            grads["qkv"][1], qkv.scaling, self.projections["qkv"].weight_scale,
        )  # fmt: skip
        g_rows = self.projections["qkv"].input_grad(rows)
        return input_grad(g_rows, g_low, qkv.a, hidden, grads["qkv"][0], norm=self.norms[0], residual=g)

    def _low_of_attention(self, out: torch.Tensor) -> torch.Tensor:
        _, _, low = add_norm_project(out, a=self.adapters["o"].a, write=False)
        assert low is not None
        return low

    def _chunks(self, tokens: int) -> list[slice]:
        size = -(-tokens // self.memory.mlp_chunks)
        return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


class _LayerNode(torch.autograd.Function):
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


class FusedLayers:
    """All decoder layers of a model, fused until `undo`.

    Attributes:
        memory: what is kept; may be changed between two steps.
    """

    def __init__(self, model: PeftModel, memory: Memory) -> None:
        base = model.get_base_model()
        self._layers = list(base.base_model.layers)
        rank, scaling = _rank_and_scaling(self._layers)
        scratch = Scratch()
        self.layers = []
        for number, layer in enumerate(self._layers):
            self.layers.append(FusedLayer(layer, number, rank, scaling, memory, scratch))
            layer.forward = types.MethodType(self._forward(self.layers[-1], type(layer).forward), layer)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # weights were joined: the single ones leave gaps of the wrong size
        norm = self._layers[0].input_layernorm.weight
        everything = [adapter for layer in self.layers for adapter in layer.adapters.values()]
        self._adapters = Adapters(everything, scaling, norm.dtype, norm.device)
        self._store: HostStore | None = None
        self.memory = memory

    @property
    def memory(self) -> Memory:
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        self._memory = memory
        self._store = HostStore(len(self.layers)) if memory.offload else None
        for layer in self.layers:
            layer.memory, layer.store = memory, self._store

    def undo(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)

    def _forward(self, fused: FusedLayer, original: Any) -> Any:
        first = fused is self.layers[0]
        names = ("cu_seq_lens_q", "max_length_q", "document_lengths")

        def forward(module: Any, hidden_states: torch.Tensor, *args: Any, **inputs: Any) -> Any:
            documents = {name: inputs.get(name) for name in names}
            if args or documents["cu_seq_lens_q"] is None or fused.is_disabled:
                return original(module, hidden_states, *args, **inputs)
            if first:
                self._adapters.refresh()
            cos, sin = inputs["position_embeddings"]
            batch = Batch(cos[0].contiguous(), sin[0].contiguous(), documents)
            return _LayerNode.apply(hidden_states, fused, batch, *fused.parameters)

        return forward


def fuse_layers(model: PeftModel, memory: Memory) -> FusedLayers:
    """Fuse every decoder layer of a model that `why_not_fused` has nothing against."""
    return FusedLayers(model, memory)


def why_not_fused(model: PeftModel) -> str | None:
    """Why the layers of a model cannot be fused, in a few words; None where they can."""
    base = model.get_base_model()
    layers = list(getattr(base.base_model, "layers", ()))
    names = {type(layer).__name__ for layer in layers}
    if not layers or not names <= _KNOWN:
        return f"{' and '.join(sorted(names)) or type(base).__name__} is no architecture that it knows"
    config = base.config
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if config.attention_dropout or getattr(config, "mlp_bias", False):
        return "it has dropout in attention, or biases in its MLP"
    attention = layers[0].self_attn
    if attention.head_dim != power_of_two(attention.head_dim) or not 32 <= attention.head_dim <= 256:
        return f"its heads have {attention.head_dim} dimensions"
    if _base(attention.o_proj).bias is not None:
        return "its attention's output has a bias"
    modules = [module for layer in layers for module in layer.modules() if isinstance(module, LoraLayer)]
    if any(parameter.requires_grad and "lora_" not in name for name, parameter in model.named_parameters()):
        return "more is trained than low-rank adapters"
    if not all(_is_plain(module) for module in modules):
        return "the adapter has dropout, a bias, or a variant of LoRA"
    if len({(_rank(module), module.scaling[next(iter(module.lora_A))]) for module in modules}) != 1:
        return "the adapter's ranks or scalings differ from layer to layer"
    if _rank(modules[0]) > _LARGEST_RANK:
        return f"the adapter's rank is above {_LARGEST_RANK}"
    return None


def _is_plain(module: Any) -> bool:
    names = list(module.lora_A)
    return (
        len(names) == 1
        and isinstance(module.lora_dropout[names[0]], torch.nn.Identity)
        and not getattr(module, "lora_variant", None)
        and module.lora_B[names[0]].bias is None
    )


def _matrices(module: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    (name,) = module.lora_A
    return module.lora_A[name].weight, module.lora_B[name].weight


def _rank(module: Any) -> int:
    return _matrices(module)[0].shape[0]


def _rank_and_scaling(layers: list[Any]) -> tuple[int, float]:
    module: Any = next(module for layer in layers for module in layer.modules() if isinstance(module, LoraLayer))
    return _rank(module), module.scaling[next(iter(module.lora_A))]


def _base(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


