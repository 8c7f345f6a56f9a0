"""Fuses all decoder layers of a model. Needs Triton: imported only where `support` has found nothing against it."""

from __future__ import annotations

import types
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.fused.activation_offload import HostStore
from thinktune.training.fused.adapted_projection import AdapterSettings
from thinktune.training.fused.attention_half import AttentionHalf
from thinktune.training.fused.batch import Batch
from thinktune.training.fused.decoder_layer import FusedLayer, LayerNode
from thinktune.training.fused.frozen_projection import Scratch
from thinktune.training.fused.kernels.dropout import Dropout, threshold_of
from thinktune.training.fused.lora_buffers import Adapters, dropout_of, matrices
from thinktune.training.fused.mlp_half import MlpHalf

_PLACES = 8  # of projections in a layer, by which dropout is drawn; the last is free


class FusedLayers:
    """All decoder layers of a model, fused until `undo`.

    Attributes:
        memory: what is kept; may be changed between two steps.
    """

    def __init__(self, model: PeftModel, memory: RecomputePolicy) -> None:
        self._base = model.get_base_model()
        self._layers = list(self._base.base_model.layers)
        settings = _settings_of(self._layers)
        self._dropout = threshold_of(settings.dropout)
        scratch = Scratch()
        self.layers = []
        for number, layer in enumerate(self._layers):
            attention = AttentionHalf(layer, settings, scratch, _PLACES * number)
            mlp = MlpHalf(layer, settings, scratch, _PLACES * number + 4)
            self.layers.append(FusedLayer(attention, mlp, number, memory))
            layer.fused = self.layers[-1]
            layer.forward = types.MethodType(self._forward(self.layers[-1], type(layer).forward), layer)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # weights have moved: what the last layer's lay in
        norm = self._layers[0].input_layernorm.weight
        self._groups = [group for layer in self.layers for group in layer.groups]
        everything = [group.adapter for group in self._groups]
        self._adapters = Adapters(everything, settings.scaling, norm.dtype, norm.device)
        self._no_seed = torch.zeros(1, dtype=torch.int32, device=norm.device)
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
        names = ("cu_seq_lens_q", "max_length_q", "document_lengths", "repeats")
        dropout = self._dropout

        def forward(module: Any, hidden_states: torch.Tensor, *args: Any, **inputs: Any) -> Any:
            documents = {name: inputs.get(name) for name in names}
            if args or documents["cu_seq_lens_q"] is None or fused.is_disabled:
                return original(module, hidden_states, *args, **inputs)
            if first:
                self._refresh()
            cos, sin = inputs["position_embeddings"]
            drawn = None
            if dropout and module.training:
                drawn = Dropout(inputs.get("dropout_seed", self._no_seed), inputs["token_keys"], 0, dropout)
            batch = Batch(cos[0].contiguous(), sin[0].contiguous(), documents, drawn)
            return LayerNode.apply(hidden_states, fused, batch, *fused.parameters)

        return forward


def fuse_layers(model: PeftModel, memory: RecomputePolicy) -> FusedLayers:
    """Fuse every decoder layer of a model that `why_not_fused` has nothing against."""
    return FusedLayers(model, memory)


def _settings_of(layers: list[Any]) -> AdapterSettings:
    module: Any = next(module for layer in layers for module in layer.modules() if isinstance(module, LoraLayer))
    return AdapterSettings(matrices(module)[0].shape[0], module.scaling[next(iter(module.lora_A))], dropout_of(module))
