"""The sizes of a model, from its configuration alone: no weight is read, the model is built without storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thinktune.errors import ConfigError
from thinktune.imports import importing
from thinktune.planner.adapter_targets import auto_targets, linear_kinds

FUSED_MODELS = {
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "qwen3": "Qwen3DecoderLayer",
}
"""Model types whose decoder layers, of this class, training/fused runs as one piece each; others train by PEFT."""
FUSED_HEAD_DIMS = (32, 64, 128, 256)
FUSED_MAX_RANK = 256
FUSED_KERNEL_RANK = 32
"""The largest rank whose low-rank products are part of fused layers' kernels; above, they are products of their own."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that memory and time depend on.

    Attributes:
        linears: (inputs, outputs) of the linear layers, by name; the head is not among them.
        auto_targets: names that `lora.targets: auto` stands for.
        others: parameters that are in none of them: embeddings, norms, biases, and the head.
        kv: width of all keys, and of all values, of a token.
        q: width of all queries of a token.
    """

    model_type: str
    layers: int
    hidden: int
    q: int
    kv: int
    heads: int
    intermediate: int
    vocabulary: int
    linears: Mapping[str, tuple[int, int]]
    auto_targets: tuple[str, ...]
    others: int

    @property
    def linear_weights(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.others

    def targets(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """List (inputs, outputs) of the linear layers that get an adapter: as in PEFT, their names end in a target."""
        ends = tuple(f".{name}" for name in names)
        return [widths for name, widths in self.linears.items() if f".{name}".endswith(ends)]

    def named_targets(self, targets: Literal["auto"] | Sequence[str]) -> tuple[str, ...]:
        """Return the names that `lora.targets` stands for."""
        return self.auto_targets if targets == "auto" else tuple(targets)

    def check_targets(self, names: Sequence[str]) -> None:
        """Check that every target names a linear layer.

        Raises:
            ConfigError: no linear layer of the decoder has that name, or `auto` finds none.
        """
        if not names:
            raise ConfigError("lora.targets: auto finds no linear layer", hint="name the layers that get an adapter")
        if unknown := [name for name in names if not self.targets([name])]:
            known = sorted({name.rpartition(".")[2] for name in self.linears})
            raise ConfigError(
                f"lora.targets: the model's layers have no {', '.join(unknown)}",
                hint=f"they have {', '.join(known)}",
            )


def shape_of(config: Any, *, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of the causal LM that a transformers config describes."""
    import torch

    with importing():
        from transformers import AutoModelForCausalLM

        kinds = linear_kinds()

    from thinktune.models.device import LOADING

    values = config.to_dict()
    values.pop("quantization_config", None)
    with LOADING, torch.device("meta"):
        plain = type(config).from_dict(values)
        model = AutoModelForCausalLM.from_config(plain, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    linears = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds) and module is not head:
            outputs, inputs = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.shape[::-1]
            linears[name] = (inputs, outputs)
    text = config.get_text_config()
    hidden = text.hidden_size
    heads = getattr(text, "num_attention_heads", 1)
    dim = getattr(text, "head_dim", None) or hidden // heads
    total = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    return ModelShape(
        model_type=text.model_type,
        layers=text.num_hidden_layers,
        hidden=hidden,
        q=heads * dim,
        kv=(getattr(text, "num_key_value_heads", None) or heads) * dim,
        heads=heads,
        intermediate=getattr(text, "intermediate_size", None) or 4 * hidden,
        vocabulary=text.vocab_size,
        linears=linears,
        auto_targets=auto_targets(model),
        others=total - sum(inputs * outputs for inputs, outputs in linears.values()),
    )
