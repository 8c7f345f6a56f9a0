"""The sizes of a model, from its configuration alone: no weight is read, the model is built without storage."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from thinktune.errors import ConfigError
from thinktune.imports import importing
from thinktune.models.layer_sizes import layer_sizes
from thinktune.planner.adapter_targets import (
    OTHER_TOWERS,
    auto_targets,
    expert_stacks,
    expert_targets,
    linear_kinds,
    moved_by_peft,
)
from thinktune.planner.fused_models import has_known_parts
from thinktune.planner.mixers import Mixers, mixers_of

_DOWN = ("down_proj", "output_linear", "w2", "fc2", "wo")
"""Names of the last projection of an MLP, shared experts included."""
_TOP_K = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")


@dataclass(frozen=True)
class ModelShape:
    """The sizes that memory and time depend on; where layers differ, the mean of them.

    Attributes:
        linears: (inputs, outputs) of the linear layers, by name; the head is not among them.
        auto_targets: names that `lora.targets: auto` stands for.
        experts: (experts, …, …) of the parameters that hold the weights of all experts of a layer, by name.
        expert_targets: names of those parameters for PEFT's `target_parameters`.
        moved: for names in `lora.targets` that PEFT takes for experts: the end of their parameter's name, and how many
            names share it.
        experts_of_token: experts of a layer that a token goes through.
        intermediate: width of the MLP that all tokens go through; 0 where there is none beside experts.
        plain_scores: whether attention asks for a soft cap or sinks, for which a CPU has no kernel without scores.
        mixers: what layers with a state keep, which have it in place of attention or beside it.
        known_parts: whether decoder layers have the parts that fused layers know, and no others.
        outside: last names of the modules of other towers (vision, audio), which text does not train.
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
    experts: Mapping[str, tuple[int, int, int]]
    expert_targets: tuple[str, ...]
    moved: Mapping[str, tuple[str, int]]
    experts_of_token: int
    plain_scores: bool
    mixers: Mixers
    known_parts: bool
    outside: frozenset[str]
    others: int

    @property
    def linear_weights(self) -> int:
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.others

    @property
    def active_experts(self) -> int:
        """Number of weights of experts that a token goes through, in all layers."""
        return self.experts_of_token * sum(one * other for _, one, other in self.experts.values())

    @property
    def expert_widths(self) -> float:
        """Summed width of what a layer's experts make of a token: of gate and up, their product, and the output."""
        made = sum(one + other - self.hidden for _, one, other in self.experts.values())
        made += self.hidden * len({name.rpartition(".")[0] for name in self.experts})
        return self.experts_of_token * made / self.layers

    def targets(self, names: Sequence[str]) -> list[tuple[int, int]]:
        """List (inputs, outputs) of the linear layers that get an adapter: as in PEFT, their names end in a target."""
        ends = tuple(f".{name}" for name in names)
        return [widths for name, widths in self.linears.items() if f".{name}".endswith(ends)]

    def named_targets(self, targets: Literal["auto"] | Sequence[str]) -> tuple[str, ...]:
        """Return the names that `lora.targets` stands for; of a name in several towers, those of the text decoder."""
        if targets == "auto":
            return self.auto_targets
        return tuple(name for target in targets for name in self._within_text(target))

    def _within_text(self, target: str) -> Sequence[str]:
        if target.rpartition(".")[2] not in self.outside:
            return [target]
        full = [name for name in self.linears if f".{name}".endswith(f".{target}") and not OTHER_TOWERS.search(name)]
        return full or [target]

    def check_targets(self, names: Sequence[str]) -> None:
        """Check that every target names a linear layer.

        Raises:
            ConfigError: no linear layer of the decoder has that name, or `auto` finds none.
        """
        if not names:
            raise ConfigError("lora.targets: auto finds no linear layer", hint="name the layers that get an adapter")
        if unknown := [name for name in names if not self.targets([name])]:
            known = sorted({name.rpartition(".")[2] for name in self.linears})
            experts = ", and experts, which lora.experts is for" if self.experts else ""
            raise ConfigError(
                f"lora.targets: the model's layers have no {', '.join(unknown)}",
                hint=f"they have {', '.join(known)}{experts}",
            )

    def check_experts(self) -> None:
        """Check that `lora.experts` can be.

        Raises:
            ConfigError: the model has no experts, or keeps each of them apart.
        """
        if not self.experts:
            raise ConfigError(
                "lora.experts: the model has no parameter that holds the weights of several experts",
                hint="lora.experts=false; experts that are linear layers of their own belong to lora.targets",
            )


def shape_of(config: Any, *, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of the causal LM that a transformers config describes."""
    import torch

    with importing():
        kinds = linear_kinds()

    from thinktune.models.auto_class import auto_class
    from thinktune.models.device import LOADING

    values = config.to_dict()
    values.pop("quantization_config", None)
    with LOADING, torch.device("meta"):
        plain = type(config).from_dict(values)
        model = auto_class(plain.model_type).from_config(plain, trust_remote_code=trust_remote_code)
    head = model.get_output_embeddings()
    linears = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds) and module is not head:
            outputs, inputs = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.shape[::-1]
            linears[name] = (inputs, outputs)
    text = config.get_text_config()
    layers = layer_sizes(text)
    experts = expert_stacks(model)
    intermediate = _mean(layer.intermediate for layer in layers)
    if experts:  # the width of the config is that of an expert, or of the few layers without
        downs = [inputs for name, (inputs, _) in linears.items() if name.rpartition(".")[2] in _DOWN]
        intermediate = round(sum(downs) / len(layers))
    total = sum(parameter.numel() for parameter in model.parameters())  # tied ones once
    return ModelShape(
        model_type=text.model_type,
        layers=len(layers),
        hidden=text.hidden_size,
        q=_mean(layer.q for layer in layers),
        kv=_mean(layer.kv for layer in layers),
        heads=_mean(layer.heads for layer in layers),
        intermediate=intermediate,
        vocabulary=text.vocab_size,
        linears=linears,
        auto_targets=auto_targets(model),
        experts=experts,
        expert_targets=expert_targets(model),
        moved=moved_by_peft({name.rpartition(".")[2] for name in linears}, model) if experts else {},
        experts_of_token=_experts_of_token(text) if experts else 0,
        plain_scores=_asks_for_scores(model, text),
        mixers=mixers_of(model, text.hidden_size),
        known_parts=has_known_parts(model),
        outside=frozenset(name.rpartition(".")[2] for name, _ in model.named_modules() if OTHER_TOWERS.search(name)),
        others=total - sum(inputs * outputs for inputs, outputs in linears.values()),
    )


def _experts_of_token(text: Any) -> int:
    return next((value for name in _TOP_K if isinstance(value := getattr(text, name, None), int)), 1)


def _asks_for_scores(model: Any, text: Any) -> bool:
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    return capped or any(name.rpartition(".")[2] in ("sinks", "sink") for name, _ in model.named_parameters())


def _mean(sizes: Iterable[int]) -> int:
    return round(statistics.fmean(sizes))
