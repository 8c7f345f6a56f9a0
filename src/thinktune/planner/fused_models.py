"""The decoder layers that training can fuse, a line a model type: one table for the plan and for training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FUSED_HEAD_DIMS = (32, 64, 128, 256)
FUSED_MAX_RANK = 256
FUSED_KERNEL_RANK = 32
"""The largest rank whose low-rank products are part of fused layers' kernels; above, they are products of their own."""


@dataclass(frozen=True)
class FusedFamily:
    """The class of a decoder layer, the halves of it that are fused, and the names of their parts.

    Attributes:
        layer: name of the class, in transformers.
        attention, mlp: the names of the halves' modules; None: this half is the model's own.
        own: modules that can be the half which is not fused.
        qkv, gate_up: names of the projections in them, one where they are joined.
        head_norms: whether queries and keys are normed.
        norms: before attention, on its output, before the MLP, on its output; None where there is none.
    """

    layer: str
    attention: str | None = "self_attn"
    mlp: str | None = "mlp"
    own: tuple[str, ...] = ()
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    o: str = "o_proj"
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    head_norms: bool = False
    norms: tuple[str | None, str | None, str | None, str | None] = (
        "input_layernorm", None, "post_attention_layernorm", None,
    )  # fmt: skip

    @property
    def parts(self) -> frozenset[str]:
        """Names of the modules that a layer may have."""
        return frozenset({self.attention, self.mlp, *self.own, *self.norms} - {None})  # type: ignore[arg-type]

    @property
    def norms_updates(self) -> bool:
        """Whether what attention and MLP add to the residual stream is normed."""
        return self.norms[1] is not None


_GEMMA_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
_OLMO_NORMS = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
FUSED_MODELS = {
    "llama": FusedFamily("LlamaDecoderLayer"),
    "mistral": FusedFamily("MistralDecoderLayer"),
    "qwen2": FusedFamily("Qwen2DecoderLayer"),
    "qwen3": FusedFamily("Qwen3DecoderLayer", head_norms=True),
    "smollm3": FusedFamily("SmolLM3DecoderLayer"),
    "ministral": FusedFamily("MinistralDecoderLayer"),
    "ministral3": FusedFamily("Ministral3DecoderLayer"),
    "seed_oss": FusedFamily("SeedOssDecoderLayer"),
    "cwm": FusedFamily("CwmDecoderLayer"),
    "granite": FusedFamily("GraniteDecoderLayer"),
    "granitemoehybrid": FusedFamily(
        "GraniteMoeHybridDecoderLayer", mlp="shared_mlp", gate_up=("input_linear",), down="output_linear"
    ),
    "phi3": FusedFamily("Phi3DecoderLayer", qkv=("qkv_proj",), gate_up=("gate_up_proj",)),
    "qwen3_moe": FusedFamily("Qwen3MoeDecoderLayer", head_norms=True, mlp=None, own=("mlp",)),
    "mixtral": FusedFamily("MixtralDecoderLayer", mlp=None, own=("mlp",)),
    "glm4_moe": FusedFamily("Glm4MoeDecoderLayer", head_norms=True, mlp=None, own=("mlp",)),
    "olmo2": FusedFamily("Olmo2DecoderLayer", head_norms=True, norms=_OLMO_NORMS),
    "olmo3": FusedFamily("Olmo3DecoderLayer", head_norms=True, norms=_OLMO_NORMS),
    "gemma3_text": FusedFamily("Gemma3DecoderLayer", head_norms=True, norms=_GEMMA_NORMS),
    "qwen3_5_text": FusedFamily("Qwen3_5DecoderLayer", attention=None, own=("linear_attn", "self_attn")),
}
"""By model type; training/fused looks at each layer before it takes it. Others train by PEFT."""


def has_known_parts(model: Any) -> bool:
    """Return whether all decoder layers of a causal LM are of a class of the table, and have no parts but its own."""
    layers = list(getattr(model.get_decoder(), "layers", ()))
    families = {family.layer: family for family in FUSED_MODELS.values()}
    return bool(layers) and all(
        (family := families.get(type(layer).__name__)) is not None and not unknown_parts(layer, family.parts)
        for layer in layers
    )


def unknown_parts(module: Any, known: Iterable[str]) -> list[str]:
    """List the parts of a module that are not among `known` ones, but for dropout that drops nothing."""
    children = [name for name, child in module.named_children() if type(child).__name__ != "Dropout" or child.p != 0]
    parameters = [name for name, _ in module.named_parameters(recurse=False)]
    return [name for name in (*children, *parameters) if name not in known]
