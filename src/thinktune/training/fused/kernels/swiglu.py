"""SwiGLU and its kin with the adapters of all three projections around it, forward and backward."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl

from thinktune.training.fused.kernels.common import FEW_TOKENS, blocks, dot, tile_of
from thinktune.training.fused.kernels.dropout import column_keys, drawing, drop, row_keys
from thinktune.training.fused.kernels.low_rank import LowRank


@triton.jit
def _gate_and_up(gate_up, low_gate, low_up, b_gate, b_up, place, mask, F: tl.constexpr):
    """Compute the complete projections, float32: the frozen products and their low-rank updates."""
    gate = tl.load(gate_up + place, mask=mask, other=0.0).to(tl.float32) + dot(low_gate, tl.trans(b_gate))
    up = tl.load(gate_up + place + F, mask=mask, other=0.0).to(tl.float32) + dot(low_up, tl.trans(b_up))
    return gate, up


@triton.jit
def _activation(gate, GELU: tl.constexpr):
    """Compute silu, or GELU by its approximation with tanh: both are `gate * sigmoid(inner)`. Return that sigmoid, and
    the derivative of `inner`."""
    if GELU:  # 1/2 (1 + tanh(u)) = sigmoid(2 u)
        square = gate * gate
        sigmoid = tl.sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * square))  # 2 sqrt(2 / pi)
        inner = 1.5957691216057308 * (1.0 + 0.134145 * square)
    else:
        sigmoid = tl.sigmoid(gate)
        inner = 1.0
    return sigmoid, inner


@triton.jit(do_not_specialize=["tokens", "place"])
def _swiglu_kernel(
    gate_up, low, b, a, out, low_out, seed, keys, place, tokens,
    F: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, SLOTS: tl.constexpr, GELU: tl.constexpr,
    THRESHOLD: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(1) * BM
    own = tl.arange(0, BM)
    rows = first + own
    live = rows < tokens
    gate_up += first.to(tl.int64) * (2 * F)  # beyond 32 bits for long batches; offsets from here are within them
    out += first.to(tl.int64) * F
    rank = tl.arange(0, R)
    trained = rank < RANK
    low_mask = live[:, None] & trained[None, :]
    low_place = rows[:, None] * (SLOTS * RANK) + rank[None, :]
    low_gate = tl.load(low + low_place, mask=low_mask, other=0.0)
    low_up = tl.load(low + low_place + (SLOTS - 1) * RANK, mask=low_mask, other=0.0)
    sums = tl.zeros([BM, R], tl.float32)
    if THRESHOLD:
        of_rows = row_keys(seed, keys, place, rows, live)
    for block in tl.range(0, STEPS, 1, num_stages=STAGES):
        columns = (tl.program_id(0) * STEPS + block) * BC + tl.arange(0, BC)
        inside = columns < F
        mask = live[:, None] & inside[None, :]
        b_place = columns[:, None] * RANK + rank[None, :]
        b_mask = inside[:, None] & trained[None, :]
        b_gate = tl.load(b + b_place, mask=b_mask, other=0.0)
        b_up = tl.load(b + F * RANK + b_place, mask=b_mask, other=0.0)
        at = own[:, None] * (2 * F) + columns[None, :]
        gate, up = _gate_and_up(gate_up, low_gate, low_up, b_gate, b_up, at, mask, F)
        sigmoid, _ = _activation(gate, GELU)
        value = (gate * sigmoid * up).to(out.dtype.element_ty)
        tl.store(out + own[:, None] * F + columns[None, :], value, mask=mask)
        a_mask = trained[:, None] & inside[None, :]
        a_tile = tl.load(a + rank[:, None] * F + columns[None, :], mask=a_mask, other=0.0)
        if THRESHOLD:
            value = drop(value.to(tl.float32), of_rows, column_keys(columns), THRESHOLD).to(out.dtype.element_ty)
        sums += dot(value, tl.trans(a_tile))
    tl.atomic_add(low_out + rows[:, None] * RANK + rank[None, :], sums, mask=low_mask, sem="relaxed")


def swiglu(gate_up: torch.Tensor, wide: LowRank, down: LowRank, *, gelu: bool = False) -> torch.Tensor:
    """Compute `act(gate) * up`, and add its low-rank product to that of the projection that follows.

    Args:
        gate_up: [tokens, 2 f], the frozen products side by side.
        wide: the adapters of gate and up, or of their joined projection, with their activations.
        down: that of the projection that follows; its `low` is float32.
        gelu: act is GELU by its approximation with tanh. False: silu.

    Returns:
        rows [tokens, f].
    """
    tokens, width, rank = gate_up.shape[0], gate_up.shape[1] // 2, down.rank
    out = gate_up.new_empty(tokens, width)
    bm, bc, steps = 64, 64, 4
    grid = (blocks(width, bc * steps), blocks(tokens, bm))
    seed, keys, place, threshold = drawing(down.dropout)
    _swiglu_kernel[grid](
        gate_up, wide.low, wide.b, down.a, out, down.low, seed, keys, place, tokens,
        F=width, R=tile_of(rank), RANK=rank, SLOTS=wide.slots, GELU=gelu,
        THRESHOLD=threshold, BM=bm, BC=bc, STEPS=steps, STAGES=3, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _activation_grad(gate, up, grad, GELU: tl.constexpr):
    """Compute the activation `act(gate) * up`, and the gradients of gate and up."""
    sigmoid, inner = _activation(gate, GELU)
    active = gate * sigmoid
    return active * up, grad * up * (sigmoid + active * (1.0 - sigmoid) * inner), grad * active


@triton.jit(do_not_specialize=["tokens", "place"])
def _swiglu_grad_kernel(
    gate_up, low, b, a, g, g_low_down, g_low, g_b, g_a, seed, keys, place, tokens, scaling,
    F: tl.constexpr, R: tl.constexpr, RANK: tl.constexpr, SLOTS: tl.constexpr, GELU: tl.constexpr,
    THRESHOLD: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = columns < F
    rank = tl.arange(0, R)
    trained = rank < RANK
    dtype = gate_up.dtype.element_ty
    b_place = columns[:, None] * RANK + rank[None, :]
    b_mask = inside[:, None] & trained[None, :]
    a_place = rank[:, None] * F + columns[None, :]
    a_mask = trained[:, None] & inside[None, :]
    b_gate = tl.load(b + b_place, mask=b_mask, other=0.0)
    b_up = tl.load(b + F * RANK + b_place, mask=b_mask, other=0.0)
    a_tile = tl.load(a + a_place, mask=a_mask, other=0.0)
    of_gate = tl.zeros([BC, R], tl.float32)
    of_up = tl.zeros([BC, R], tl.float32)
    of_down = tl.zeros([R, BC], tl.float32)
    if THRESHOLD:
        of_columns = column_keys(columns)
    for step in tl.range(0, STEPS, 1, num_stages=STAGES):
        rows = (tl.program_id(0) * STEPS + step) * BM + tl.arange(0, BM)
        live = rows < tokens
        mask = live[:, None] & inside[None, :]
        low_mask = live[:, None] & trained[None, :]
        low_place = rows[:, None] * (SLOTS * RANK) + rank[None, :]
        low_gate = tl.load(low + low_place, mask=low_mask, other=0.0)
        low_up = tl.load(low + low_place + (SLOTS - 1) * RANK, mask=low_mask, other=0.0)
        low_down = tl.load(g_low_down + rows[:, None] * RANK + rank[None, :], mask=low_mask, other=0.0).to(dtype)
        at = rows.to(tl.int64)[:, None] * (2 * F) + columns[None, :]
        gate, up = _gate_and_up(gate_up, low_gate, low_up, b_gate, b_up, at, mask, F)
        grad = tl.load(g + rows.to(tl.int64)[:, None] * F + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        part = dot(low_down, a_tile)
        if THRESHOLD:
            of_rows = row_keys(seed, keys, place, rows, live)
            part = drop(part, of_rows, of_columns, THRESHOLD)
        active, g_gate, g_up = _activation_grad(gate, up, grad + part, GELU)
        if THRESHOLD:
            active = drop(active, of_rows, of_columns, THRESHOLD)
        of_down += dot(tl.trans(low_down), active.to(dtype))
        g_gate, g_up = g_gate.to(dtype), g_up.to(dtype)
        tl.store(gate_up + at, g_gate, mask=mask)
        tl.store(gate_up + at + F, g_up, mask=mask)
        of_gate += dot(tl.trans(g_gate), low_gate)
        of_up += dot(tl.trans(g_up), low_up)
        tl.atomic_add(g_low + low_place, dot(g_gate, b_gate), mask=low_mask, sem="relaxed")
        tl.atomic_add(g_low + low_place + (SLOTS - 1) * RANK, dot(g_up, b_up), mask=low_mask, sem="relaxed")
    tl.atomic_add(g_b + b_place, of_gate * scaling, mask=b_mask, sem="relaxed")
    tl.atomic_add(g_b + F * RANK + b_place, of_up * scaling, mask=b_mask, sem="relaxed")
    tl.atomic_add(g_a + a_place, of_down, mask=a_mask, sem="relaxed")


def swiglu_grad(gate_up: torch.Tensor, g: torch.Tensor, wide: LowRank, down: LowRank, *, gelu: bool = False) -> None:
    """Compute the derivative of `swiglu`; the activation itself is computed again rather than kept.

    The gradients of B of gate and up, of their low-rank activations, and of A of down are added up.

    Args:
        gate_up, wide, down, gelu: as for `swiglu`; `gate_up` is overwritten with its gradient.
        g: [tokens, f], the gradient through down's frozen weight.
    """
    tokens, width = g.shape
    rank = down.rank
    bm, bc, steps = 64, 64, 4 if tokens <= FEW_TOKENS else 16
    # Rows first: blocks that run at the same time then add to different rows of g_low.
    grid = (blocks(tokens, bm * steps), blocks(width, bc))
    seed, keys, place, threshold = drawing(down.dropout)
    _swiglu_grad_kernel[grid](
        gate_up, wide.low, wide.b, down.a, g, down.g_low, wide.g_low, wide.g_b, down.g_a, seed, keys, place, tokens,
        wide.scaling,
        F=width, R=tile_of(rank), RANK=rank, SLOTS=wide.slots, GELU=gelu,
        THRESHOLD=threshold, BM=bm, BC=bc, STEPS=steps, STAGES=2, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _plain_kernel(
    gate_up, g, out, tokens, F: tl.constexpr, GELU: tl.constexpr, GRAD: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr
):
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (rows < tokens)[:, None] & (columns < F)[None, :]
    at = rows.to(tl.int64)[:, None] * (2 * F) + columns[None, :]
    own = rows.to(tl.int64)[:, None] * F + columns[None, :]
    gate = tl.load(gate_up + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + F, mask=mask, other=0.0).to(tl.float32)
    if GRAD:
        active, g_gate, g_up = _activation_grad(gate, up, tl.load(g + own, mask=mask, other=0.0).to(tl.float32), GELU)
        tl.store(gate_up + at, g_gate.to(gate_up.dtype.element_ty), mask=mask)
        tl.store(gate_up + at + F, g_up.to(gate_up.dtype.element_ty), mask=mask)
    else:
        sigmoid, _ = _activation(gate, GELU)
        active = gate * sigmoid * up
    tl.store(out + own, active.to(out.dtype.element_ty), mask=mask)


def plain_swiglu(gate_up: torch.Tensor, g: torch.Tensor | None = None, *, gelu: bool = False) -> torch.Tensor:
    """Compute `act(gate) * up` of complete projections [tokens, 2 f]: [tokens, f].

    Args:
        g: [tokens, f], the activation's gradient. Given, `gate_up` is overwritten with its gradient, and the activation
            comes back in the memory of `g`.
    """
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, width) if g is None else g
    _plain_kernel[(blocks(tokens, 16), blocks(width, 256))](
        gate_up, g, out, tokens, F=width, GELU=gelu, GRAD=g is not None, BM=16, BC=256, num_warps=4
    )
    return out
