"""Scheduling: the rows that decode together, and the recovery from failures."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from thinktune.errors import GenerationError
from thinktune.inference.engines.hf.batch import Batch, Prefilled
from thinktune.inference.engines.hf.decoder import Decoder, Row
from thinktune.inference.engines.hf.recompute import RecomputedBatch

OUT_OF_MEMORY_HINT = "lower infer.batch_tokens, max_tokens or the length of the prompts, or use a smaller model"

_FEW = 128
"""Rows up to which reading the weights is most of a step."""
_MOST_PREFILLED = 1024
"""Rows whose first tokens are drawn together; their logits lie in memory at a time."""

log = logging.getLogger(__name__)


@dataclass
class Limits:
    """The limits of a batch.

    Attributes:
        tokens: rows times columns of the cache.
        rows: of the batch.
        prefill: prompt tokens read in one go.
        state: columns that would take as much memory as a row's state.
    """

    tokens: int
    rows: int
    prefill: int
    state: int = 0


class Scheduler:
    """Moves rows from `waiting` through one batch to their end, a token at a time."""

    def __init__(self, decoder: Decoder, limits: Limits, *, eager: bool = False) -> None:
        """
        Args:
            eager: let waiting rows in at once, as people who watch expect; otherwise when it costs least.
        """
        self._eager = eager
        self.waiting: deque[Row] = deque()
        self._decoder = decoder
        self._limits = limits
        self._batch = self._empty_batch()
        self._entering: list[Row] = []
        self._cap = limits.rows
        self.starved: Row | None = None  # the last row that did not fit into memory by itself

    def _empty_batch(self) -> Batch | RecomputedBatch:
        layout = self._decoder.layout
        return Batch(self._decoder, layout) if layout else RecomputedBatch(self._decoder)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self._batch.rows

    def advance(self) -> list[Row]:
        """Change the batch if that pays, decode one token, and return the rows that ended, in error or well.

        Raises:
            GenerationError: the device failed for good.
        """
        before = self._batch.live
        self._entering = []
        try:
            with torch.inference_mode():
                pays = self._batch.full or len(before) <= self._share_that_stays() * len(self._batch.rows)
                if pays or (self._eager and self.waiting):
                    self._change()
                if self._batch.rows:
                    self._batch.step()
        except Exception as error:  # noqa: BLE001 - a model may raise anything, and must not take every row with it
            self._retreat(error, [*before, *self._entering])
        return [row for row in [*before, *self._entering] if row.reason is not None]

    def _share_that_stays(self) -> float:
        """Return the share of rows at which to change the batch before its columns are used up.

        Changing copies the cache, and records a CUDA graph anew: where no rows wait to come in, a graph's step takes
        about as long with those that are done as without, all the more so of few rows.
        """
        if self._decoder.recorder is None or self.waiting:
            return 7 / 8
        return 0.5 if len(self._batch.rows) > _FEW else 0.25

    def _change(self) -> None:
        """Let rows in while the limits last, or send the newest ones back if the batch has outgrown them."""
        self._batch.settle()
        live = self._batch.live
        leaving = self._overflow(live)
        if not leaving:
            self._entering = self._next_rows(live)
        groups = [part for group in self._prefill_groups(self._entering) for part in self._prefill(group)]
        self._batch.change(groups, leaving)
        self.waiting.extendleft(leaving)
        self._cap = min(self._cap * 2, self._limits.rows)

    def _overflow(self, live: Sequence[Row]) -> list[Row]:
        """Choose the rows to send back, the shortest completions, so that the rest may grow by `spare` columns."""
        width = max((row.length for row in live), default=0) + self._decoder.spare + self._limits.state
        fitting = max(1, self._limits.tokens // width)
        return sorted(live, key=lambda row: len(row.ids))[: max(0, len(live) - fitting)]

    def _next_rows(self, live: Sequence[Row]) -> list[Row]:
        """Take as many waiting rows as fit beside the live ones; always one if none is live."""
        width = max((row.length for row in live), default=0)
        beside = self._decoder.spare + self._limits.state
        chosen: list[Row] = []
        while self.waiting:
            count = len(live) + len(chosen)
            width = max(width, self.waiting[0].length)
            if count and (count >= self._cap or (count + 1) * (width + beside) > self._limits.tokens):
                break
            chosen.append(self.waiting.popleft())
        return chosen

    def _prefill_groups(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Divide rows into those read together: of one length, where states would read the padding.

        With CUDA graphs, the kernels of a prompt are launched one by one, which takes longer than they do: a prompt
        that several rows share is then counted once, as it is read.
        """
        group: list[Row] = []
        read: set[int] = set()  # a number for each prompt
        width = 0
        alike, once = self._decoder.reads_padding, self._decoder.recorder is not None
        for row in sorted(rows, key=lambda row: -row.length) if alike else rows:
            prompt = id(row.request) if once and not row.ids else id(row)
            width = max(width, row.length)
            too_many = (len(read) + (prompt not in read)) * width > self._limits.prefill or len(
                group
            ) >= _MOST_PREFILLED
            if group and (too_many or (alike and row.length < width)):
                yield group
                group, read, width = [], set(), row.length
            group.append(row)
            read.add(prompt)
        if group:
            yield group

    def _prefill(self, rows: list[Row]) -> list[Prefilled]:
        """Prefill rows together; if that fails, halve them until the guilty one is found."""
        try:
            return [self._batch.prefill(rows)]
        except Exception as error:  # whatever the model raises, only the row that caused it is to pay
            if _is_out_of_memory(error) or _is_device_failure(error):
                raise
            if len(rows) == 1:
                rows[0].fail(f"the model failed on this prompt: {_describe(error)}")
                return []
        middle = len(rows) // 2
        return self._prefill(rows[:middle]) + self._prefill(rows[middle:])

    def _retreat(self, error: Exception, involved: Sequence[Row]) -> None:
        """Put every unfinished row back in front of the queue, to go on in smaller batches. A lone row fails."""
        if _is_device_failure(error):
            raise GenerationError(
                f"the device failed: {_describe(error)}",
                hint="finished completions are kept; give the same command again to resume",
            ) from error
        # Those that were to leave for want of room may be in the queue already, or in no batch any more.
        rows = [row for row in involved if row.reason is None and row not in self.waiting]
        self._batch = self._empty_batch()
        starved = _is_out_of_memory(error)
        if starved and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(rows) == 1:
            self.starved = rows[0] if starved else self.starved
            rows[0].fail(
                f"out of memory with this item alone ({rows[0].length} tokens); {OUT_OF_MEMORY_HINT}"
                if starved
                else f"the model failed on this item: {_describe(error)}"
            )
            return
        if starved:
            width = max(row.length for row in rows) + self._limits.state
            self._limits.tokens = min(self._limits.tokens, len(rows) * width) // 2
            log.warning("out of memory: going on with at most %d tokens in a batch", self._limits.tokens)
        else:
            self._cap = max(1, len(rows) // 2)
        self.waiting.extendleft(reversed(rows))


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _is_device_failure(error: Exception) -> bool:
    """Return True for CUDA errors after which nothing runs any more in this process."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
