"""What layers with a state (gated delta rule, Mamba) keep of a token in training and do for it, by a trace of them.

Attention and MLPs are few enough for formulas. What transformers writes in plain PyTorch for a state is different in
each family, and can be twenty tensors in float32 and a loop over chunks; so one of each kind is run on the meta device,
without any numbers, forward and backward, at two lengths: what is more at the longer one is that of its tokens.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

_TOKENS = 256  # whole chunks of every family, and few enough to take 50 ms; twice as many the second time
_PROJECTIONS = ("aten.mm", "aten.addmm", "aten.linear")  # which are counted with all other linear layers
_ATTENTION = ("q_proj", "qkv_proj", "query_key_value", "Wqkv", "W_pack")


@dataclass(frozen=True)
class Mixers:
    """The layers of a decoder by what mixes their tokens.

    Attributes:
        kept: bytes that states keep of a token for the backward pass, in bfloat16: the mean over all layers.
        most: the same, of the layer that keeps most.
        attending: the share of layers with attention.
        moved: bytes that operations on states read and write for a token, forward and backward: the mean of all layers.
        started: operations on states, beside their projections, forward and backward, whatever the length; the mean.
        started_each: further ones for each token of the longest document.
        unknown: the classes of states that could not be traced: nothing of theirs is counted.
    """

    kept: float = 0.0
    most: float = 0.0
    attending: float = 1.0
    moved: float = 0.0
    started: float = 0.0
    started_each: float = 0.0
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Trace:
    """What one state takes of a token, and of a pass."""

    kept: float = 0.0
    moved: float = 0.0
    started: float = 0.0
    started_each: float = 0.0


def mixers_of(model: Any, hidden: int) -> Mixers:
    """Trace the layers with a state of a model on the meta device, of that hidden size.

    What cannot be traced, such as a kernel of another package, counts as attention does, and is named.
    """
    from torch.nn import ModuleList

    lists = [module for module in model.modules() if isinstance(module, ModuleList)]
    layers = max(lists, key=lambda each: sum(bool(_states(layer)) for layer in each), default=())
    traced: dict[type, _Trace | None] = {}
    found, attending = [], 0
    for layer in layers:
        states = _states(layer)
        for state in states.values():
            if type(state) not in traced:
                traced[type(state)] = _trace(state, hidden)
        known = [trace for state in states.values() if (trace := traced[type(state)])]
        found.append([sum(getattr(trace, name) for trace in known) for name in _Trace.__dataclass_fields__])
        attending += not known or any(
            name.rpartition(".")[2] in _ATTENTION and not name.startswith(tuple(states))
            for name, _ in layer.named_modules()
        )
    unknown = tuple(kind.__name__ for kind, trace in traced.items() if trace is None)
    if not any(any(values) for values in found):
        return Mixers(unknown=unknown)
    kept, moved, started, started_each = map(statistics.fmean, zip(*found, strict=True))
    most = max(values[0] for values in found)
    return Mixers(kept, most, attending / len(layers), moved, started, started_each, unknown)


def _states(layer: Any) -> dict[str, Any]:
    return {name: module for name, module in layer.named_modules() if hasattr(module, "A_log")}


def _trace(mixer: Any, hidden: int) -> _Trace | None:
    """Return what a state takes; None: it cannot be traced."""
    import torch

    mixer = mixer.to(torch.bfloat16)
    try:
        kept, moved, started = _pass(mixer, hidden, _TOKENS)
        _, twice_moved, twice_started = _pass(mixer, hidden, 2 * _TOKENS)
    except Exception:  # noqa: BLE001 - a package's kernel, or a module that wants more than rows
        return None
    each = (twice_started - started) / _TOKENS
    return _Trace(kept / _TOKENS, (twice_moved - moved) / _TOKENS, started - each * _TOKENS, each)


def _pass(mixer: Any, hidden: int, tokens: int) -> tuple[int, int, int]:
    """Return the bytes that are kept of a document, those that are moved forward and backward, and the operations."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    own = {parameter.untyped_storage()._cdata for parameter in mixer.parameters()}
    kept: dict[int, Any] = {}  # the storages themselves, so that none is given the place of another

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    class Count(TorchDispatchMode):
        moved, started = 0, 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            done = function(*args, **(kwargs or {}))
            if not function.is_view and not str(function).startswith((*_PROJECTIONS, "aten.empty", "aten.detach")):
                tensors = tree_leaves((args, kwargs, done))
                self.moved += sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))
                self.started += 1
            return done

    rows = torch.empty(1, tokens, hidden, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with Count() as count:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made = mixer(rows)
        size = sum(storage.nbytes() for storage in kept.values())
        made = made[0] if isinstance(made, tuple) else made
        torch.autograd.grad(made, rows, torch.empty_like(made))
    return size, count.moved, count.started
