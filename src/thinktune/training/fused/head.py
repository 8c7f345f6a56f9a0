"""What a causal LM's head computes, found by trying it on a few tokens.

No list of config fields (a scale, a soft cap, …) is ever complete, so none is read to decide: multiplier and cap are
measured, and the head that they make is held against the model's own logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from thinktune.models.untouched import at_rest
from thinktune.training.fused.chunked_loss import Head
from thinktune.training.fused.layer_kinds import first_of_each_kind

_TOKENS = 8
_SCALES = (2.0**-6, 1.0, 2.0**10)
"""Factors of the hidden states on the way into the head: a cap bends large logits only, and hides in the smallest."""


def probe_head(model: Any) -> Head | None:
    """Find the head that gives a causal LM's logits from its last hidden states; None: it is another function, or one
    that is trained and does more than a product.

    Raises:
        torch.OutOfMemoryError
    """
    layer = model.get_output_embeddings()
    if type(layer) is not torch.nn.Linear:
        return None
    try:
        seen = _logits(model, layer)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - a model may raise anything; what it cannot do is told when it is to be trained
        return None
    if seen is None:
        return None
    head = next((head for head in _candidates(model, layer, seen) if _gives(head, seen)), None)
    return None if head is not None and head.bends and layer.weight.requires_grad else head


def _logits(model: Any, layer: torch.nn.Linear) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Return, for each scale, hidden states times it, [tokens, width], and the model's logits of them; None: the head
    is not given the last hidden states."""
    ids = torch.arange(3, 3 + _TOKENS, device=layer.weight.device).repeat(len(_SCALES), 1) % len(layer.weight)
    with at_rest(model), first_of_each_kind(model), torch.no_grad(), _scaled_inputs(layer) as entered:
        states = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        entered.clear()  # of a model that is its own base
        logits = model(input_ids=ids, use_cache=False).logits
    if states is None or len(entered) != 1 or not _same(entered[0], states[:, -entered[0].shape[1] :]):
        return None
    return list(zip(entered[0] * _factors(entered[0]), logits, strict=True))


def _factors(states: torch.Tensor) -> torch.Tensor:
    """Return the scales, one for each row of hidden states, [rows, tokens, width]."""
    return states.new_tensor(_SCALES)[:, None, None]


@contextmanager
def _scaled_inputs(layer: torch.nn.Linear) -> Iterator[list[torch.Tensor]]:
    """Scale each row of a layer's inputs within the block, and collect the inputs as they come."""
    entered: list[torch.Tensor] = []

    def enlarge(_: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        entered.append(inputs[0])
        return (inputs[0] * _factors(inputs[0]),)

    handle = layer.register_forward_pre_hook(enlarge)
    try:
        yield entered
    finally:
        handle.remove()


def _candidates(model: Any, layer: torch.nn.Linear, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[Head]:
    """Heads that the logits may be of: the plain one, then with the multiplier and with the cap that they show."""
    plain = Head(layer.weight, layer.bias)
    yield plain
    small, *_, large = seen
    products, logits = plain.logits(small[0]).double(), small[1].double()
    told = _numbers(model.config)
    multiplier = _nearest(float((products * logits).sum() / products.square().sum()), told)
    yield Head(layer.weight, layer.bias, multiplier)
    cap = _nearest(float(large[1].abs().max()), told)
    yield Head(layer.weight, layer.bias, multiplier, cap)


def _numbers(config: Any) -> list[float]:
    """All numbers of a config, and what each divides by: a measured one that is near to one of them is that."""
    values = [value for value in vars(config.get_text_config()).values() if isinstance(value, int | float) and value]
    return [1.0, *map(float, values), *(1.0 / value for value in values)]


def _nearest(measured: float, told: list[float]) -> float:
    nearest = min(told, key=lambda value: abs(value - measured))
    return nearest if abs(nearest - measured) <= 0.005 * abs(measured) else measured


def _gives(head: Head, seen: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return all(_same(head.logits(hidden), logits) for hidden, logits in seen)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    width = 0.01 * float(other.nan_to_num(posinf=0.0, neginf=0.0).abs().max())  # that a cap or a scale exceeds by far
    return bool(torch.allclose(one, other, rtol=0.01, atol=width, equal_nan=True))
