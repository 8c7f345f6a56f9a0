"""The slow way to decode: each text is read again from its beginning for every token, by itself and without a cache.

It is right for every causal model, whatever that keeps between two tokens, and takes the place of `Batch` for those
whose cache is not understood. An answer of n tokens takes n forward passes over the whole text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from thinktune.inference.engines.hf.batch import Prefilled
from thinktune.inference.engines.hf.decoder import Decoder, Row
from thinktune.inference.engines.hf.sampler import Sampler


class RecomputedBatch:
    """Rows that decode in turn. All methods run under `torch.inference_mode` of the caller; see `Batch` for them."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.rows: list[Row] = []

    @property
    def live(self) -> list[Row]:
        return [row for row in self.rows if row.reason is None]

    @property
    def full(self) -> bool:
        return len(self.live) < len(self.rows) or not self.rows

    def prefill(self, rows: list[Row]) -> Prefilled:
        for row in rows:
            row.enter()
            self._write(row)
        return Prefilled(rows, [], None, torch.empty(0))

    def step(self) -> None:
        for row in self.live:
            self._write(row)

    def settle(self) -> None:
        """Do nothing: no token is on its way."""

    def change(self, groups: Sequence[Prefilled], leaving: Collection[Row] = ()) -> None:
        joining = [row for group in groups for row in group.rows]
        self.rows = [row for row in [*self.rows, *joining] if row.reason is None and row not in leaving]

    def _write(self, row: Row) -> None:
        decoder = self._decoder
        logits = decoder.reread(torch.tensor([row.all_ids()], device=decoder.device))
        decoder.accept([row], logits, Sampler([row], decoder.vocabulary, decoder.device))
