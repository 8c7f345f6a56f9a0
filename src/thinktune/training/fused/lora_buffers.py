"""The low-rank matrices of a model where the kernels find them: in two flat buffers, each refreshed by one copy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer

from thinktune.planner.fused_models import FUSED_KERNEL_RANK

if TYPE_CHECKING:  # it needs Triton
    from thinktune.training.fused.kernels.low_rank import LowRank


class Adapter:
    """The adapters of a group of projections that read one input.

    Attributes:
        in_kernels: whether the kernels around the frozen products compute the low-rank ones.
        out_parts: the columns of each slot in the joined product.
        modules: PEFT's, or the plain linear layer where one has no adapter; `adapted` are PEFT's alone.
        a: [slots, rank, in], b: [out, rank] times the scaling: what the kernels read, in the model's dtype. A slot
            without an adapter is zero.
    """

    a: torch.Tensor
    b: torch.Tensor

    def __init__(self, modules: list[Any], rank: int, scaling: float) -> None:
        self.rank, self.scaling = rank, scaling
        self.in_kernels = rank <= FUSED_KERNEL_RANK
        self.modules = modules
        self._outs = [module.out_features for module in modules]
        ends = list(itertools.accumulate(self._outs))
        self.out_parts = [slice(end - out, end) for end, out in zip(ends, self._outs, strict=True)]
        self.adapted = [module for module in modules if isinstance(module, LoraLayer)]
        self._trained = [index for index, module in enumerate(modules) if isinstance(module, LoraLayer)]
        self.shape_a = (len(modules), rank, modules[0].in_features)
        self.shape_b = (sum(self._outs), rank)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """A and B of each module that has them."""
        return [matrix for index in self._trained for matrix in matrices(self.modules[index])]

    def low_parts(self) -> Iterator[tuple[int, slice]]:
        """The slots that have an adapter, with their columns in the low-rank activations."""
        for slot in self._trained:
            yield slot, slice(slot * self.rank, (slot + 1) * self.rank)

    def by_parameter(self, of_a: torch.Tensor, of_b: torch.Tensor) -> list[torch.Tensor]:
        """Tensors of the shapes of a and b as parts that belong to `parameters`."""
        parts = of_b.split(self._outs)
        return [part for index in self._trained for part in (of_a[index], parts[index])]


def begin_sums(adapters: Sequence[Adapter], products: Sequence[LowRank], tokens: int) -> None:
    """Give each group zeros to add its gradients to; those of the parameters have memory of their own, as these keep
    parts of it until the step."""
    shapes_a = [adapter.shape_a for adapter in adapters]
    shapes_b = [adapter.shape_b for adapter in adapters]
    rows = tokens if adapters[0].in_kernels else 0
    shapes_low = [(rows, slots * rank) for slots, rank, _ in shapes_a]
    device = adapters[0].a.device
    of_both = _zeros([*shapes_a, *shapes_b], device)
    parts = zip(of_both[: len(adapters)], of_both[len(adapters) :], _zeros(shapes_low, device), strict=True)
    for each, (of_a, of_b, of_low) in zip(products, parts, strict=True):
        each.g_a, each.g_b, each.g_low = of_a, of_b, of_low


def _zeros(shapes: Sequence[tuple[int, ...]], device: torch.device) -> list[torch.Tensor]:
    sizes = [math.prod(shape) for shape in shapes]
    flat = torch.zeros(sum(sizes), dtype=torch.float32, device=device).split(sizes)
    return [part.view(shape) for part, shape in zip(flat, shapes, strict=True)]


class Adapters:
    """All adapters of a model in two flat buffers, so that what the kernels read is refreshed by two copies.

    The parameters become parts of a float32 buffer; where somebody gives one other memory, its values are taken over at
    the next refresh.
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


def matrices(module: Any) -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    """A and B of a PEFT layer with one adapter."""
    (name,) = module.lora_A
    return module.lora_A[name].weight, module.lora_B[name].weight


def dropout_of(module: Any) -> float:
    """The probability with which a PEFT layer of one adapter drops a number of its input."""
    (dropout,) = module.lora_dropout.values()
    return dropout.p if isinstance(dropout, torch.nn.Dropout) else 0.0


def base_of(module: Any) -> Any:
    """The frozen layer, whether it has an adapter or not."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module
