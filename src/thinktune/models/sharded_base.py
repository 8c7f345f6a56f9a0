"""A frozen base of which a process keeps a part: whole decoder layers are brought together while they are needed.

The linear weights of a layer lie one behind another as bytes, in the form that products read: 16-bit numbers, the bits
of e4m3, packed nf4. Of these bytes each of N processes keeps the N-th part; embeddings, head, norms, biases and scales
are on all. There is room for two whole layers, one of even number and one of odd. A weight is a view into the room of
its layer, for good, so whatever computes with it, fused or not, finds it there, and holds its numbers only while the
layer is there: a hook brings it before its forward pass and, on the way back, before its backward pass. Meanwhile the
next one in that direction is on its way into the other room.

Every process has to go through the layers equally often, as they wait for one another: see `pass_by`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from thinktune.config import Quantize
from thinktune.errors import ModelError

_ALIGNED = 16  # bytes, as products want their operands; parts that are multiples of it lie together
_DIGEST_ROW = 64
_MOST_BESIDE = 0.1
"""Share of a layer's weights that may be in no linear layer."""


class Coming(Protocol):
    """A layer on its way."""

    def wait(self) -> Any:
        """Have what is computed from now on wait for it."""


Gather = Callable[[torch.Tensor, torch.Tensor], Coming]
"""Begins to bring a layer [bytes] together from this process's part of it and those of others, once all that has been
started on the device is done."""


@dataclass
class _Part:
    """The bytes of a tensor in its layer; `view` and `digest` are known once it was read."""

    layer: int
    start: int
    size: int
    view: torch.Tensor | None = None
    digest: int = 0


@dataclass
class _Weight:
    """A weight and, of nf4, its scales."""

    parts: list[_Part] = field(default_factory=list)


class ShardedBase:
    """The linear weights of a model's decoder layers, of which this process keeps one part in `size`."""

    def __init__(self, rank: int, size: int, gather: Gather, quantize: Quantize, device: torch.device) -> None:
        self.quantize = quantize
        self._rank, self._size = rank, size
        self._gather = gather
        self._device = device
        self._weights: dict[str, _Weight] = {}
        self._views: list[list[tuple[torch.nn.Parameter, int]]] = []
        self._own: list[torch.Tensor] = []
        self._rooms: list[torch.Tensor] = []
        self._there: list[int | None] = [None, None]
        self._coming: list[Coming | None] = [None, None]
        self._at, self._on_way_back = -1, False

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    @property
    def digest(self) -> int:
        """A number that changes with any of the weights, the same on all processes that have read the same."""
        parts = (part for weight in self._weights.values() for part in weight.parts)
        return sum(place * part.digest for place, part in enumerate(parts, start=1))

    def lay_out(self, model: Any) -> None:
        """Say where each weight of a model, whose weights are not there yet, will be.

        Raises:
            ModelError: its weights are not in linear layers, or its layers cannot be found.
        """
        layers = list(getattr(model.get_decoder(), "layers", ()))
        if not layers or not model._can_set_attn_implementation():
            raise _not_spread(model, "its decoder layers are not of the usual kind")
        names = {module: name for name, module in model.named_modules()}
        lengths = [self._lay_out_layer(model, number, layer, names) for number, layer in enumerate(layers)]
        step = self._size * _ALIGNED
        lengths = [-(-length // step) * step for length in lengths]
        self._views = [[] for _ in lengths]
        self._own = [torch.zeros(length // self._size, dtype=torch.uint8, device=self._device) for length in lengths]
        self._rooms = [torch.zeros(max(lengths), dtype=torch.uint8, device=self._device) for _ in range(2)]

    def _lay_out_layer(self, model: Any, number: int, layer: Any, names: dict[Any, str]) -> int:
        """Place the weights of a layer, then their scales; return its bytes."""
        linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        inside = sum(module.weight.numel() for module in linears)
        if sum(parameter.numel() for parameter in layer.parameters()) - inside > _MOST_BESIDE * inside:
            raise _not_spread(model, "weights of its layers, experts perhaps, are not in linear layers")
        end = 0
        for sizes in zip(*(self._sizes(module) for module in linears), strict=True):
            for module, size in zip(linears, sizes, strict=True):
                weight = self._weights.setdefault(f"{names[module]}.weight", _Weight())
                weight.parts.append(_Part(number, end, size))
                end += -(-size // _ALIGNED) * _ALIGNED
        return end

    def _sizes(self, module: torch.nn.Linear) -> tuple[int, ...]:
        """Return the bytes of a weight and, of nf4, of its scales, which are quantised themselves."""
        count = module.in_features * module.out_features
        if self.quantize == "nf4":
            return -(-count // 2), -(-count // 64)
        return (count if self.quantize == "fp8" else count * module.weight.element_size(),)

    def keep(self, name: str, weight: torch.nn.Parameter) -> torch.nn.Parameter:
        """Keep this process's part of a weight that was read, and make it a view into the room of its layer.

        Raises:
            ModelError: it is not of the size that the model has for it.
        """
        first, *scales = self._weights[name].parts
        weight.data = self._keep(name, first, weight.data)
        self._views[first.layer].append((weight, weight.data_ptr()))
        weight.is_sharded = True
        for part in scales:
            state: Any = weight.quant_state
            state.absmax = self._keep(name, part, state.absmax)
        return weight

    def _keep(self, name: str, part: _Part, tensor: torch.Tensor) -> torch.Tensor:
        whole, own = tensor.contiguous().view(-1).view(torch.uint8), self._own[part.layer]
        if len(whole) != part.size:
            raise ModelError(
                f"{name} has {len(whole):,} bytes, and should have {part.size:,}",
                hint="its config.json and its weights do not belong together; else train.shard_base=false",
            )
        part.digest = _digest(whole)
        begin = self._rank * len(own)
        start, end = max(part.start, begin), min(part.start + part.size, begin + len(own))
        if start < end:
            own[start - begin : end - begin].copy_(whole[start - part.start : end - part.start])
        room = self._rooms[part.layer % 2][part.start : part.start + part.size]
        part.view = room.view(tensor.dtype).view(tensor.shape)
        return part.view

    def attach(self, model: Any) -> None:
        """Have the layers of the loaded model brought when they are called, and check that all arrive as they were
        read.

        Raises:
            ModelError: one does not.
        """
        for number, layer in enumerate(model.get_decoder().layers):
            layer.register_forward_pre_hook(partial(self._before_forward, number))
            layer.register_forward_hook(partial(self._behind_forward, number))
        model.sharded_base = self
        for name, weight in self._weights.items():
            for part in weight.parts:
                self._bring(part.layer, 1)
                if part.view is None or _digest(part.view.view(-1).view(torch.uint8)) != part.digest:
                    raise ModelError(f"{name} does not arrive as it was read", hint="train.shard_base=false")

    def pass_by(self, *, backward: bool) -> None:
        """Take part in a forward pass of the others, and in its backward pass, without a batch of one's own."""
        for number in range(len(self._own)):
            self._before_forward(number)
        for number in reversed(range(len(self._own))) if backward else ():
            self._bring(number, -1)

    def _before_forward(self, number: int, *_: Any) -> None:
        if any(weight.data_ptr() != place for weight, place in self._views[number]):
            raise ModelError(f"weights of layer {number} were moved away", hint="train.shard_base=false; report it")
        if not (self._on_way_back and self._at == number):  # computed again, in its backward pass
            self._bring(number, 1)

    def _behind_forward(self, number: int, _: Any, __: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:  # its gradient is the first thing that the layer's backward pass needs
            hidden.register_hook(lambda _: self._bring(number, -1))

    def _bring(self, number: int, ahead: int) -> None:
        """Have a layer there for all that is computed from now on, and the one ahead on its way."""
        self._at, self._on_way_back = number, ahead < 0
        self._start(number)
        self._wait(number % 2)
        if 0 <= number + ahead < len(self._own):
            self._start(number + ahead)

    def _start(self, number: int) -> None:
        room, own = number % 2, self._own[number]
        if self._there[room] != number:
            self._wait(room)
            self._there[room] = number
            self._coming[room] = self._gather(self._rooms[room][: self._size * len(own)], own)

    def _wait(self, room: int) -> None:
        coming, self._coming[room] = self._coming[room], None
        if coming is not None:
            coming.wait()


def sharded_base_of(model: Any) -> ShardedBase | None:
    """Return the sharded base of a model, or of the one below a PeftModel; None: all of it is here."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    base: ShardedBase | None = vars(inner).get("sharded_base")
    return base


def is_sharded(weight: torch.Tensor) -> bool:
    """Tell whether a weight is a view into the room of its layer."""
    return getattr(weight, "is_sharded", False)


def lying_together(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """Return matrices that lie one behind another in memory as one, [sum of rows, columns]; None: they do not."""
    first, end = tensors[0], tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or tensor.shape[1:] != first.shape[1:]:
            return None
        end += tensor.nbytes
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


def _digest(whole: torch.Tensor) -> int:
    """Compute a number that changes with any byte, and with the order of most."""
    cut = len(whole) // _DIGEST_ROW * _DIGEST_ROW
    sums = whole[:cut].view(-1, _DIGEST_ROW).sum(1, dtype=torch.int64)
    places = torch.arange(1, len(sums) + 1, device=whole.device)
    return int((sums * places).sum() + whole[cut:].sum(dtype=torch.int64))


def _not_spread(model: Any, why: str) -> ModelError:
    return ModelError(
        f"the base cannot be spread over GPUs: {why} ({type(model).__name__})",
        hint="quantize: nf4 or fp8, or a smaller model",
    )
