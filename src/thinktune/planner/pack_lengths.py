"""The lengths of the packs that a training takes: memory and time depend on these and on the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from thinktune.config import Config
from thinktune.data.report import LENGTH_FAULTS, SourceReport
from thinktune.data.tokens import Tokens
from thinktune.errors import ThinktuneError
from thinktune.notices import muted
from thinktune.planner.memory_model import Batch

logger = logging.getLogger(__name__)

_ROLLOUT_PACK = 4096
"""Fewest tokens of a pack of completions."""
_DRAWN = 1000
"""Examples in the sample of lengths."""
_QUICK_BYTES = 256 * 2**20
"""Largest local data file that is read, and of which a draw is tokenised, within seconds."""


@dataclass(frozen=True)
class PackLengths:
    """The packs of an epoch, each measured as a batch of its own, or a sample that stands for them.

    Attributes:
        count: packs of an epoch; None: unknown.
        source: origin of the lengths, in words.
        documents: mean number of documents in a pack; None: unknown.
    """

    packs: tuple[Batch, ...]
    count: int | None
    source: str
    documents: float | None = None

    def mean(self, count: float) -> Batch:
        """Return the average batch of so many packs."""
        return Batch.joined(self.packs, count / len(self.packs))

    def longest(self, count: int) -> Batch:
        """Return the batch of the longest packs: no batch can be longer."""
        by_length = sorted(self.packs, key=lambda pack: -pack.tokens)
        return Batch.joined(by_length[:count] + by_length[:1] * (count - len(by_length)))


def measure_packs(
    examples: Sequence[Tokens], packs: Sequence[Sequence[int]], *, of: int | None = None, source: str = "the data"
) -> PackLengths:
    """Measure packs (indexes of examples); `of`: the number of examples that they stand for (None: their own)."""
    count = len(packs) if of is None else math.ceil(len(packs) * of / len(examples))
    measured = tuple(_measure([examples[index] for index in pack]) for pack in packs)
    return PackLengths(measured, count, source, documents=sum(map(len, packs)) / len(packs))


def _measure(pack: Sequence[Tokens]) -> Batch:
    lengths = [len(example) for example in pack]
    return Batch(sum(lengths), sum(example.trained for example in pack), sum(length**2 for length in lengths))


def read_packs(config: Config) -> PackLengths:
    """Read and pack the data if it is small and on this machine; else return the longest packs that it may have."""
    if config.method == "grpo":
        return rollout_packs(config)[0]
    if _is_quick(config):
        try:
            return _read_packs(config)
        except ThinktuneError as error:  # the data will not do, or the tokenizer; the memory can be told nevertheless
            logger.info(f"lengths of the data are not known: {error.message}")
    return longest_packs(config)


def longest_packs(config: Config) -> PackLengths:
    """Return the longest pack that the config allows, which stands for data that is not read."""
    longest = config.pack_length if config.train.packing else config.data.max_length * config.documents
    document = min(longest, config.data.max_length)
    documents = longest // document
    count = config.data.sample
    if count is not None:
        count = math.ceil(round(count * config.documents * (1 - config.data.eval_fraction)) / documents)
    pack = Batch(documents * document, documents * document, documents * document**2)
    return PackLengths((pack,), count, f"not read: every pack taken to have {longest:,} tokens")


def _is_made(config: Config) -> bool:
    """Whether all rows are made as they are asked for, so that there are as many as are wanted."""
    return all(each.source.startswith("builtin:") for each in config.data.sources)


def rollout_packs(config: Config, longest_prompt: int | None = None) -> tuple[PackLengths, int]:
    """Return the packs of a reinforcement, were every completion as long as it may be, and how many a step has.

    A pack has a number of completions such that a step has a power of two of packs: the plan chooses how many of them
    go through the model at once.

    Args:
        longest_prompt: tokens; None: all that `data.max_length` leaves.
    """
    rl = config.rl
    document = (longest_prompt or config.data.max_length - rl.max_completion_length) + rl.max_completion_length
    documents = rl.prompts * rl.num_generations
    count = 1
    while documents / (2 * count) >= max(1, _ROLLOUT_PACK / document):
        count *= 2
    each = math.ceil(documents / count)
    pack = Batch(each * document, each * rl.max_completion_length, each * document**2)
    steps = math.ceil((config.data.sample or rl.prompts) / rl.prompts) * rl.num_iterations
    source = f"completions of up to {rl.max_completion_length:,} tokens; the time to draw them comes on top"
    return PackLengths((pack,), steps * count, source), count


def in_rollout_packs(config: Config, count: int) -> Config:
    """Return a reinforcement's config with so many packs a step, as a plan reads them."""
    train = config.train.model_copy(update={"batch_size": 1, "accumulation": count})
    return config.model_copy(update={"train": train})


def _is_quick(config: Config) -> bool:
    sources = [each.source for each in config.data.sources]
    return all(source.startswith("builtin:") or 0 < _size(Path(source)) < _QUICK_BYTES for source in sources)


def _size(path: Path) -> int:
    files = islice(path.rglob("*"), 10_000) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _read_packs(config: Config) -> PackLengths:
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
        usable = wanted if _is_made(config) else min(wanted, usable)
    count = round(usable * (1 - config.data.eval_fraction))
    read = len(prepared.train) // config.documents
    source = f"{read:,} examples read" + (f" for {count:,}" if count > read else "")
    return measure_packs(prepared.train, prepared.packs, of=count * config.documents, source=source)


def _share_that_fits(sources: Sequence[SourceReport]) -> float:
    """Return the share of the tokenised examples that is not dropped for its length."""
    kept = sum(source.kept for source in sources)
    dropped = sum(len(source.dropped.get(reason, ())) for source in sources for reason in LENGTH_FAULTS)
    return kept / (kept + dropped)
