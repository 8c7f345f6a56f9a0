"""The product over projections that read one input: frozen weights and adapters, forward and backward.

Up to a rank of 32, low-rank products are part of the kernels around the frozen ones. Above, they are matrix products of
their own, as the adapter is too large for the kernels' registers:

    y += s (x A') B';   gx += s (g B) A;   gA = s (g B)' x;   gB = s g' (x A')

with x dropped out for each projection where the adapter has dropout. All are on tensor cores, and the gradients leave
them in float32. Where a sum goes over a wide matrix, and the frozen weights are in the model's dtype, the low-rank
matrix lies beside or below them, so that one product does both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thinktune.training.fused.frozen_projection import (
    DenseProjection,
    Fp8Projection,
    Projection,
    Scratch,
    make_projection,
)
from thinktune.training.fused.kernels.common import Rows, quantise
from thinktune.training.fused.kernels.dropout import Dropout, dropped
from thinktune.training.fused.kernels.low_rank import LowRank
from thinktune.training.fused.kernels.rmsnorm_lora import add_norm_project, input_grad, output_grad
from thinktune.training.fused.layer_parts import Norm
from thinktune.training.fused.lora_buffers import Adapter, base_of

Update = tuple[torch.Tensor, LowRank | None, float]  # of the residual stream, as `add_norm_project` takes it


@dataclass(frozen=True)
class AdapterSettings:
    """The settings that all adapters of a model share."""

    rank: int
    scaling: float
    dropout: float


class AdaptedProjection:
    """`x W' + s (x A') B'` over joined projections, where rows may be a whole residual stream before its norm.

    Attributes:
        frozen: the product with the weights.
        place: of the first projection in the model, which its dropout is drawn by.
    """

    def __init__(
        self,
        modules: Sequence[Any],
        settings: AdapterSettings,
        dtype: torch.dtype,
        scratch: Scratch,
        place: int,
        *,
        wide_output: bool = False,
        wide_input: bool = False,
    ) -> None:
        self.adapter = Adapter(list(modules), settings.rank, settings.scaling)
        self.place = place
        large = not self.adapter.in_kernels
        slots = len(modules)
        self.frozen: Projection = make_projection(
            [base_of(module) for module in modules], dtype, scratch,
            beside=slots * settings.rank if large and wide_output else 0,
            below=slots * settings.rank if large and wide_input and not settings.dropout else 0,
        )  # fmt: skip

    @property
    def _beside(self) -> int:
        """Columns that low-rank products take beside the rows of a product, which then adds the update."""
        return self.frozen.beside.shape[1] if isinstance(self.frozen, DenseProjection) else 0

    @property
    def _below(self) -> int:
        """Columns that the low-rank gradient takes beside that of the output."""
        return len(self.frozen.below) if isinstance(self.frozen, DenseProjection) else 0

    def refresh(self) -> None:
        """Bring the low-rank matrices in the joined weights up to date with those of the adapter."""
        if isinstance(self.frozen, DenseProjection) and self._below:
            self.frozen.below.copy_(self.adapter.a.flatten(0, 1))
        if isinstance(self.frozen, DenseProjection) and self._beside:
            for slot, part in self.adapter.low_parts():
                out = self.adapter.out_parts[slot]
                self.frozen.beside[out, part].copy_(self.adapter.b[out])

    def restored(self, scratch: Scratch) -> Projection:
        """Return the frozen product without rounding of its other factor to fp8."""
        return self.frozen.restored(scratch) if isinstance(self.frozen, Fp8Projection) else self.frozen

    def low_rank(self, dropout: Dropout | None) -> LowRank:
        """Return the adapters for the tokens of a batch, whose dropout is `dropout`."""
        adapter = self.adapter
        dropout = dropout and dropout.of_slot(self.place)
        return LowRank(adapter.a, adapter.b, adapter.scaling, adapter.in_kernels, dropout)

    def enter(
        self, x: torch.Tensor, lora: LowRank, *, norm: Norm | None, update: Update | None = None
    ) -> tuple[torch.Tensor, Rows]:
        """Add an update to the residual stream and norm it; return the sum, and the rows as the product takes them.

        Their low-rank product is computed too, unless it is still there.
        """
        in_fp8, is_new = self.frozen.quantised and lora.in_kernels, lora.low is None
        rows: Rows | None
        total, rows = add_norm_project(
            x, update=update, norm=norm, lora=lora.fused if is_new else None,
            write=norm is not None or in_fp8 or self._beside > 0, in_fp8=in_fp8, beside=self._beside,
        )  # fmt: skip
        rows = total if rows is None else rows
        if isinstance(rows, torch.Tensor) and not lora.in_kernels:
            if is_new:
                lora.low = self._project(rows[:, : x.shape[1]], lora.dropout)
            if self._beside:
                rows[:, x.shape[1] :] = lora.low
        return total, quantise(rows) if self.frozen.quantised and isinstance(rows, torch.Tensor) else rows

    def project(self, x: torch.Tensor, lora: LowRank) -> None:
        """Set the low-rank product of an input that is no norm's."""
        if lora.in_kernels:
            add_norm_project(x, lora=lora, write=False)
        else:
            lora.low = self._project(x, lora.dropout)

    def product(self, rows: Rows, lora: LowRank) -> torch.Tensor:
        """Multiply by the frozen weights; a low-rank update that the kernel behind does not add is in it too."""
        if self.frozen.quantised and isinstance(rows, torch.Tensor):
            rows = quantise(rows)
        product = self.frozen.product(rows)
        if not lora.in_kernels and not self._beside:
            for slot, part in self.adapter.low_parts():
                out = self.adapter.out_parts[slot]
                product[:, out].addmm_(lora.low[:, part], self.adapter.b[out].t())
        return product

    def product_grad(self, g: torch.Tensor, lora: LowRank, *, summed: bool = False) -> torch.Tensor:
        """Multiply the output's gradient by the frozen weights, and add B's gradient up.

        Args:
            summed: a kernel that made `g` has done the latter.

        Returns:
            [tokens, in], the input's gradient; what comes through adapters in kernels is still to be added to it.
        """
        scale = self.frozen.weight_scale
        if lora.in_kernels and not summed:
            output_grad(g, lora)
        elif not lora.in_kernels:
            lora.g_low = self._output_grad(g, lora)
            if self._below:
                return self.frozen.input_grad(torch.cat([g, lora.g_low], 1))
        g_in = self.frozen.input_grad(g if scale is None else quantise(g, scale))
        if not lora.in_kernels:
            self._add_input_grad(g_in, lora)
        return g_in

    def enter_grad(
        self, g: torch.Tensor, x: torch.Tensor, lora: LowRank, *, norm: Norm | None, residual: Any, into: Any = None
    ) -> torch.Tensor:
        """Pass the gradient of `product_grad` on through `enter`'s norm to its input `x`, and add A's gradient up."""
        if not lora.in_kernels:
            self.add_a_grad(_normed(x, norm), lora)
        return input_grad(g, x, lora.fused, norm=norm, residual=residual, into=into)

    def project_grad(self, g: torch.Tensor, x: torch.Tensor, lora: LowRank) -> torch.Tensor:
        """Complete the gradient of `product_grad` for an input that is no norm's, and add A's gradient up."""
        if lora.in_kernels:
            return input_grad(g, x, lora)
        self.add_a_grad(x, lora)
        return g

    def add_a_grad(self, x: torch.Tensor, lora: LowRank) -> None:
        """Add the gradient of every A up, with the input [tokens, in]; kernels do that by themselves."""
        if lora.dropout is None:
            lora.g_a += _in_float32(lora.g_low.t(), x).view_as(lora.g_a)
            return
        for slot, part in self.adapter.low_parts():
            lora.g_a[slot] += _in_float32(lora.g_low[:, part].t(), dropped(x, lora.dropout.of_slot(slot)))

    def _project(self, x: torch.Tensor, dropout: Dropout | None) -> torch.Tensor:
        """Multiply [tokens, in] by every A: [tokens, slots * rank]."""
        a = self.adapter.a
        if dropout is None:
            return x @ a.flatten(0, 1).t()
        low = x.new_zeros(len(x), len(a) * self.adapter.rank)
        for slot, part in self.adapter.low_parts():
            torch.mm(dropped(x, dropout.of_slot(slot)), a[slot].t(), out=low[:, part])
        return low

    def _output_grad(self, g: torch.Tensor, lora: LowRank) -> torch.Tensor:
        """Add the gradient of B up; return that of the low-rank product, [tokens, slots * rank]."""
        g_low = torch.zeros_like(lora.low)
        for slot, part in self.adapter.low_parts():
            out = self.adapter.out_parts[slot]
            torch.mm(g[:, out], self.adapter.b[out], out=g_low[:, part])
            lora.g_b[out] += lora.scaling * _in_float32(g[:, out].t(), lora.low[:, part])
        return g_low

    def _add_input_grad(self, g: torch.Tensor, lora: LowRank) -> None:
        """Complete the gradient of the input [tokens, in], which has come through the frozen weights."""
        if lora.dropout is None:
            g.addmm_(lora.g_low, self.adapter.a.flatten(0, 1))
            return
        for slot, part in self.adapter.low_parts():
            dropped(lora.g_low[:, part] @ self.adapter.a[slot], lora.dropout.of_slot(slot), add_to=g)


@dataclass(frozen=True)
class Ending:
    """From the last product of a half to its update of the residual stream: a norm, if there is one, and a gain."""

    norm: Norm | None
    gain: float

    def update(self, product: torch.Tensor, lora: LowRank) -> Update:
        """Make the update of a product; with a norm, the product is completed first, in its own memory."""
        if self.norm is None:
            return product, lora.fused, self.gain
        if lora.in_kernels:
            product.addmm_(lora.low.to(product.dtype), lora.b.t())
        return _normed(product, self.norm), None, self.gain

    def product_grad(self, g: torch.Tensor, product: torch.Tensor | None) -> torch.Tensor:
        """Compute the gradient of the product, which is there if it is normed, from that of the residual stream."""
        if self.gain != 1.0:
            g = g * self.gain
        if self.norm is None or product is None:
            return g
        return input_grad(g, product, None, norm=self.norm, into=torch.empty_like(g))


def _normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    if norm is None:
        return x
    rows = add_norm_project(x, norm=norm)[1]
    assert isinstance(rows, torch.Tensor)
    return rows


def _in_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else a.float() @ b.float()
