"""Low-rank products of adapters whose rank is too large for the kernels' registers: matrix products of their own.

    y += s (x A') B';   gx += s (g B) A;   gA = s (g B)' x;   gB = s g' (x A')

with x dropped out for each projection where the adapter has dropout. All are on tensor cores, and the gradients leave
them in float32. Where a sum goes over a wide matrix, and the frozen weights are in the model's dtype, the low-rank
matrix lies beside or below them, so that one product does both.
"""

from __future__ import annotations

import torch

from thinktune.training.fused.frozen_projection import DenseProjection, Projection
from thinktune.training.fused.kernels.dropout import Dropout, dropped
from thinktune.training.fused.lora_buffers import Adapter, Sums


def beside(projection: Projection) -> int:
    """Return the columns that low-rank products take beside the rows of a product, which then adds the update."""
    return projection.beside.shape[1] if isinstance(projection, DenseProjection) else 0


def below(projection: Projection) -> int:
    """Return the columns that the low-rank gradient takes beside that of the output."""
    return len(projection.below) if isinstance(projection, DenseProjection) else 0


def refresh(projection: Projection, adapter: Adapter) -> None:
    """Bring the low-rank matrices in the joined weights up to date with those of the adapter."""
    if not isinstance(projection, DenseProjection):
        return
    if below(projection):
        projection.below.copy_(adapter.a.flatten(0, 1))
    for slot, part in adapter.low_parts() if beside(projection) else ():
        out = adapter.out_parts[slot]
        projection.beside[out, part].copy_(adapter.b[out])


def project(x: torch.Tensor, adapter: Adapter, dropout: Dropout | None) -> torch.Tensor:
    """Multiply [tokens, in] by every A: [tokens, slots * rank]."""
    if dropout is None:
        return x @ adapter.a.flatten(0, 1).t()
    low = x.new_zeros(len(x), len(adapter.a) * adapter.rank)
    for slot, part in adapter.low_parts():
        torch.mm(dropped(x, dropout.of_slot(slot)), adapter.a[slot].t(), out=low[:, part])
    return low


def add_update(product: torch.Tensor, low: torch.Tensor, adapter: Adapter) -> None:
    """Complete the frozen product [tokens, out] with the low-rank one of `project`."""
    for slot, part in adapter.low_parts():
        out = adapter.out_parts[slot]
        product[:, out].addmm_(low[:, part], adapter.b[out].t())


def output_grad(g: torch.Tensor, low: torch.Tensor, adapter: Adapter, sums: Sums) -> torch.Tensor:
    """Add the gradient of B from that of the output [tokens, out]; return the low-rank product's,
    [tokens, slots * rank]."""
    g_low = torch.zeros_like(low)
    for slot, part in adapter.low_parts():
        out = adapter.out_parts[slot]
        torch.mm(g[:, out], adapter.b[out], out=g_low[:, part])
        sums.b[out] += adapter.scaling * _in_float32(g[:, out].t(), low[:, part])
    return g_low


def add_input_grad(g: torch.Tensor, g_low: torch.Tensor, adapter: Adapter, dropout: Dropout | None) -> None:
    """Complete the gradient of the input [tokens, in], which has come through the frozen weights."""
    if dropout is None:
        g.addmm_(g_low, adapter.a.flatten(0, 1))
        return
    for slot, part in adapter.low_parts():
        dropped(g_low[:, part] @ adapter.a[slot], dropout.of_slot(slot), add_to=g)


def add_a_grad(g_low: torch.Tensor, x: torch.Tensor, adapter: Adapter, sums: Sums, dropout: Dropout | None) -> None:
    """Add the gradient of every A, from that of the low-rank product and the input [tokens, in]."""
    if dropout is None:
        sums.a += _in_float32(g_low.t(), x).view_as(sums.a)
        return
    for slot, part in adapter.low_parts():
        sums.a[slot] += _in_float32(g_low[:, part].t(), dropped(x, dropout.of_slot(slot)))


def _in_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else a.float() @ b.float()
