"""One model's forward pass, and a completion in the making that it writes a token to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from thinktune.config import Sampling
from thinktune.inference.engines.base import FinishReason, Request
from thinktune.inference.engines.detokenizer import Detokenizer
from thinktune.inference.engines.hf.cache_layers import Layout
from thinktune.inference.engines.hf.cuda_graph import Recorder
from thinktune.inference.engines.hf.sampler import NgramBlocker, Sampler, row_noise

SPARE = 64  # columns of cache written in place between two copies


@dataclass(eq=False)
class Row:
    """One completion in the making. It can leave a batch at any time and go on in another from its ids."""

    request: Request
    index: int
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason | None = None
    error: str | None = None
    noise: random.Random = field(default_factory=random.Random)
    ngrams: NgramBlocker | None = None

    def enter(self) -> None:
        """Make ready to join a batch: all that sampling needs follows from the ids written so far."""
        self.noise = row_noise(self.sampling.seed, self.request.id, self.index)
        for _ in self.ids:
            self.noise.random()
        if size := self.sampling.no_repeat_ngram_size:
            self.ngrams = NgramBlocker(size, self.all_ids())

    @property
    def sampling(self) -> Sampling:
        return self.request.sampling

    @property
    def length(self) -> int:
        return len(self.request.prompt_ids) + len(self.ids)

    def all_ids(self) -> list[int]:
        return [*self.request.prompt_ids, *self.ids]

    def fail(self, error: str) -> None:
        self.reason, self.error = "error", error


@dataclass(frozen=True)
class Decoder:
    """State shared by every batch of one model."""

    model: Any
    detokenizer: Detokenizer
    stop_ids: frozenset[int]
    vocabulary: int
    context_length: int
    layout: Layout | None  # of its cache; None: it is not understood, and `reread` takes its place
    device: torch.device
    reads_padding: bool = False  # the states in its cache do, so that prompts read together are of one length
    recorder: Recorder | None = None
    spare: int = SPARE

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Compute logits `(rows, vocabulary)` after the last of ids `(rows, n)`; mask is True at attended columns,
        `(rows, columns)` or `(rows, 1, n, columns)`."""
        logits: torch.Tensor = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def reread(self, ids: torch.Tensor) -> torch.Tensor:
        """Compute logits `(rows, vocabulary)` after the last of ids `(rows, n)`, without a cache."""
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits[:, -1]

    def accept(self, rows: Sequence[Row], logits: torch.Tensor, sampler: Sampler) -> torch.Tensor:
        """Draw a token for each row, and note it and the rows that it ends; return the ids `(rows,)`."""
        picked, sound = sampler.pick(logits)
        if any(row.request.logprobs for row in rows):
            for row, logprob in zip(rows, sampler.logprobs(logits, picked).tolist(), strict=True):
                if row.reason is None:
                    row.logprobs.append(logprob)
        for row, token, usable in zip(rows, picked.tolist(), sound.tolist(), strict=True):
            if row.reason is None:
                self._append(row, token, usable)
        return picked

    def accept_several(self, rows: Sequence[Row], drawn: torch.Tensor) -> None:
        """Note several tokens of each row, up to the one that ends it: `(tokens, 3, rows)` of `Sampler.draw`."""
        tokens, logprobs, usable = drawn.permute(1, 2, 0).cpu()
        ends = torch.isin(tokens, self._ends) | (usable == 0)
        ends[:, -1] = True
        first = ends.int().argmax(-1).tolist()
        drawn_for = tokens.long().tolist(), logprobs.tolist(), usable.bool().tolist()
        for row, end, *own in zip(rows, first, *drawn_for, strict=True):
            if row.reason is None:
                self._extend(row, end, *own)

    def _extend(self, row: Row, end: int, ids: list[int], logprobs: list[float], usable: list[bool]) -> None:
        """Note the tokens drawn for a row up to that at index `end`, which ends it unless one before does."""
        # Those before cannot, unless they complete a stop string.
        plain = 0 if row.sampling.stop else min(end, row.limit - len(row.ids) - 1)
        row.ids += ids[:plain]
        row.logprobs += logprobs[:plain]
        for at in range(plain, end + 1):
            row.logprobs.append(logprobs[at])
            self._append(row, ids[at], usable[at])
            if row.reason is not None:
                return

    @cached_property
    def _ends(self) -> torch.Tensor:
        return torch.tensor(sorted(self.stop_ids), dtype=torch.float64)

    def _append(self, row: Row, token: int, usable: bool) -> None:
        if not usable:
            row.fail("the model's output is not a number: its weights or this prompt make it overflow")
            return
        row.ids.append(token)
        if row.ngrams is not None:
            row.ngrams.add(token)
        if token in self.stop_ids or self._completes_stop(row, token):
            row.reason = "stop"
        elif len(row.ids) >= row.limit:
            row.reason = "length"

    def _completes_stop(self, row: Row, token: int) -> bool:
        stops = row.sampling.stop
        closers = self.detokenizer.closers(stops)
        return (closers is None or token in closers) and self.detokenizer.has_stop(row.ids, stops)
