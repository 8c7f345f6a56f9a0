"""What layers with a state (gated delta rule, Mamba) keep of a token in training, as a trace of them tells.

Attention and MLPs are few enough for formulas. What transformers writes in plain PyTorch for a state is different in
each family, and can be twenty tensors in float32; so one of each kind is run on the meta device, without any numbers.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

_TOKENS = 256  # whole chunks of every family, and few enough to take 50 ms
_ATTENTION = ("q_proj", "qkv_proj", "query_key_value", "Wqkv", "W_pack")


@dataclass(frozen=True)
class Mixers:
    """The layers of a decoder by what mixes their tokens.

    Attributes:
        kept: bytes that states keep of a token for the backward pass, in bfloat16: the mean over all layers.
        most: the same, of the layer that keeps most.
        attending: the share of layers with attention.
    """

    kept: float = 0.0
    most: float = 0.0
    attending: float = 1.0


def mixers_of(model: Any, hidden: int) -> Mixers:
    """Trace the layers with a state of a model on the meta device, of that hidden size.

    What cannot be traced, such as a kernel of another package, counts as attention does.
    """
    from torch.nn import ModuleList

    lists = [module for module in model.modules() if isinstance(module, ModuleList)]
    layers = max(lists, key=lambda each: sum(bool(_states(layer)) for layer in each), default=())
    traced: dict[type, float] = {}
    kept, attending = [], 0
    for layer in layers:
        states = _states(layer)
        for state in states.values():
            if type(state) not in traced:
                traced[type(state)] = _bytes_a_token(state, hidden)
        kept.append(sum(traced[type(state)] for state in states.values()))
        attending += not kept[-1] or any(
            name.rpartition(".")[2] in _ATTENTION and not name.startswith(tuple(states))
            for name, _ in layer.named_modules()
        )
    return Mixers(statistics.fmean(kept), max(kept), attending / len(layers)) if any(kept) else Mixers()


def _states(layer: Any) -> dict[str, Any]:
    return {name: module for name, module in layer.named_modules() if hasattr(module, "A_log")}


def _bytes_a_token(mixer: Any, hidden: int) -> float:
    import torch

    mixer = mixer.to(torch.bfloat16)
    own = {parameter.untyped_storage()._cdata for parameter in mixer.parameters()}
    kept: dict[int, Any] = {}  # the storages themselves, so that none is given the place of another

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    rows = torch.empty(1, _TOKENS, hidden, device="meta", dtype=torch.bfloat16, requires_grad=True)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mixer(rows)
    except Exception:  # noqa: BLE001 - a package's kernel, or a module that wants more than rows
        return 0.0
    return float(sum(storage.nbytes() for storage in kept.values())) / _TOKENS
