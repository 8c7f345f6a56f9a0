"""The second half of a fused decoder layer: norm, gate and up, SwiGLU, down, for some of the tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from thinktune.training.fused.adapted_projection import AdaptedProjection, AdapterSettings
from thinktune.training.fused.batch import Batch
from thinktune.training.fused.frozen_projection import Scratch
from thinktune.training.fused.kernels.common import Rows
from thinktune.training.fused.kernels.low_rank import LowRank
from thinktune.training.fused.kernels.rmsnorm_lora import add_norm_project
from thinktune.training.fused.kernels.swiglu import plain_swiglu, swiglu, swiglu_grad


@dataclass
class Fed:
    """The tensors of this half between forward and backward.

    Attributes:
        middle: the residual stream that enters it, [tokens, width].
        rows: what it is after the norm; None: computed again from `middle` where needed.
        wide, down: the low-rank products of gate and up, and of down.
        gate_up: the product [tokens, 2 f]; None: computed again from `rows`.
    """

    middle: Any
    rows: Rows | None
    wide: LowRank
    down: LowRank
    gate_up: torch.Tensor | None = None

    @property
    def products(self) -> list[LowRank]:
        return [self.wide, self.down]


class MlpHalf:
    """`y = m + (silu(gate) * up) Wd'` with `[gate, up] = norm(m) Wgu'`, for the residual stream m."""

    def __init__(self, layer: Any, settings: AdapterSettings, scratch: Scratch, place: int) -> None:
        mlp, norm = layer.mlp, layer.post_attention_layernorm
        dtype = norm.weight.dtype
        modules = [mlp.gate_proj, mlp.up_proj]
        # The two widest matrices that a low-rank product is added to: of gate and up forward, of down backward.
        self.gate_up = AdaptedProjection(modules, settings, dtype, scratch, place, wide_output=True)
        self.down = AdaptedProjection([mlp.down_proj], settings, dtype, scratch, place + 2, wide_input=True)
        self.groups = [self.gate_up, self.down]
        self._norm = norm.weight, norm.variance_epsilon

    def enter(self, hidden: torch.Tensor, update: Any, batch: Batch, down: LowRank | None = None) -> Fed:
        """Add the update of the half before, as `add_norm_project` takes it, and norm the sum.

        Args:
            down: the low-rank product of down, where the forward pass has computed it.
        """
        wide = self.gate_up.low_rank(batch.dropout)
        middle, rows = self.gate_up.enter(hidden, wide, norm=self._norm, update=update)
        return Fed(middle, rows, wide, down or self.down.low_rank(batch.dropout))

    def forward(self, fed: Fed, chunks: int) -> torch.Tensor:
        """Compute the residual stream behind this half."""
        middle, rows, down, fed.rows = fed.middle, fed.rows, fed.down, None
        assert rows is not None
        out = torch.empty_like(middle)
        dtype = torch.float32 if down.in_kernels else middle.dtype
        down.low = torch.zeros(len(middle), down.rank, dtype=dtype, device=middle.device)
        for part in _parts(len(middle), chunks):
            fed.gate_up = None
            fed.gate_up = self.gate_up.product(rows[part], fed.wide[part])
            self._feed_forward(fed.gate_up, middle[part], fed.wide[part], down[part], out[part])
        return out

    def backward(self, g: torch.Tensor, fed: Fed, chunks: int) -> torch.Tensor:
        """Return the gradient of the residual stream before this half from that behind it, [tokens, width]."""
        middle, rows, kept = fed.middle, fed.rows, fed.gate_up
        fed.middle = fed.rows = fed.gate_up = None  # free when this is over
        if kept is None and rows is None:
            _, rows = self.gate_up.enter(middle, fed.wide, norm=self._norm)
        out = torch.empty_like(g)
        for part in _parts(len(g), chunks):
            gate_up = kept
            if rows is not None and gate_up is None:
                gate_up = self.gate_up.product(rows[part], fed.wide[part])
            self._feed_forward_grad(g[part], middle[part], fed.wide[part], fed.down[part], gate_up, out[part])
            del gate_up
        return out

    def _feed_forward(
        self, gate_up: torch.Tensor, middle: torch.Tensor, wide: LowRank, down: LowRank, out: torch.Tensor
    ) -> None:
        """Write the output, and the low-rank product of down, of some tokens."""
        if down.in_kernels:
            active = swiglu(gate_up, wide, down)
        else:
            active = plain_swiglu(gate_up)
            low = down.low
            self.down.project(active, down)
            low.copy_(down.low)
        add_norm_project(middle, update=(self.down.product(active, down), down.fused), write=False, into=out)

    def _feed_forward_grad(
        self,
        g: torch.Tensor,
        middle: torch.Tensor,
        wide: LowRank,
        down: LowRank,
        gate_up: Any,
        out: torch.Tensor,
    ) -> None:
        """Write the gradient of the residual stream before this half, of some tokens."""
        g_active = self.down.product_grad(g, down)
        if down.in_kernels:
            swiglu_grad(gate_up, g_active, wide, down)
        else:
            self.down.add_a_grad(plain_swiglu(gate_up, g_active), down)
        del g_active
        g_normed = self.gate_up.product_grad(gate_up, wide, summed=True)
        self.gate_up.enter_grad(g_normed, middle, wide, norm=self._norm, residual=g, into=out)


def _parts(tokens: int, chunks: int) -> list[slice]:
    size = -(-tokens // chunks)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
