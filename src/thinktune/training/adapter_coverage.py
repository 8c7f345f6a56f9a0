"""Coverage of a model by an adapter: PEFT goes by names, and names do not tell the purpose of a module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from thinktune.planner.adapter_targets import OTHER_TOWERS, ROUTERS, expert_stacks, linear_kinds, text_modules


def coverage_table(model: PeftModel) -> str:
    """List the kinds of layers of the text decoder with an adapter, then those without: how many of each, those of one
    part together.

    >>> coverage_table(model)
    'on 24 self_attn.{q_proj,v_proj}, none on 24 self_attn.{k_proj,o_proj}, 24 mlp.{gate_proj,up_proj,down_proj}'
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    # Adapters of experts lie around each other, all outside the module with the parameters.
    parameters = {name: getattr(module, "parameter_name", "") for name, module in layers.items()}
    with_one = [f"{name.partition('.base_layer')[0]}.{own}".rstrip(".") for name, own in parameters.items()]
    in_text = _in_text(model)
    without = [name for name in _plain_linears(model, set(layers)) if in_text(name)]
    stacks = [f"base_model.model.{name.replace('.base_layer', '')}" for name in expert_stacks(model.get_base_model())]
    without += [name for name in stacks if name not in with_one]
    return f"on {_grouped(with_one)}" + (f", none on {_grouped(without)}" if without else "")


def _grouped(names: Sequence[str]) -> str:
    counts = Counter(map(_kind, names))
    parts: dict[tuple[str, int], list[str]] = {}
    for kind, count in counts.items():
        part, _, own = kind.rpartition(".")
        parts.setdefault((part, count), []).append(own)
    ends = {at: f"{{{','.join(owns)}}}" if len(owns) > 1 else owns[0] for at, owns in parts.items()}
    return ", ".join(f"{count} {part}.{end}" for (part, count), end in ends.items())


def uncovered(model: PeftModel, targets: Literal["auto"] | Sequence[str]) -> list[str]:
    """List the parts of a model that an adapter leaves out although its settings do not say so, in a few words each.

    That is: layers of a kind that only some have (linear attention beside attention), experts, and linear layers that
    have a target's name and no adapter (for experts, PEFT moves them); and adapters that text does not train. `auto`
    names every linear layer of the text decoder.
    """
    names = {name for name, _ in model.named_modules()}
    adapted = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    found: dict[str, None] = {}
    is_named = _in_text(model) if targets == "auto" else lambda name: name.rpartition(".")[2] in targets
    for name in _plain_linears(model, adapted):
        if OTHER_TOWERS.search(name) or ROUTERS.search(name):
            continue
        if is_named(name):
            found[f"no adapter on {_kind(name)}"] = None
        elif (part := _part_of_some_layers(name, names)) and not _any_below(part, adapted):
            found[f"no adapter on {_kind(part)}"] = None
    for name, parameter in model.named_parameters():
        holder = name.rpartition(".")[0].removesuffix(".base_layer")
        is_expert = parameter.ndim == 3 and "lora_" not in name and "conv" not in name and not OTHER_TOWERS.search(name)
        if is_expert and not _any_below(holder, adapted) and not any(holder.startswith(above) for above in adapted):
            found[f"no adapter on {_kind(holder)}"] = None
    if strayed := [name for name in adapted if OTHER_TOWERS.search(name)]:
        where = _kind(strayed[0])
        found[f"{len(strayed)} adapters outside the text model, which text does not train ({where})"] = None
    return list(found)


def _in_text(model: PeftModel) -> Callable[[str], bool]:
    text = {f"base_model.model.{name}" for name, _ in text_modules(model.get_base_model())}
    return text.__contains__


def _plain_linears(model: PeftModel, adapted: set[str]) -> Iterator[str]:
    for name, module in model.named_modules():
        inside = "lora_" in name or name.endswith(".base_layer") or name in adapted
        if not inside and isinstance(module, linear_kinds()):
            yield name


def _part_of_some_layers(name: str, names: set[str]) -> str | None:
    """Return the part of its decoder layer that a module is in, if other layers have no part of that name."""
    match = re.match(r"(.*?\.)(\d+)\.([^.]+)", name)
    if match is None:
        return None
    above, _, part = match.groups()
    layers = {other for other in names if re.fullmatch(re.escape(above) + r"\d+", other)}
    return match.group() if any(f"{layer}.{part}" not in names for layer in layers) else None


def _any_below(part: str, adapted: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for name in adapted)


def _kind(name: str) -> str:
    """Return a module's name without the numbers of layers and experts, and without the prefix above the layers."""
    below = re.split(r"\.\d+\.", name.removeprefix("base_model.model."), maxsplit=1)[-1]
    return re.sub(r"\.\d+(?=\.|$)", "", below)
