"""SwiGLU with the adapters of all three projections around it, forward and backward."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thinktune.fast.kernels.launch import FP8, FP8_MAX, Quantised, Rows, dot, quantise, to_scale


SWIGLU = (32, 128, 8, 4)
SWIGLU_GRAD = (64, 64, 16, 4)


@triton.jit
def _gate_and_up(gate_up, low_gate, low_up, b_gate, b_up, place, mask, F: tl.constexpr):
    """The complete projections, float32: the frozen products and their low-rank updates."""
    gate = tl.load(gate_up + place, mask=mask, other=0.0).to(tl.float32) + dot(low_gate, tl.trans(b_gate))
    up = tl.load(gate_up + place + F, mask=mask, other=0.0).to(tl.float32) + dot(low_up, tl.trans(b_up))
    return gate, up


@triton.jit(do_not_specialize=["tokens"])
def _swiglu_kernel(
    gate_up, low, b, a, out, peaks, low_out, tokens,
    F: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr,
    MEASURE: tl.constexpr, WRITE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    live = rows < tokens
    rank = tl.arange(0, R)
    low_place = rows[:, None] * (2 * R) + rank[None, :]
    low_gate = tl.load(low + low_place, mask=live[:, None], other=0.0)
    low_up = tl.load(low + low_place + R, mask=live[:, None], other=0.0)
    sums = tl.zeros([BM, R], tl.float32)
    peak = tl.zeros([BM], tl.float32)
    if WRITE and not MEASURE:
        step = tl.load(peaks + rows, mask=live, other=1.0)
    for block in range(STEPS):
        columns = (tl.program_id(0) * STEPS + block) * BC + tl.arange(0, BC)
        inside = columns < F
        mask = live[:, None] & inside[None, :]
        b_place = columns[:, None] * R + rank[None, :]
        b_gate = tl.load(b + b_place, mask=inside[:, None], other=0.0)
        b_up = tl.load(b + F * R + b_place, mask=inside[:, None], other=0.0)
        place = rows.to(tl.int64)[:, None] * (2 * F) + columns[None, :]
        gate, up = _gate_and_up(gate_up, low_gate, low_up, b_gate, b_up, place, mask, F)
        value = gate * tl.sigmoid(gate) * up
        if MEASURE:
            a_tile = tl.load(a + rank[:, None] * F + columns[None, :], mask=inside[None, :], other=0.0)
            sums += dot(value.to(a.dtype.element_ty), tl.trans(a_tile))
            if not WRITE:
                peak = tl.maximum(peak, tl.max(tl.abs(value), 1))
        if WRITE:
            if not MEASURE:
                value = tl.minimum(tl.maximum(value / step[:, None], -FP8_MAX), FP8_MAX)
            tl.store(out + rows.to(tl.int64)[:, None] * F + columns[None, :], value.to(out.dtype.element_ty), mask=mask)
    if MEASURE:
        out_place = rows[:, None] * R + rank[None, :]
        tl.atomic_add(low_out + out_place, sums, mask=live[:, None] & (rank < RANK)[None, :], sem="relaxed")
        if not WRITE:
            tl.atomic_max(peaks + rows, peak, mask=live, sem="relaxed")


def swiglu(
    gate_up: torch.Tensor, low: torch.Tensor, b: torch.Tensor, a: torch.Tensor, rank: int, *, in_fp8: bool
) -> tuple[Rows, torch.Tensor]:
    """`silu(gate) * up` and its low-rank product for the projection that follows.

    Args:
        gate_up: [tokens, 2 f], the frozen products side by side.
        low: [tokens, 2 R]; b: [2 f, R], of gate and up.
        a: [R, f], of down.
        in_fp8: write the rows in fp8. (A second look at gate and up for that costs what keeping the product would.)

    Returns:
        rows [tokens, f], and low, float32 [tokens, R].
    """
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    low_out = torch.zeros(tokens, a.shape[0], dtype=torch.float32, device=a.device)
    peaks = torch.zeros(tokens, 1, dtype=torch.float32, device=a.device) if in_fp8 else None
    out = gate_up.new_empty(tokens, width, dtype=FP8 if in_fp8 else gate_up.dtype)
    bm, bc, steps, warps = SWIGLU
    grid = (triton.cdiv(width, bc * steps), triton.cdiv(tokens, bm))

    def run(measure: bool, write: bool) -> None:
        _swiglu_kernel[grid](
            gate_up, low, b, a, out, peaks, low_out, tokens, F=width, R=a.shape[0], RANK=rank,
            MEASURE=measure, WRITE=write, BM=bm, BC=bc, STEPS=steps, num_warps=warps,
        )  # fmt: skip

    if peaks is None:
        run(True, True)
        return out, low_out
    run(True, False)
    to_scale(peaks)
    run(False, True)
    return Quantised(out, peaks), low_out


@triton.jit(do_not_specialize=["tokens"])
def _swiglu_grad_kernel(
    gate_up, low, b, a, g, g_low_down, weight_scale, g_low, g_b, g_a, peaks, tokens, scaling,
    F: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, QUANT: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BC + tl.arange(0, BC)
    inside = columns < F
    rank = tl.arange(0, R)
    trained = rank < RANK
    dtype = gate_up.dtype.element_ty
    b_gate = tl.load(b + columns[:, None] * R + rank[None, :], mask=inside[:, None], other=0.0)
    b_up = tl.load(b + (F + columns)[:, None] * R + rank[None, :], mask=inside[:, None], other=0.0)
    a_tile = tl.load(a + rank[:, None] * F + columns[None, :], mask=inside[None, :], other=0.0)
    of_gate = tl.zeros([BC, R], tl.float32)
    of_up = tl.zeros([BC, R], tl.float32)
    of_down = tl.zeros([R, BC], tl.float32)
    if QUANT:
        gate_scale = tl.load(weight_scale + columns, mask=inside, other=0.0)[None, :]
        up_scale = tl.load(weight_scale + F + columns, mask=inside, other=0.0)[None, :]
    for step in range(STEPS):
        rows = (tl.program_id(1) * STEPS + step) * BM + tl.arange(0, BM)
        live = rows < tokens
        mask = live[:, None] & inside[None, :]
        low_place = rows[:, None] * (2 * R) + rank[None, :]
        low_gate = tl.load(low + low_place, mask=live[:, None], other=0.0)
        low_up = tl.load(low + low_place + R, mask=live[:, None], other=0.0)
        low_down = tl.load(g_low_down + rows[:, None] * R + rank[None, :], mask=live[:, None], other=0.0).to(dtype)
        place = rows.to(tl.int64)[:, None] * (2 * F) + columns[None, :]
        gate, up = _gate_and_up(gate_up, low_gate, low_up, b_gate, b_up, place, mask, F)
        g_place = rows.to(tl.int64)[:, None] * F + columns[None, :]
        grad = tl.load(g + g_place, mask=mask, other=0.0).to(tl.float32) + dot(low_down, a_tile)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        of_down += dot(tl.trans(low_down), (silu * up).to(dtype))
        g_gate = (grad * up * (sigmoid + silu * (1.0 - sigmoid))).to(dtype)
        g_up = (grad * silu).to(dtype)
        tl.store(gate_up + place, g_gate, mask=mask)
        tl.store(gate_up + place + F, g_up, mask=mask)
        of_gate += dot(tl.trans(g_gate), low_gate)
        of_up += dot(tl.trans(g_up), low_up)
        low_mask = live[:, None] & trained[None, :]
        tl.atomic_add(g_low + low_place, dot(g_gate, b_gate), mask=low_mask, sem="relaxed")
        tl.atomic_add(g_low + low_place + R, dot(g_up, b_up), mask=low_mask, sem="relaxed")
        if QUANT:
            peak = tl.maximum(
                tl.max(tl.abs(g_gate.to(tl.float32) * gate_scale), 1), tl.max(tl.abs(g_up.to(tl.float32) * up_scale), 1)
            )
            tl.atomic_max(peaks + rows, peak, mask=live, sem="relaxed")
    b_mask = inside[:, None] & trained[None, :]
    b_place = columns[:, None] * RANK + rank[None, :]
    tl.atomic_add(g_b + b_place, of_gate * scaling, mask=b_mask, sem="relaxed")
    tl.atomic_add(g_b + F * RANK + b_place, of_up * scaling, mask=b_mask, sem="relaxed")
    a_mask = trained[:, None] & inside[None, :]
    tl.atomic_add(g_a + rank[:, None] * F + columns[None, :], of_down, mask=a_mask, sem="relaxed")


def swiglu_grad(
    gate_up: torch.Tensor,
    low: torch.Tensor,
    b: torch.Tensor,
    a: torch.Tensor,
    g: torch.Tensor,
    g_low_down: torch.Tensor,
    g_b: torch.Tensor,
    g_a: torch.Tensor,
    scaling: float,
    weight_scale: torch.Tensor | None = None,
) -> tuple[Rows, torch.Tensor]:
    """The derivative of `swiglu`; the activation itself is computed again rather than kept.

    Args:
        gate_up, low, b, a: as for `swiglu`; `gate_up` is overwritten with its gradient.
        g: [tokens, f], the gradient through down's frozen weight; g_low_down: [tokens, R], what `output_grad` gave.
        g_b: float32 [2 f, rank] of gate and up; g_a: float32 [rank, f] of down; added to.
        weight_scale: float32 [2 f]; where given, the gradient comes back as fp8 with these scales in it.

    Returns:
        the gradient of gate and up [tokens, 2 f], and its product with b, float32 [tokens, 2 R].
    """
    tokens, width = g.shape
    g_low = torch.zeros(low.shape, dtype=torch.float32, device=g.device)
    peaks = None if weight_scale is None else torch.zeros(tokens, 1, dtype=torch.float32, device=g.device)
    bm, bc, steps, warps = SWIGLU_GRAD
    grid = (triton.cdiv(width, bc), triton.cdiv(tokens, bm * steps))
    _swiglu_grad_kernel[grid](
        gate_up, low, b, a, g, g_low_down, weight_scale, g_low, g_b, g_a, peaks, tokens, scaling,
        F=width, R=a.shape[0], RANK=g_a.shape[0], QUANT=weight_scale is not None,
        BM=bm, BC=bc, STEPS=steps, num_warps=warps,
    )  # fmt: skip
    if weight_scale is None or peaks is None:
        return gate_up, g_low
    return quantise(gate_up, weight_scale, peaks), g_low
