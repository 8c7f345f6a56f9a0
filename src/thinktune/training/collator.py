"""Batches of packed documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from thinktune.data.tokens import IGNORED, Tokens


class PackedCollator:
    """Lays documents end to end, with nothing between them."""

    def __init__(self, examples: Sequence[Tokens]) -> None:
        self._examples = examples
        self._before: list[int] = []  # lengths in the batch before

    def __call__(self, packs: list[dict[str, list[int]]]) -> dict[str, Any]:
        """Join packs into one batch.

        Args:
            packs: `{"documents": [index of an example, …]}`.

        Returns:
            input_ids, position_ids and labels, int64 [1, tokens], positions counting from 0 in each document;
            positions of the loss and the targets they predict, int64 [trained tokens]; the entries for attention over
            packed documents: int32 cu_seq_lens_q, max_length_q, document_lengths, repeats; and token_keys, int32
            [tokens], which tell each token of a step from the others, whatever it is packed with.
        """
        indexes = [index for pack in packs for index in pack["documents"]]
        documents = [self._examples[index] for index in indexes]
        lengths = [len(document) for document in documents]
        ids = torch.cat([torch.frombuffer(document.ids, dtype=torch.int32) for document in documents]).long()
        contexts = torch.tensor([document.context for document in documents]).repeat_interleave(torch.tensor(lengths))
        places = torch.cat([torch.arange(length) for length in lengths])
        labels = ids.masked_fill(places < contexts, IGNORED)
        repeats = lengths == self._before and len(set(lengths)) == 1
        self._before = lengths
        # A document's first label is never trained, so that shifting the whole row mixes no two documents.
        (positions,) = (labels[1:] != IGNORED).nonzero(as_tuple=True)
        return {
            "input_ids": ids[None],
            "position_ids": places[None],
            "labels": labels[None],
            "positions": positions,
            "targets": labels[positions + 1],
            "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
            "max_length_q": max(lengths),
            "document_lengths": lengths,
            "repeats": repeats,
            "token_keys": _token_keys(torch.tensor(indexes).repeat_interleave(torch.tensor(lengths)), places),
        }


def _token_keys(examples: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    # Odd factors spread the two over 32 bits; the kernels mix these.
    return (examples * 0x9E3779B1 + places * 0x85EBCA6B).to(torch.int32)
