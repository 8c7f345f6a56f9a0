"""The rows that decode together, and the three things that happen to them: prefill, step, leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thinktune.inference.engines.hf.cache_layers import Layout, keeps_state, new_cache
from thinktune.inference.engines.hf.decoder import Decoder, Row
from thinktune.inference.engines.hf.graphed_step import RecordedStep
from thinktune.inference.engines.hf.kv_cache import Piece, columns_of, merge, spread
from thinktune.inference.engines.hf.sampler import Sampler

_WORTH_SHARING = 16  # tokens
_BURST = 16  # tokens
_MANY = 128  # rows, whose tokens take so long to note that a GPU is given the next burst before


class Batch:
    """Rows over one cache. All methods run under `torch.inference_mode` of the caller."""

    def __init__(self, decoder: Decoder, layout: Layout) -> None:
        self._decoder = decoder
        self._layout = layout
        self.rows: list[Row] = []
        self.width = 0  # columns filled; the next token of every row goes into this one
        self._cache: Any = None
        self._starts = torch.empty(0, dtype=torch.long)  # the column of each row's first token
        self._last = torch.empty(0, dtype=torch.long)  # the token each row feeds next
        self._sampler: Sampler
        self._recorded: RecordedStep | None = None
        self._in_bursts = False
        self._begun: deque[Burst] = deque()  # their tokens are not read yet

    @property
    def live(self) -> list[Row]:
        return [row for row in self.rows if row.reason is None]

    @property
    def full(self) -> bool:
        return self._cache is None or self.width >= columns_of(self._cache)

    def prefill(self, rows: list[Row]) -> Prefilled:
        """Read the prompts of `rows` (and their completions so far) and draw one token each.

        Samples share their prompt, and the common beginning of all prompts, such as a system text, is read once: but
        where the cache keeps states.
        """
        decoder = self._decoder
        lines: dict[tuple[int, ...] | int, int] = {}
        # Rows that wrote something differ, even when they belong to one request.
        line_of = [lines.setdefault(id(row) if row.ids else id(row.request), len(lines)) for row in rows]
        prompts = list({line: row.all_ids() for line, row in zip(line_of, rows, strict=True)}.values())
        width = max(map(len, prompts))
        shared = 0 if keeps_state(self._layout) else _shared_tokens(prompts)
        # All rows feed equally many tokens, so that the cached part of shorter ones ends in the same column.
        fed = width - shared
        device = decoder.device
        ids = torch.tensor([[0] * (fed - len(prompt)) + prompt[-fed:] for prompt in prompts], device=device)
        starts = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
        columns = torch.arange(width, device=device)
        cache = new_cache(self._layout)
        if shared:
            beginning = torch.tensor([prompts[0][:shared]], device=device)
            decoder.forward(beginning, torch.ones_like(beginning, dtype=torch.bool), columns[None, :shared], cache)
            cache = spread(cache, starts, width)
        for row in rows:
            row.enter()
        starts = starts[:, None]
        logits = decoder.forward(ids, columns >= starts, (columns[shared:] - starts).clamp(min=0), cache)
        sampler = Sampler(rows, decoder.vocabulary, device)
        last = decoder.accept(rows, logits[torch.tensor(line_of, device=device)], sampler)
        return Prefilled(rows, line_of, cache, last)

    def step(self) -> None:
        """Decode one more token for every row, or several where none is looked at in between: of many rows, those of
        the last call are noted then. Finished rows ride along, unread, until `change` drops them."""
        decoder = self._decoder
        if not self._in_bursts:
            logits = self._forward()
            self._last = decoder.accept(self.rows, logits, self._sampler)
            return
        unread = sum(burst.tokens for burst in self._begun)
        left = max(row.limit - len(row.ids) for row in self.live) - unread
        count = min(_BURST, columns_of(self._cache) - self.width, left)
        if count > 0:
            self._begun.append(self._begin(count))
        # A GPU then never waits for Python, which notes tokens, and has them scored, meanwhile.
        if len(self._begun) > (count > 0 and len(self.rows) >= _MANY):
            self._note()

    def _begin(self, count: int) -> Burst:
        """Have so many tokens of every row computed, without waiting for them."""
        drawn = []
        for noise in self._sampler.noise(count):
            drawn.append(self._sampler.draw(self._forward(), noise))
            self._last = drawn[-1][0].long()
        return Burst.of(torch.stack(drawn))

    def _note(self) -> None:
        self._decoder.accept_several(self.rows, self._begun.popleft().read())

    def settle(self) -> None:
        """Note all tokens that are begun, if a row is to go on."""
        while self._begun and self.live:
            self._note()
        self._begun.clear()

    def _forward(self) -> torch.Tensor:
        """Compute the logits after the last token of every row."""
        decoder = self._decoder
        # A finished row that rides along must not run out of the model's positions.
        positions = (self.width - self._starts).clamp(max=decoder.context_length - 1)
        if self._recorded is not None:
            logits = self._recorded(self._last, positions, self.width)
        else:
            mask = torch.arange(self.width + 1, device=decoder.device) >= self._starts[:, None]
            logits = decoder.forward(self._last[:, None], mask, positions[:, None], self._cache)
        self.width += 1
        return logits

    def change(self, groups: Sequence[Prefilled], leaving: Collection[Row] = ()) -> None:
        """Drop finished and leaving rows, take in prefilled ones, and make room for `spare` more columns. All
        tokens are settled."""
        device, recorder = self._decoder.device, self._decoder.recorder
        self._recorded = None  # its memory is for the next one
        stay = [index for index, row in enumerate(self.rows) if row.reason is None and row not in leaving]
        sources = [(self._cache, self.rows, stay, stay, self._last)] if stay else []
        for group in groups:
            fresh = [index for index, row in enumerate(group.rows) if row.reason is None]
            if fresh:
                sources.append((group.cache, group.rows, fresh, [group.lines[index] for index in fresh], group.last))
        rows = [rows[index] for _, rows, chosen, _, _ in sources for index in chosen]
        if not rows:
            self.rows, self._cache, self.width = [], None, 0
            return
        # The last token of a row is not in the cache yet: `step` feeds it.
        pieces = [
            Piece(cache, torch.tensor(lines, device=device), max(members[index].length for index in chosen) - 1)
            for cache, members, chosen, lines, _ in sources
        ]
        self._last = torch.cat([last[torch.tensor(chosen, device=device)] for _, _, chosen, _, last in sources])
        self._cache = merge(pieces, self._decoder.spare)
        self.rows = rows
        self.width = max(piece.width for piece in pieces)
        self._starts = torch.tensor([self.width - row.length + 1 for row in rows], device=device)
        self._sampler = Sampler(rows, self._decoder.vocabulary, device)
        if recorder is not None and recorder.works:
            self._recorded = RecordedStep(self._decoder, recorder, self._cache, self._starts)
        scored = all(row.request.logprobs for row in rows)
        self._in_bursts = scored and self._recorded is not None and self._sampler.is_plain


@dataclass(frozen=True)
class Burst:
    """Tokens drawn on a device, on their way from it: `(tokens, 3, rows)` of `Sampler.draw`."""

    drawn: torch.Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, drawn: torch.Tensor) -> Burst:
        if not drawn.is_cuda:
            return cls(drawn, None)
        here = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True).copy_(drawn, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(here, arrived)

    @property
    def tokens(self) -> int:
        return len(self.drawn)

    def read(self) -> torch.Tensor:
        """Wait for them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.drawn


@dataclass(frozen=True)
class Prefilled:
    """Rows whose first token is drawn, and the cache that holds their prompts, a line for each different one."""

    rows: list[Row]
    lines: list[int]
    cache: Any
    last: torch.Tensor


def _shared_tokens(prompts: list[list[int]]) -> int:
    """Count the tokens that all prompts begin with, if they are worth a pass of their own; one is always left to be
    fed."""
    first, last = min(prompts), max(prompts)  # in the order of their tokens: their common beginning is that of all
    same = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    shared = min(same, max(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _WORTH_SHARING else 0
