"""The parts of a decoder layer that fused halves are made from, each looked at before it is relied on.

The table of families says how parts are called; whether a layer has these parts and no others, and what its norms and
activation compute, is found out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from thinktune.planner.fused_models import FUSED_HEAD_DIMS, FUSED_MODELS, FusedFamily, unknown_parts
from thinktune.training.fused.lora_buffers import base_of

Norm = tuple[torch.Tensor, float]  # weight [width] and epsilon of an RMSNorm
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class NotFusable(Exception):
    """A layer is not one that fused layers compute; the message says why in a few words."""


@dataclass(frozen=True)
class AttentionParts:
    """The parts of an attention half.

    Attributes:
        qkv: the projections of queries, keys and values, or a joined one.
        before, after: the norm of the residual stream, and that of the update.
        head_norms: of each query head and of each key head, or of all together.
        turns: whether queries and keys are turned by their positions.
        query_scale: None, or of `query * (1 + beta * log(1 + position // length))`: beta and length.
        gain: by which the update is multiplied.
    """

    qkv: list[Any]
    o: Any
    query_heads: int
    key_heads: int
    head_dim: int
    before: Norm | None
    after: Norm | None
    head_norms: tuple[Norm, Norm] | None
    turns: bool
    query_scale: tuple[float, int] | None
    scale: float
    module: Any
    gain: float

    @property
    def projections(self) -> list[Any]:
        return [*self.qkv, self.o]


@dataclass(frozen=True)
class MlpParts:
    """The parts of an MLP half, as of an attention half."""

    gate_up: list[Any]
    down: Any
    activation: str
    before: Norm | None
    after: Norm | None
    gain: float

    @property
    def projections(self) -> list[Any]:
        return [*self.gate_up, self.down]


def family_of(layer: Any) -> FusedFamily:
    """Return what the table says of a layer of transformers.

    Raises:
        NotFusable: it has no such layer.
    """
    name, module = type(layer).__name__, type(layer).__module__
    for family in FUSED_MODELS.values():
        if family.layer == name and module.startswith("transformers.models."):
            return family
    raise NotFusable(f"{name} is no architecture that it knows")


Parts = tuple[AttentionParts | None, MlpParts | None]


def decoder_layers(base: Any) -> list[Any]:
    """Return the layers of the text decoder of a causal LM."""
    return list(getattr(base.get_decoder(), "layers", ()))


def adapters_in(parts: Sequence[Parts]) -> list[Any]:
    """Return PEFT's layers among the projections of these halves."""
    halves = (half for both in parts for half in both if half)
    return [module for half in halves for module in half.projections if isinstance(module, LoraLayer)]


def parts_of(layer: Any, config: Any) -> Parts:
    """Return the parts of the halves of a layer that can be fused.

    Raises:
        NotFusable: the layer has something that fused layers do not compute.
    """
    family = family_of(layer)
    _check_children(layer, family.parts)
    gain = getattr(layer, "residual_multiplier", 1.0)
    norms = [None if name is None else _norm_of(getattr(layer, name)) for name in family.norms]
    attention = mlp = None
    if family.attention and (module := getattr(layer, family.attention, None)) is not None:
        attention = _attention_parts(module, family, config, norms[0], norms[1], gain)
    if family.mlp and (module := getattr(layer, family.mlp, None)) is not None:
        mlp = _mlp_parts(module, family, config, norms[2], norms[3], gain)
    if attention is None and mlp is None:
        raise NotFusable(f"{type(layer).__name__} has neither half of those that it knows")
    return attention, mlp


def _attention_parts(
    module: Any, family: FusedFamily, config: Any, before: Norm | None, after: Norm | None, gain: float
) -> AttentionParts:
    _check_children(module, {*family.qkv, family.o, "q_norm", "k_norm", "rotary_emb"})
    if getattr(module, "attention_dropout", 0.0) or getattr(module, "residual_dropout", 0.0):
        raise NotFusable("it has dropout in attention")
    if getattr(module, "attn_logit_softcapping", None) is not None or not getattr(module, "is_causal", True):
        raise NotFusable("its attention has a cap on scores, or sees what comes later")
    dim = module.head_dim
    if dim not in FUSED_HEAD_DIMS:
        raise NotFusable(f"its heads have {dim} dimensions")
    o = getattr(module, family.o)
    if base_of(o).bias is not None:
        raise NotFusable("its attention's output has a bias")
    qkv = [getattr(module, name) for name in family.qkv]
    if len({base_of(each).bias is None for each in qkv}) > 1:
        raise NotFusable("some of its queries, keys and values have a bias, and others not")
    query_heads = o.in_features // dim
    key_heads = (sum(each.out_features for each in qkv) // dim - query_heads) // 2
    head_norms = None
    if hasattr(module, "q_norm"):
        head_norms = _norm_of(module.q_norm), _norm_of(module.k_norm)
        sizes = [len(weight) for weight, _ in head_norms]
        if sizes not in ([dim, dim], [query_heads * dim, key_heads * dim]):
            raise NotFusable("its norms of queries and keys go neither over a head nor over all")
    return AttentionParts(
        qkv=qkv,
        o=o,
        query_heads=query_heads,
        key_heads=key_heads,
        head_dim=dim,
        before=before,
        after=after,
        head_norms=head_norms,
        turns=bool(getattr(module, "use_rope", True)),
        query_scale=_query_scale(module, config),
        scale=module.scaling,
        module=module,
        gain=gain,
    )


def _query_scale(module: Any, config: Any) -> tuple[float, int] | None:
    if type(module).__name__ != "Ministral3Attention":
        return None
    rope = config.rope_parameters
    beta, length = rope.get("llama_4_scaling_beta"), rope.get("original_max_position_embeddings")
    if beta is None or length is None:
        raise NotFusable("its queries are scaled by something other than their positions")
    return beta, length


def _mlp_parts(
    module: Any, family: FusedFamily, config: Any, before: Norm | None, after: Norm | None, gain: float
) -> MlpParts:
    _check_children(module, {*family.gate_up, family.down, "act_fn", "activation_fn", "activation"})
    if getattr(module, "residual_dropout", 0.0):
        raise NotFusable("it has dropout in its MLP")
    modules = [getattr(module, name) for name in (*family.gate_up, family.down)]
    if any(base_of(each).bias is not None for each in modules):
        raise NotFusable("it has biases in its MLP")
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if activation not in _ACTIVATIONS:
        raise NotFusable(f"its activation is {activation}")
    return MlpParts(modules[:-1], modules[-1], _ACTIVATIONS[activation], before, after, gain)


def _check_children(module: Any, known: Iterable[str]) -> None:
    """Check that a module has no parts but known ones, and dropout that drops nothing."""
    for name in unknown_parts(module, known):
        raise NotFusable(f"{type(module).__name__} has a part that it does not know, {name}")


def _norm_of(module: Any) -> Norm:
    """Return weight and epsilon of an RMSNorm, found by trying: some multiply by 1 more than their parameter says.

    Raises:
        NotFusable: it is none.
    """
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or eps is None or getattr(module, "bias", None) is not None:
        raise NotFusable(f"{type(module).__name__} is no RMSNorm that it knows")
    with torch.no_grad():
        x = torch.linspace(-2, 3, weight.numel(), dtype=weight.dtype, device=weight.device)
        seen = module(x[None])[0].float()
        normed = x.float() * torch.rsqrt(x.float().square().mean() + eps)
        for factor in (weight.detach(), 1.0 + weight.detach().float()):
            if float((normed * factor.float() - seen).norm()) <= 0.01 * float(seen.norm()):
                return factor, eps
    raise NotFusable(f"{type(module).__name__} is no RMSNorm that it knows")
