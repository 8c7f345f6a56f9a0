"""Fuses the decoder layers of a model, or those halves of them that can be. Needs Triton: imported only where `support`
has found nothing against it."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch.utils.checkpoint import checkpoint

from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.fused.activation_offload import HostStore
from thinktune.training.fused.adapted_projection import AdapterSettings
from thinktune.training.fused.attention_half import AttentionHalf
from thinktune.training.fused.batch import Batch
from thinktune.training.fused.decoder_layer import FusedLayer, LayerNode
from thinktune.training.fused.decoding import decode, may_decode
from thinktune.training.fused.document_by_document import KEYS
from thinktune.training.fused.frozen_projection import Scratch
from thinktune.training.fused.kernels.dropout import Dropout, threshold_of
from thinktune.training.fused.kernels.qkv_rotary import Positions
from thinktune.training.fused.layer_parts import adapters_in, decoder_layers, family_of, parts_of
from thinktune.training.fused.lora_buffers import Adapters, dropout_of, matrices
from thinktune.training.fused.mlp_half import MlpHalf

_PLACES = 8  # of projections in a layer, by which dropout is drawn; the last is free


class FusedLayers:
    """All decoder layers of a model, fused until `undo`: both halves, or the one that can be.

    Attributes:
        memory: what is kept; may be changed between two steps.
    """

    def __init__(self, model: PeftModel, memory: RecomputePolicy) -> None:
        self._base = model.get_base_model()
        self._layers = decoder_layers(self._base)
        parts = [parts_of(layer, self._base.config.get_text_config()) for layer in self._layers]
        settings = _settings_of(adapters_in(parts)[0])
        self._dropout = threshold_of(settings.dropout)
        self._scale: Any = None
        self._query_scale = next((attention.query_scale for attention, _ in parts if attention), None)
        scratch, dtype = Scratch(), self._base.dtype
        self.layers = []
        for number, (layer, (attention, mlp)) in enumerate(zip(self._layers, parts, strict=True)):
            place = _PLACES * number
            first = AttentionHalf(attention, settings, dtype, scratch, place) if attention else None
            second = MlpHalf(mlp, settings, dtype, scratch, place + 4) if mlp else None
            self.layers.append(FusedLayer(first, second, number, memory))
            layer.fused = self.layers[-1]
            layer.forward = types.MethodType(self._forward(self.layers[-1], type(layer).forward), layer)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # weights have moved: what the last layer's lay in
        self._groups = [group for layer in self.layers for group in layer.groups]
        everything = [group.adapter for group in self._groups]
        self._adapters = Adapters(everything, settings.scaling, dtype, self._base.device)
        self._no_seed = torch.zeros(1, dtype=torch.int32, device=self._base.device)
        self.layers[0].refresh = self._refresh
        for each in self.layers:
            each.can_decode = each.is_whole and self._query_scale is None
        self._store: HostStore | None = None
        self.memory = memory

    @property
    def memory(self) -> RecomputePolicy:
        return self._memory

    @memory.setter
    def memory(self, memory: RecomputePolicy) -> None:
        self._memory = memory
        self._store = HostStore(len(self.layers)) if memory.offload else None
        for layer in self.layers:
            layer.memory, layer.store = memory, self._store

    def _refresh(self) -> None:
        self._adapters.refresh()
        for group in self._groups:
            group.refresh()

    def undo(self) -> None:
        """Give the layers their own forward back."""
        for group in self._groups:
            group.frozen.release()
        for layer in self._layers:
            layer.__dict__.pop("forward", None)
            layer.__dict__.pop("fused", None)

    def _forward(self, fused: FusedLayer, original: Any) -> Any:
        first = fused is self.layers[0]
        names = ("attention_mask", "cu_seq_lens_q", "max_length_q", "document_lengths", "repeats", *KEYS)
        dropout = self._dropout

        def forward(module: Any, hidden_states: torch.Tensor, *args: Any, **inputs: Any) -> Any:
            documents = {name: inputs.get(name) for name in names}
            if documents["cu_seq_lens_q"] is None and not args and may_decode(fused, hidden_states, inputs):
                return decode(fused, module, hidden_states, inputs)
            if args or documents["cu_seq_lens_q"] is None or fused.is_disabled:
                return original(module, hidden_states, *args, **inputs)
            if first:
                self._refresh()
                self._scale = self._query_scale and _scale_of_queries(*self._query_scale, inputs["position_ids"][0])
            turn = inputs.get("position_embeddings")
            cos, sin = (None, None) if turn is None else (each[0].contiguous() for each in turn)
            drawn = None
            if dropout and module.training:
                drawn = Dropout(inputs.get("dropout_seed", self._no_seed), inputs["token_keys"], 0, dropout)
            batch = Batch(Positions(cos, sin, self._scale), documents, drawn)
            again, hidden = fused.level == "full", hidden_states
            if fused.attention is None:
                hidden = _own(own_attention(module, inputs), hidden, again=again)
            hidden = LayerNode.apply(hidden, fused, batch, *fused.parameters)
            return _own(own_mlp(module), hidden, again=again) if fused.mlp is None else hidden

        return forward


def fuse_layers(model: PeftModel, memory: RecomputePolicy) -> FusedLayers:
    """Fuse every decoder layer of a model that `why_not_fused` has nothing against."""
    return FusedLayers(model, memory)


Half = Callable[[torch.Tensor], torch.Tensor]


def own_attention(layer: Any, inputs: dict[str, Any]) -> Half:
    """Return the attention half of a layer, or another mixer of tokens in its place, by the model's own modules."""
    mixer = _own_module(layer)
    if hasattr(layer, "self_attn"):
        return _own_half(layer, family_of(layer).norms[:2], lambda rows: mixer(hidden_states=rows, **inputs)[0])
    unknown = ("position_embeddings", "position_ids", "past_key_values")  # to layers with a state
    rest = {name: value for name, value in inputs.items() if name not in unknown}
    return _own_half(
        layer, family_of(layer).norms[:2], lambda rows: mixer(hidden_states=rows, cache_params=None, **rest)
    )


def own_mlp(layer: Any) -> Half:
    """Return the MLP half of a layer by the model's own modules."""
    return _own_half(layer, family_of(layer).norms[2:], _own_module(layer))


def _own_module(layer: Any) -> Any:
    return next(getattr(layer, name) for name in family_of(layer).own if hasattr(layer, name))


def _own_half(layer: Any, norms: tuple[str | None, ...], module: Any) -> Half:
    before, after = (getattr(layer, name) if name else torch.nn.Identity() for name in norms)
    return lambda hidden: hidden + after(module(before(hidden)))


def _own(half: Half, hidden: torch.Tensor, *, again: bool) -> torch.Tensor:
    """Compute a half that is the model's own; `again`: in the backward pass too, in place of saved activations."""
    if not again or not torch.is_grad_enabled():
        return half(hidden)
    out: torch.Tensor = checkpoint(half, hidden, use_reentrant=False)
    return out


def _scale_of_queries(beta: float, length: int, positions: torch.Tensor) -> torch.Tensor:
    """Compute the factors that a model multiplies its queries by, float32 [tokens] (Ministral 3)."""
    return 1 + beta * torch.log(1 + torch.floor(positions.float() / length))


def _settings_of(module: Any) -> AdapterSettings:
    return AdapterSettings(matrices(module)[0].shape[0], module.scaling[next(iter(module.lora_A))], dropout_of(module))
