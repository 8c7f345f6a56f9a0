"""The linear layers that `lora.targets: auto` stands for, as the names that PEFT takes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

OTHER_TOWERS = re.compile(r"(^|[._])(vision|visual|audio|image|speech)")
ROUTERS = re.compile(r"(^|\.)(gate|router|shared_expert_gate|indexer|altup)(\.|$)")
"""Choosers of experts, of streams (Gemma 3n reads their weights around an adapter), and of tokens to attend to, which
get no gradient. Nobody adapts these."""


def linear_kinds() -> tuple[type[Any], ...]:
    """Return the classes of linear layers that models are made of."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return torch.nn.Linear, Conv1D


def text_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules of a causal LM's text decoder by name: no head, no other tower, no router of experts."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    inside = set((model.base_model if decoder is head else decoder).modules())  # some name their head decoder
    for name, module in model.named_modules():
        if module in inside and module is not head and not OTHER_TOWERS.search(name) and not ROUTERS.search(name):
            yield name, module


def expert_stacks(model: Any) -> dict[str, tuple[int, int, int]]:
    """Return the shape of the parameters of a text decoder that hold the weights of all experts of a layer, by name."""
    return {
        f"{name}.{own}": tuple(weight.shape)
        for name, module in text_modules(model)
        if "expert" in type(module).__name__.lower()
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3
    }


def expert_targets(model: Any) -> tuple[str, ...]:
    """Name the parameters of `expert_stacks` for PEFT's `target_parameters`: sorted, as short as the names allow."""
    names = [name for name, _ in model.named_parameters()]
    return tuple(sorted(_short_names(set(expert_stacks(model)), names)))


def auto_targets(model: Any) -> tuple[str, ...]:
    """Name all linear layers of a text decoder that PEFT can train: sorted, as short as the model's names allow.

    Left out are projections of Mamba layers other than their first (the kernels of most read the weights themselves,
    around an adapter), and names that PEFT takes for those of experts and moves to their 3D parameters.

    Args:
        model: a causal LM without adapters; its weights are not read, they may be on the meta device.
    """
    modules = dict(model.named_modules())
    found = {name for name, module in text_modules(model) if isinstance(module, linear_kinds())}
    found -= {name for name in found if _is_bypassed(name, modules)}
    if any(_end(name, 1) == "experts" for name in modules):
        moved = moved_by_peft({_end(name, 1) for name in found}, model)
        found -= {name for name in found if _end(name, 1) in moved}
    return tuple(sorted(_short_names(found, modules)))


def _is_bypassed(name: str, modules: dict[str, Any]) -> bool:
    above, _, own = name.rpartition(".")
    is_mamba = hasattr(modules[above], "A_log") and hasattr(modules[above], "in_proj")
    return is_mamba and own != "in_proj"


def moved_by_peft(names: Collection[str], model: Any) -> dict[str, tuple[str, int]]:
    """Return the names that PEFT will not look for among modules, as in some models it takes them for experts.

    Returns:
        For each such name that of the parameter which gets the adapter, and how many names share it: it has as many
        times the rank.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    moved: dict[str, tuple[str, int]] = {}
    for together in ({"gate_proj", "up_proj"}, {"down_proj"}, {"w1", "w3"}, {"w2"}):  # it refuses one of two alone
        if not together.isdisjoint(names):
            config = LoraConfig(target_modules=sorted(together))
            convert_peft_config_for_transformers(config, model, None)
            if parameters := sorted(config.target_parameters or ()):
                moved |= {name: (parameters[0], len(together)) for name in together - set(config.target_modules or ())}
    return moved


def _short_names(wanted: set[str], names: Collection[str]) -> set[str]:
    """Shorten each name to its last part, or to two, if that begins with no number and only wanted names end so."""
    others = {_end(name, parts) for name in names if name not in wanted for parts in (1, 2)}

    def short(name: str) -> str:
        ends = (_end(name, parts) for parts in (1, 2))
        return next((end for end in ends if end not in others and not end[0].isdigit()), name)

    return {short(name) for name in wanted}


def _end(name: str, parts: int) -> str:
    return ".".join(name.split(".")[-parts:])
