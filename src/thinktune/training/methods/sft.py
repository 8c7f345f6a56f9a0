"""Supervised fine-tuning: every token of a reply counts the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thinktune.data.tokens import Tokens
from thinktune.training.collator import PackedCollator


class SFT:
    """Trains on packs of examples, and takes the held-out loss on one example at a time."""

    def __init__(self, train: Sequence[Tokens], packs: list[list[int]], held_out: Sequence[Tokens] = ()) -> None:
        """
        Args:
            packs: the indexes of the examples of each pack.
        """
        self._packs = packs
        self._held_out = range(len(train), len(train) + len(held_out))
        self._collator = PackedCollator([*train, *held_out])

    def train_rows(self) -> list[dict[str, list[int]]]:
        return [{"documents": pack} for pack in self._packs]

    def held_out_rows(self) -> list[dict[str, list[int]]] | None:
        return [{"documents": [index]} for index in self._held_out] or None

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self._collator(rows)

    def weights(self, batch: dict[str, Any]) -> None:
        return None
