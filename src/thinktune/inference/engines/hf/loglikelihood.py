"""Log-likelihoods of given texts under a model in memory: batches of prompts with their continuations, one forward
each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from thinktune.inference.engines.base import Likelihood, Pair

_LOGITS = 2**26  # scores held at once, in float32
_Inputs = tuple[int, ...]


def likelihoods(
    model: Any, pairs: Sequence[Pair], *, device: torch.device, tokens: int, vocabulary: int
) -> Iterator[Likelihood]:
    """See `Engine.likelihoods`. Pairs that differ in the last token only, as the letters of a choice do, share a row.

    Args:
        tokens: of a batch, padding included.
    """
    sharing: dict[_Inputs, list[int]] = {}
    for at, (prompt, continuation) in enumerate(pairs):
        sharing.setdefault((*prompt, *continuation[:-1]), []).append(at)
    found: dict[int, Likelihood] = {}
    given = 0
    for batch in _batches(sorted(sharing, key=len, reverse=True), pairs, sharing, tokens, vocabulary):
        found |= _score(model, batch, pairs, sharing, device)
        while given in found:
            yield found.pop(given)
            given += 1


def _places(pair: Pair) -> range:
    """Locate the scores of a pair's continuation in its row."""
    return range(len(pair[0]) - 1, len(pair[0]) + len(pair[1]) - 1)


def _batches(
    rows: Sequence[_Inputs], pairs: Sequence[Pair], sharing: dict[_Inputs, list[int]], tokens: int, vocabulary: int
) -> Iterator[list[_Inputs]]:
    batch: list[_Inputs] = []
    places: set[int] = set()
    for row in rows:  # the longest first, so that the first row of a batch is its width
        wider = places.union(*(_places(pairs[at]) for at in sharing[row]))
        count = len(batch) + 1
        if batch and (count * len(batch[0]) > tokens or count * len(wider) * vocabulary > _LOGITS):
            yield batch
            batch, wider = [], set().union(*(_places(pairs[at]) for at in sharing[row]))
        batch.append(row)
        places = wider
    if batch:
        yield batch


def _score(
    model: Any, batch: Sequence[_Inputs], pairs: Sequence[Pair], sharing: dict[_Inputs, list[int]], device: torch.device
) -> dict[int, Likelihood]:
    # Padding stands on the right, where causal attention lets nothing see it: no mask is needed.
    ids = torch.zeros(len(batch), len(batch[0]), dtype=torch.long)
    for row, inputs in enumerate(batch):
        ids[row, : len(inputs)] = torch.tensor(inputs)
    places = sorted({place for inputs in batch for at in sharing[inputs] for place in _places(pairs[at])})
    column = {place: number for number, place in enumerate(places)}
    logits = model(input_ids=ids.to(device), logits_to_keep=torch.tensor(places, device=device)).logits
    scores = logits.float().log_softmax(-1)
    best = scores.argmax(-1).cpu()
    found = {}
    for row, inputs in enumerate(batch):
        for at in sharing[inputs]:
            wanted = torch.tensor(pairs[at][1])
            columns = torch.tensor([column[place] for place in _places(pairs[at])])
            total = scores[row, columns.to(device), wanted.to(device)].sum()
            found[at] = Likelihood(float(total), bool((best[row, columns] == wanted).all()))
    return found
