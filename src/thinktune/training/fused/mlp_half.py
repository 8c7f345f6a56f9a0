"""The second half of a fused decoder layer: norm, gate and up, activation, down, for some of the tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from thinktune.training.fused.adapted_projection import AdaptedProjection, AdapterSettings, Ending, Update
from thinktune.training.fused.batch import Batch
from thinktune.training.fused.frozen_projection import Scratch
from thinktune.training.fused.kernels.common import Rows
from thinktune.training.fused.kernels.low_rank import LowRank
from thinktune.training.fused.kernels.rmsnorm_lora import add_norm_project
from thinktune.training.fused.kernels.swiglu import plain_swiglu, swiglu, swiglu_grad
from thinktune.training.fused.layer_parts import MlpParts


@dataclass
class Fed:
    """The tensors of this half between forward and backward.

    Attributes:
        down: the low-rank product of down.
        products: the complete products of down of each chunk, if they are normed afterwards.
        middle: the residual stream that enters it, [tokens, width].
        rows: what it is after the norm; None: computed again from `middle` where needed.
        wide: the low-rank product of gate and up.
        gate_up: the product [tokens, 2 f]; None: computed again from `rows`.
    """

    down: LowRank
    products: list[torch.Tensor]
    middle: Any = None
    rows: Rows | None = None
    wide: Any = None
    gate_up: torch.Tensor | None = None

    @property
    def low_rank(self) -> list[LowRank]:
        return [self.wide, self.down]


class MlpHalf:
    """`y = m + (act(gate) * up) Wd'` with `[gate, up] = norm(m) Wgu'`, for the residual stream m; the update is normed
    where the model does."""

    def __init__(
        self, parts: MlpParts, settings: AdapterSettings, dtype: torch.dtype, scratch: Scratch, place: int
    ) -> None:
        # The two widest matrices that a low-rank product is added to: of gate and up forward, of down backward.
        self.gate_up = AdaptedProjection(parts.gate_up, settings, dtype, scratch, place, wide_output=True)
        self.down = AdaptedProjection([parts.down], settings, dtype, scratch, place + 2, wide_input=True)
        self.groups = [self.gate_up, self.down]
        self._norm = parts.before
        self._ending = Ending(parts.after, parts.gain)
        self._gelu = parts.activation == "gelu_tanh"

    def enter(self, hidden: torch.Tensor, update: Update | None, batch: Batch, fed: Fed | None = None) -> Fed:
        """Add the update of the half before, and norm the sum.

        Args:
            fed: kept by the forward pass, to be completed again.
        """
        fed = fed or Fed(self.down.low_rank(batch.dropout), [])
        fed.wide = self.gate_up.low_rank(batch.dropout)
        fed.middle, fed.rows = self.gate_up.enter(hidden, fed.wide, norm=self._norm, update=update)
        return fed

    def forward(self, fed: Fed, chunks: int) -> torch.Tensor:
        """Compute the residual stream behind this half."""
        middle, rows, down, fed.rows = fed.middle, fed.rows, fed.down, None
        assert rows is not None
        out = torch.empty_like(middle)
        dtype = torch.float32 if down.in_kernels else middle.dtype
        down.low = torch.zeros(len(middle), down.rank, dtype=dtype, device=middle.device)
        for part in _parts(len(middle), chunks):
            fed.gate_up = None
            wide, low_down = fed.wide[part], down[part]
            fed.gate_up = self.gate_up.product(rows[part], wide)
            product = self._feed_forward(fed.gate_up, wide, low_down)
            add_norm_project(middle[part], update=self._ending.update(product, low_down), write=False, into=out[part])
            if self._ending.norm:
                fed.products.append(product)
            del product
        return out

    def backward(self, g: torch.Tensor, fed: Fed, chunks: int) -> torch.Tensor:
        """Return the gradient of the residual stream before this half from that behind it, [tokens, width]."""
        middle, rows, kept = fed.middle, fed.rows, fed.gate_up
        fed.middle = fed.rows = fed.gate_up = None  # free when this is over
        if kept is None and rows is None:
            _, rows = self.gate_up.enter(middle, fed.wide, norm=self._norm)
        out = torch.empty_like(g)
        for part in _parts(len(g), chunks):
            wide, gate_up = fed.wide[part], kept
            if rows is not None and gate_up is None:
                gate_up = self.gate_up.product(rows[part], wide)
            g_product = self._ending.product_grad(g[part], fed.products.pop(0) if fed.products else None)
            g_normed = self._feed_forward_grad(g_product, wide, fed.down[part], gate_up)
            del gate_up, g_product
            self.gate_up.enter_grad(g_normed, middle[part], wide, norm=self._norm, residual=g[part], into=out[part])
        return out

    def _feed_forward(self, gate_up: torch.Tensor, wide: LowRank, down: LowRank) -> torch.Tensor:
        """Return the product of down, for some tokens."""
        if down.in_kernels:
            active = swiglu(gate_up, wide, down, gelu=self._gelu)
        else:
            active = plain_swiglu(gate_up, gelu=self._gelu)
            low = down.low
            self.down.project(active, down)
            low.copy_(down.low)
        return self.down.product(active, down)

    def _feed_forward_grad(self, g: torch.Tensor, wide: LowRank, down: LowRank, gate_up: Any) -> torch.Tensor:
        """Return the gradient of the normed rows, for some tokens."""
        g_active = self.down.product_grad(g, down)
        if down.in_kernels:
            swiglu_grad(gate_up, g_active, wide, down, gelu=self._gelu)
        else:
            self.down.add_a_grad(plain_swiglu(gate_up, g_active, gelu=self._gelu), down)
        del g_active
        return self.gate_up.product_grad(gate_up, wide, summed=True)


def _parts(tokens: int, chunks: int) -> list[slice]:
    size = -(-tokens // chunks)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
