"""The lengths of the rows that a training takes: what memory and time depend on, beside the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from thinktune.config import Config
from thinktune.data.packing import pack
from thinktune.data.report import LENGTH_FAULTS, SourceReport
from thinktune.data.tokens import Tokens
from thinktune.errors import ThinktuneError
from thinktune.notices import muted
from thinktune.planner.cost_model import Batch

logger = logging.getLogger(__name__)

_DRAWN = 1000
"""Examples whose lengths stand for all of them."""
_QUICK_BYTES = 256 * 2**20
"""Of a local data file: what is read, and tokenised as far as the draw goes, within seconds."""


@dataclass(frozen=True)
class Rows:
    """The packs of an epoch, each the (tokens, trained tokens) of its documents, or a sample that stands for them.

    Attributes:
        count: packs of an epoch; None where nobody knows.
        source: where the lengths come from, in words.
    """

    packs: tuple[tuple[tuple[int, int], ...], ...]
    count: int | None
    source: str

    def mean(self, rows: int) -> Batch:
        """A batch of so many packs, as it is on average."""
        share = rows / len(self.packs)
        batch = _batch(self.packs)
        return Batch(batch.tokens * share, batch.trained * share, batch.attended * share)

    def longest(self, rows: int) -> Batch:
        """The longest packs in one batch: no batch can be longer."""
        by_length = sorted(self.packs, key=lambda documents: -sum(tokens for tokens, _ in documents))
        return _batch(by_length[:rows] + by_length[:1] * (rows - len(by_length)))


def packs_of(lengths: Sequence[int], config: Config) -> list[list[int]]:
    """The indexes of the examples that each row of training holds."""
    if not config.train.packing:
        return [[index] for index in range(len(lengths))]
    return pack(lengths, config.train.pack_length or config.data.max_length)


def rows_of(
    examples: Sequence[Tokens], packs: Sequence[Sequence[int]], *, of: int | None = None, source: str = "the data"
) -> Rows:
    """Return the rows of these packs of examples; `of`: how many examples they stand for (None: themselves)."""
    sizes = [(len(example), example.trained) for example in examples]
    count = len(packs) if of is None else math.ceil(len(packs) * of / len(examples))
    return Rows(tuple(tuple(sizes[index] for index in documents) for documents in packs), count, source)


def read_rows(config: Config) -> Rows:
    """The data's rows where they are on this machine and small, else rows of the longest that the config allows."""
    if _is_quick(config):
        try:
            return _read_rows(config)
        except ThinktuneError as error:  # the data will not do, or the tokenizer; the memory can be told nevertheless
            logger.info(f"lengths of the data are not known: {error.message}")
    return longest_rows(config)


def longest_rows(config: Config) -> Rows:
    """Return packs of the longest that the config allows, which stand for data that is not read."""
    longest = (config.train.pack_length if config.train.packing else None) or config.data.max_length
    document = min(longest, config.data.max_length)
    documents = ((document, document),) * (longest // document)
    count = config.data.sample
    if count is not None:
        count = math.ceil(round(count * (1 - config.data.eval_fraction)) / len(documents))
    return Rows((documents,), count, f"not read: every row taken to have {longest:,} tokens")


def _is_quick(config: Config) -> bool:
    sources = [config.data.source] if isinstance(config.data.source, str) else [s.source for s in config.data.source]
    return all(source.startswith("builtin:") or 0 < _size(Path(source)) < _QUICK_BYTES for source in sources)


def _size(path: Path) -> int:
    files = islice(path.rglob("*"), 10_000) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _read_rows(config: Config) -> Rows:
    from thinktune.data import prepare
    from thinktune.models import load_tokenizer, make_chat

    chat = make_chat(load_tokenizer(config.model, load=config.load), config.data.chat_settings)
    wanted = config.data.sample
    drawn = _DRAWN if wanted is None else min(wanted, _DRAWN)
    data = config.data.model_copy(update={"sample": drawn, "eval_fraction": 0.0})
    with muted():
        prepared = prepare(config.model_copy(update={"data": data}), chat)
    sources = prepared.report.sources
    usable = math.floor(sum(source.usable for source in sources) * _share_that_fits(sources))
    if wanted is not None:
        usable = wanted if config.data.source == "builtin:arithmetic" else min(wanted, usable)  # made as many as asked
    count = round(usable * (1 - config.data.eval_fraction))
    source = f"{len(prepared.train):,} examples read" + (f" for {count:,}" if count > len(prepared.train) else "")
    packs = packs_of([len(example) for example in prepared.train], config)
    return rows_of(prepared.train, packs, of=count, source=source)


def _share_that_fits(sources: Sequence[SourceReport]) -> float:
    """Of the examples that were tokenised, those that are not dropped for their length."""
    kept = sum(source.kept for source in sources)
    dropped = sum(len(source.dropped.get(reason, ())) for source in sources for reason in LENGTH_FAULTS)
    return kept / (kept + dropped)


def _batch(packs: Sequence[Sequence[tuple[int, int]]]) -> Batch:
    documents = [document for documents in packs for document in documents]
    return Batch(
        sum(tokens for tokens, _ in documents),
        sum(trained for _, trained in documents),
        sum(tokens**2 for tokens, _ in documents),
    )
