"""Frozen products over projections that read the same input, joined into one, in any number format of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from thinktune.models.device import multiplies_fp8
from thinktune.models.fp8_linear import Fp8Linear
from thinktune.models.sharded_base import is_sharded, lying_together
from thinktune.training.fused.kernels.common import FP8, Quantised, Rows
from thinktune.training.fused.kernels.dequantize import restore, transpose
from thinktune.training.fused.support import interpreted


class Scratch:
    """Memory for one weight at a time, shared by all layers: products run in order, so none needs another's."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None

    def take(self, rows: int, columns: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._memory is None or self._memory.numel() < rows * columns:
            self._memory = torch.empty(rows * columns, dtype=dtype, device=like.device)
        return self._memory[: rows * columns].view(rows, columns)


class Projection(ABC):
    """`x W'` and `g W` over joined, frozen weights W [out, in].

    Attributes:
        weight_scale: float32 [out] where the products run in fp8: rows must come quantised, and gradients with
            these scales in them. None where they run in the model's own dtype.
    """

    weight_scale: torch.Tensor | None = None

    @property
    def quantised(self) -> bool:
        return self.weight_scale is not None

    @abstractmethod
    def product(self, x: Rows) -> torch.Tensor:
        """Multiply [tokens, in] -> [tokens, out]."""

    @abstractmethod
    def input_grad(self, g: Rows) -> torch.Tensor:
        """Multiply [tokens, out] -> [tokens, in]."""

    def release(self) -> None:  # noqa: B027 (most have nothing to do)
        """Give the layers weights of the usual layout back."""


class DenseProjection(Projection):
    """Weights in the model's dtype; those of the single layers become parts of the joined one.

    Attributes:
        beside, below: [out, …] and […, in]: columns and rows of the joined weights for low-rank matrices. Rows and
            gradients that have as many columns more are multiplied by them too, so that an update of large rank is no
            pass over the product of its own.
    """

    def __init__(self, layers: Sequence[torch.nn.Linear], beside: int = 0, below: int = 0) -> None:
        weights = [layer.weight.data for layer in layers]
        if is_sharded(layers[0].weight):
            beside = below = 0
        if beside or below:
            self._out, self._in = sum(map(len, weights)), weights[0].shape[1]
            self._weight = weights[0].new_zeros(self._out + below, self._in + beside)
            torch.cat(weights, out=self._weight[: self._out, : self._in])
        else:
            self._weight = join_weights(layers)
            self._out, self._in = self._weight.shape
        self._layers = layers
        self.beside, self.below = self._weight[: self._out, self._in :], self._weight[self._out :, : self._in]
        frozen = self._weight[: self._out, : self._in]
        for layer, part in zip(layers, frozen.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.data = part

    def product(self, x: Rows) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)
        return x @ self._weight[: self._out, : x.shape[1]].t()

    def input_grad(self, g: Rows) -> torch.Tensor:
        assert isinstance(g, torch.Tensor)
        return g @ self._weight[: g.shape[1], : self._in]

    def release(self) -> None:
        for layer in self._layers:
            layer.weight.data = layer.weight.data.contiguous()
        # The joined ones end here, not with the model's last layer: until then there would be two of each weight.
        self._weight = self.beside = self.below = self._weight.new_empty(0, 0)


class Fp8Projection(Projection):
    """fp8 weights with a scale a row, multiplied in fp8.

    The tensor cores want both factors with the summed dimension innermost. Forward the weights lie so; for the backward
    product they are transposed each time, which costs about a percent of the product, and no second copy of them.
    """

    def __init__(self, layers: Sequence[Fp8Linear], dtype: torch.dtype) -> None:
        weight = join_weights(layers)
        for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.data = part
        self._weight = weight.view(FP8)
        self._dtype = dtype
        self.weight_scale = join([layer.weight_scale for layer in layers])
        self._ones = torch.ones(1, weight.shape[1], dtype=torch.float32, device=weight.device)

    def product(self, x: Rows) -> torch.Tensor:
        assert isinstance(x, Quantised)
        assert self.weight_scale is not None
        return self._multiply(x, self._weight, self.weight_scale[None, :])

    def input_grad(self, g: Rows) -> torch.Tensor:
        assert isinstance(g, Quantised)
        return self._multiply(g, transpose(self._weight), self._ones)

    def restored(self, scratch: Scratch) -> EightBitProjection:
        """Return the same product without rounding of its other factor."""
        assert self.weight_scale is not None
        return EightBitProjection(self._weight.view(torch.uint8), self.weight_scale, self._dtype, scratch)

    def _multiply(self, x: Quantised, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(x.rows, weight.t(), x.scale, scale, out_dtype=self._dtype, use_fast_accum=True)


class RestoredProjection(Projection):
    """Weights that no tensor core takes (or not here), dequantised to the model's dtype for each product."""

    def __init__(self, dtype: torch.dtype, scratch: Scratch) -> None:
        self._dtype = dtype
        self._scratch = scratch

    def product(self, x: Rows) -> torch.Tensor:
        assert isinstance(x, torch.Tensor)
        return x @ self._restored().t()

    def input_grad(self, g: Rows) -> torch.Tensor:
        assert isinstance(g, torch.Tensor)
        return g @ self._restored()

    @abstractmethod
    def _restored(self) -> torch.Tensor:
        """Bring the joined weights into memory that is shared: [out, in], valid until the next one's."""


class EightBitProjection(RestoredProjection):
    """int8 weights, or e4m3 ones as uint8, [out, in], with a float32 scale a row."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, scratch: Scratch) -> None:
        super().__init__(dtype, scratch)
        self._weight, self._scale = weight, scale

    @classmethod
    def of_int8(cls, layers: Sequence[Any], dtype: torch.dtype, scratch: Scratch) -> EightBitProjection:
        """Join bitsandbytes' layers; their own weights become parts of the joined ones."""
        # bitsandbytes moves weights and their scales to `state` at the first forward pass.
        holders = [layer.weight if layer.weight.CB is not None else layer.state for layer in layers]
        weight, scale = join([holder.CB for holder in holders]), join([holder.SCB for holder in holders])
        sizes = [layer.out_features for layer in layers]
        for layer, holder, part, of_rows in zip(layers, holders, weight.split(sizes), scale.split(sizes), strict=True):
            layer.weight.data = holder.CB = part
            holder.SCB = of_rows
        return cls(weight, scale / 127.0, dtype, scratch)

    def _restored(self) -> torch.Tensor:
        rows, columns = self._weight.shape
        out = self._scratch.take(rows, columns, self._weight, self._dtype)
        return restore(self._weight, self._scale, out)


class FourBitProjection(RestoredProjection):
    """bitsandbytes' nf4, of each layer for itself."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype, scratch: Scratch) -> None:
        super().__init__(dtype, scratch)
        self._layers = layers

    def _restored(self) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_4bit

        sizes: list[int] = [layer.out_features for layer in self._layers]
        out = self._scratch.take(sum(sizes), self._layers[0].in_features, self._layers[0].weight, self._dtype)
        for layer, part in zip(self._layers, out.split(sizes), strict=True):
            packed, state = layer.weight.data, layer.weight.quant_state
            if part.is_cuda:
                dequantize_4bit(packed, state, out=part)
            else:  # its CPU kernels write into memory of their own only
                part.copy_(dequantize_4bit(packed, state))
        return out


def make_projection(
    layers: Sequence[Any], dtype: torch.dtype, scratch: Scratch, *, beside: int = 0, below: int = 0
) -> Projection:
    """Make the product over layers of one kind, joined in their order; `beside` and `below`: of `DenseProjection`."""
    if type(layers[0]) is torch.nn.Linear:
        return DenseProjection(layers, beside, below)
    if isinstance(layers[0], Fp8Linear):
        in_fp8 = Fp8Projection(layers, dtype)
        return in_fp8 if _multiplies_fp8(layers) else in_fp8.restored(scratch)
    if hasattr(layers[0].weight, "quant_state"):
        return FourBitProjection(layers, dtype, scratch)
    return EightBitProjection.of_int8(layers, dtype, scratch)


def _multiplies_fp8(layers: Sequence[Fp8Linear]) -> bool:
    whole = layers[0].in_features % 16 == 0 and sum(layer.out_features for layer in layers) % 16 == 0
    return whole and (interpreted() or multiplies_fp8(layers[0].weight.device))


def join_weights(layers: Sequence[Any]) -> torch.Tensor:
    """Join the weights of layers; those of a sharded base lie together already, and stay."""
    weights = [layer.weight.data for layer in layers]
    joined = lying_together(weights) if is_sharded(layers[0].weight) else join(weights)
    assert joined is not None  # see `support`
    return joined


def join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the tensors one under another, in memory of their own.

    A single one is copied too: once every weight of a layer has moved, the memory that they lay in is free as a whole,
    and the next layer's fit into it. Holes between those that stayed would be lost, half a GiB in a model of 3B.
    """
    return torch.cat(list(tensors))
