"""Completions that share their prompt in the update: it goes through the model once, and each attends to it.

With 16 completions of 80 tokens to a prompt of 50, a third of all tokens are repetitions of prompts otherwise. Whether
a model takes it is tried before the first step, on loss and gradient, and nothing is concluded from its name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch

from thinktune.data import Tokens
from thinktune.models.untouched import computes_in, inner_model
from thinktune.training.collator import PackedCollator
from thinktune.training.fidelity import exact
from thinktune.training.gap import GRADIENT_BOUNDS, LOSS_BOUNDS, ROUNDED_GRADIENT
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.ranks import agree

logger = logging.getLogger(__name__)

_ROUNDED_LOSS = 0.03
"""Largest distance in 16 bits of the losses of all tokens computed in both ways, as a part of them."""


def shared_inputs(completions: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> dict[str, Any]:
    """Lay prompts and completions end to end, every prompt once, in front of the first of its completions.

    Args:
        completions: of each the number of its group, the tokens of its prompt and its own; a group's follow each other.

    Returns:
        The entries of `PackedCollator` that a pass takes, where a completion is a document whose positions count on
        from its prompt; and which tokens are a document's keys, those of its prompt and its own: int64 key_tokens,
        int32 cu_seq_lens_k, max_length_k, and key_lengths, as a list. A completion's last token predicts nothing, and
        is left out.
    """
    ids: list[int] = []
    places: list[int] = []
    keys: list[range] = []
    lengths: list[int] = []
    key_lengths: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    group, prompt = None, range(0)

    def lay(tokens: Sequence[int], behind: range) -> range:
        own = range(len(ids), len(ids) + len(tokens))
        ids.extend(tokens)
        places.extend(range(len(behind), len(behind) + len(tokens)))
        keys.extend([behind, own])
        lengths.append(len(own))
        key_lengths.append(len(behind) + len(own))
        return own

    for number, question, completion in completions:
        if number != group:
            group, prompt = number, lay(question, range(0))
        fed = lay(completion[:-1], prompt) if len(completion) > 1 else range(0)
        positions += [prompt[-1], *fed]
        targets += completion
    return {
        "input_ids": torch.tensor(ids)[None],
        "position_ids": torch.tensor(places)[None],
        "positions": torch.tensor(positions),
        "targets": torch.tensor(targets),
        "cu_seq_lens_q": _ends(lengths),
        "max_length_q": max(lengths),
        "document_lengths": lengths,
        "key_tokens": torch.cat([torch.arange(each.start, each.stop) for each in keys]),
        "cu_seq_lens_k": _ends(key_lengths),
        "max_length_k": max(key_lengths),
        "key_lengths": key_lengths,
    }


def _ends(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def may_share_prompts(model: ModelWithLoss, problems: Sequence[Tokens]) -> bool:
    """Tell whether completions that share their prompt get the losses and the gradient that they get by themselves.

    Args:
        problems: prompts, each with a reply.
    """
    dtype = computes_in(model.model, inner_model(model.model).dtype)
    by_length = sorted(problems, key=lambda tokens: tokens.context)
    same = _is_the_same(model, [by_length[0], by_length[-1]], dtype)
    return bool(agree(same, min))


def _is_the_same(model: ModelWithLoss, problems: Sequence[Tokens], dtype: torch.dtype) -> bool:
    completions = []
    for number, tokens in enumerate(problems):
        prompt, reply = tokens.ids[: tokens.context], tokens.ids[tokens.context :]
        completions += [(number, prompt, reply), (number, prompt, reply[::-1])]
    documents = [Tokens(prompt + ids, len(prompt), problems[0].example) for _, prompt, ids in completions]
    try:
        with exact(model.model):
            apart = _losses_and_gradient(model, PackedCollator(documents)([{"documents": [0, 1, 2, 3]}]))
            shared = _losses_and_gradient(model, shared_inputs(completions))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - a model may raise anything at what it does not know
        logger.debug("prompts are not shared: %s", error)
        return False
    loss, gradient = (float((one - two).norm() / two.norm()) for one, two in zip(shared, apart, strict=True))
    bounds = LOSS_BOUNDS.get(dtype, _ROUNDED_LOSS), GRADIENT_BOUNDS.get(dtype, ROUNDED_GRADIENT)
    return math.isfinite(loss) and loss <= bounds[0] and gradient <= bounds[1]


def _losses_and_gradient(model: ModelWithLoss, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    device = model.trained[0].device
    inputs = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
    losses = model(**inputs, reduction="none")
    weights = torch.arange(len(losses), device=device).cos()  # as a policy's, of both signs
    gradient = torch.autograd.grad(losses @ weights, model.trained, allow_unused=True)
    return losses.detach(), torch.cat([part.float().flatten() for part in gradient if part is not None])
