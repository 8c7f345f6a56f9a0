"""From sources to training data: read, check, draw, tokenise, hold some out, report."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thinktune.config import Config, Data, Format, Load, Source
from thinktune.data.examples import Example, Row, RowFault
from thinktune.data.packing import packs_of
from thinktune.data.report import PROMPT_TOO_LONG, TOO_LONG, DataReport, Lengths, Packs, SourceReport
from thinktune.data.row_filter import RowFilter, of_wanted_length, the_shortest
from thinktune.data.row_formats import ROW_FORMATS, RowFormat, choose_formats, find_format, to_example, unused_columns
from thinktune.data.sources import read_rows
from thinktune.data.tokens import Renders, Tokens, fingerprint, tokenize
from thinktune.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNKNOWN_FORMAT = "unknown row format"
_ROWS_TO_SEE = 100_000  # of a source, after which, where none was usable, no more are read


@dataclass(frozen=True)
class Prepared:
    """The data of a training. No prompt of `held_out` is in `train`; `packs` are indexes into `train`; `rows` are the
    numbers of the rows of each source that are in either.

    Of `method: dpo`, a chosen reply, at an even index, is followed by its rejected one, and both are in one pack.
    """

    train: list[Tokens]
    packs: list[list[int]]
    held_out: list[Tokens]
    report: DataReport
    fingerprint: str
    rows: list[list[int]]


@dataclass(frozen=True)
class _Pool:
    """The usable examples of one source, in an order drawn by seed, and how many are wanted (None: all).

    Attributes:
        tokens: by row; of a source that is filtered by tokens, else empty.
        rows: those that were taken.
    """

    examples: list[Example]
    wanted: int | None
    report: SourceReport
    tokens: dict[int, Tokens] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)

    def take(self, items: Iterable[T]) -> Iterator[T]:
        """Yield as many as are wanted, and count them."""
        for item in islice(items, self.wanted):
            self.report.kept += 1
            yield item
        if self.wanted is not None and self.report.kept < self.wanted:
            logger.info(f"{self.report.source}: {self.wanted:,} examples asked for, {self.report.kept:,} usable")

    def note_lengths(self, taken: Sequence[Tokens]) -> None:
        self.rows.extend(sorted(item.example.row for item in taken))
        if taken:
            self.report.lengths = Lengths.of(list(map(len, taken)), sum(item.trained for item in taken))


def load_examples(
    data: Data,
    fmt: Format,
    seed: int,
    *,
    load: Load,
    split: str | None = None,
    need_thought: bool = True,
) -> tuple[list[Example], DataReport]:
    """Read, check and draw examples, without a tokenizer: `data.max_length` plays no part here.

    Args:
        seed: random seed of the draw, unless data.seed is set.
        split: overrides data.split.
        need_thought: False also keeps rows that have an answer but no thought, good enough for evaluation.

    Raises:
        DataError: a source that cannot be read, or no usable rows in any of them.
        DownloadError, MissingExtra: see `sources.read_rows`.
    """
    pools = _read_pools(data, fmt, seed, load, split=split, need_thought=need_thought)
    examples = [example for pool in pools for example in pool.take(pool.examples)]
    Random(seed).shuffle(examples)
    report = DataReport([pool.report for pool in pools], multi_turn=sum(example.multi_turn for example in examples))
    return examples, report


def prepare(config: Config, chat: Renders) -> Prepared:
    """Read, check, draw and tokenise everything a training needs.

    Examples come in an order drawn by the seed. Only as many are tokenised as `data.sample` needs.

    Raises:
        DataError: as `load_examples`; an example longer than `data.max_length` under `overlong: error`.
    """
    if config.method == "dpo":
        from thinktune.data.prepare_pairs import prepare_pairs  # which shares much with this module

        return prepare_pairs(config, chat)
    data, seed = config.data, config.data_seed
    pools = _read_pools(data, config.format, seed, config.load, chat=chat)
    tokens = _tokenize(pools, data, chat, config.format)
    Random(seed).shuffle(tokens)
    train, held_out = hold_out(tokens, data.eval_fraction, lambda item: item)
    packs = packs_of([len(item) for item in train], config)
    report = report_of(config, [pool.report for pool in pools], train, packs, held_out)
    if report.cut:
        logger.info(
            f"warning: {report.cut:,} examples were longer than {data.max_length} tokens and lost their end, with it "
            "the end of the turn; data.overlong: drop keeps whole ones only"
        )
    return Prepared(train, packs, held_out, report, report.fingerprint, [pool.rows for pool in pools])


def _read_pools(
    data: Data,
    fmt: Format,
    seed: int,
    load: Load,
    *,
    split: str | None = None,
    need_thought: bool = True,
    chat: Renders | None = None,
) -> list[_Pool]:
    """Read the usable examples of each source, filter them, and put them into an order drawn by seed.

    Args:
        chat: tokenises the examples of sources that are filtered by tokens; None: they are not.
    """
    sources = data.sources
    seed = seed if data.seed is None else data.seed
    formats = choose_formats(data.format)
    drop_known = _cleaning(data, seed, load)
    pools = []
    for source, wanted in zip(sources, shares(sources, data.sample), strict=True):
        where = split or source.split or data.split
        rows = read_rows(source.source, where, count=wanted, seed=seed, cache=data.cache, load=load)
        settings = source.filter or data.filter
        report = SourceReport(source.source)
        examples = _read_examples(rows, report, formats, fmt, data.system, RowFilter(settings), need_thought)
        tokens: dict[int, Tokens] = {}
        if chat is not None and settings.by_tokens:
            tokens = of_wanted_length(tokenize(examples, chat, fmt.template), settings, report)
            examples = [example for example in examples if example.row in tokens]
        examples = drop_known(examples, report)
        if tokens:
            shortest = the_shortest((tokens[example.row] for example in examples), settings, report)
            examples = [item.example for item in shortest]
        report.usable = len(examples)
        if not examples:
            raise nothing_usable([report])
        Random(seed).shuffle(examples)
        pools.append(_Pool(examples, wanted, report, tokens))
    return pools


def _cleaning(data: Data, seed: int, load: Load) -> Callable[[list[Example], SourceReport], list[Example]]:
    """Return what drops duplicates and contaminated examples, as far as the settings ask for that."""
    if not data.deduplicate and not data.decontaminate:
        return lambda examples, report: examples
    from thinktune.data.cleaning import Cleaning  # brings numpy

    return Cleaning(data, seed, load).drop_known


def _read_examples(
    rows: Iterable[Row],
    report: SourceReport,
    formats: Sequence[RowFormat],
    fmt: Format,
    system: str,
    row_filter: RowFilter,
    need_thought: bool,
) -> list[Example]:
    examples: list[Example] = []
    for row in rows:
        report.read += 1
        if report.read > _ROWS_TO_SEE and not examples:
            raise nothing_usable([report])
        try:
            if row.fault:
                raise RowFault(row.fault)
            found = _format_of(row.fields, formats, report)
            report.leave_unused([key for key in unused_columns(row.fields, found) if key not in row_filter.columns])
            example = to_example(row, found, report.source, fmt, system, need_thought=need_thought)
            row_filter.check(row, found, example)
        except RowFault as fault:
            report.drop(str(fault), row.number)
            continue
        examples.append(example)
        if example.boxes_left_out:
            report.boxes_left_out.append(row.number)
    refuse_unknown_format(report)
    return examples


def kept_rows(config: Config, prepared: Prepared) -> Iterator[Row]:
    """Read the sources again, and yield the rows that `prepare` has kept, source after source.

    Raises:
        DataError and others: see `sources.read_rows`.
    """
    data = config.data
    for source, wanted, kept in zip(data.sources, shares(data.sources, data.sample), prepared.rows, strict=True):
        split, left = source.split or data.split, set(kept)
        rows = read_rows(source.source, split, count=wanted, seed=config.data_seed, cache=data.cache, load=config.load)
        yield from (row for row in rows if row.number in left)


def shares(sources: Sequence[Source], sample: int | None) -> list[int | None]:
    """Split `sample` over the sources by weight, the largest remainders rounded up.

    Raises:
        ConfigError: weights differ, but there is no `sample` to split.
    """
    weights = [source.weight for source in sources]
    if sample is None:
        if len(set(weights)) > 1:
            raise ConfigError("data.source has weights, but no data.sample to split by them", hint="set data.sample")
        return [None] * len(sources)
    exact = [sample * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    for at in sorted(range(len(exact)), key=lambda at: counts[at] - exact[at])[: sample - sum(counts)]:
        counts[at] += 1
    return list(counts)


def _format_of(fields: dict[str, object], formats: Sequence[RowFormat], report: SourceReport) -> RowFormat:
    found = find_format(fields, formats)
    if found is None:
        report.unknown_keys = sorted({*report.unknown_keys, *map(str, fields)})
        raise RowFault(UNKNOWN_FORMAT)
    return found


def _tokenize(pools: list[_Pool], data: Data, chat: Renders, fmt: Format) -> list[Tokens]:
    console = Console(stderr=True)
    columns = (TextColumn("tokenising"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tokens: list[Tokens] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=sum(pool.wanted or len(pool.examples) for pool in pools))
        for pool in pools:
            known = (pool.tokens[example.row] for example in pool.examples) if pool.tokens else None
            fitting = _fit(known or tokenize(pool.examples, chat, fmt.template), data, pool.report)
            before = len(tokens)
            for item in pool.take(fitting):
                tokens.append(item)
                progress.advance(task)
            pool.note_lengths(tokens[before:])
    for pool in pools:
        for rows in pool.report.dropped.values():
            rows.sort()  # examples came in drawn order
    if not tokens:
        raise nothing_usable([pool.report for pool in pools])
    return tokens


def _fit(encoded: Iterable[Tokens], data: Data, report: SourceReport) -> Iterator[Tokens]:
    """Yield the examples that fit into data.max_length; the rest is treated as data.overlong says."""
    for item in encoded:
        row = item.example.row
        if len(item) <= data.max_length:
            yield item
        elif data.overlong == "error":
            raise DataError(
                f"{report.source}, row {row}: {len(item):,} tokens, but data.max_length is {data.max_length:,}",
                hint="raise data.max_length, or set data.overlong: drop",
            )
        elif data.overlong == "drop":
            report.drop(TOO_LONG, row)
        elif item.context < data.max_length:
            yield item.shorten(data.max_length)
        else:
            report.drop(PROMPT_TOO_LONG, row)


def hold_out(items: list[T], fraction: float, tokens_of: Callable[[T], Tokens]) -> tuple[list[T], list[T]]:
    """Split off the first of the (shuffled) examples, and with each all others of the same prompt."""
    if not fraction:
        return items, []
    tokens = map(tokens_of, items)
    prompts = [hashlib.sha256(each.ids[: each.context].tobytes()).digest() for each in tokens]
    held = set(prompts[: max(1, round(fraction * len(items)))])
    train = [item for item, prompt in zip(items, prompts, strict=True) if prompt not in held]
    if not train:
        raise DataError(f"data.eval_fraction {fraction} leaves nothing to train on of {len(items)} examples")
    return train, [item for item, prompt in zip(items, prompts, strict=True) if prompt in held]


def report_of(
    config: Config, sources: list[SourceReport], train: list[Tokens], packs: list[list[int]], held_out: list[Tokens]
) -> DataReport:
    """Make the whole report, with its counts of tokens."""
    both = [*train, *held_out]
    packed = None
    if config.train.packing:
        capacity = config.pack_length
        packed = Packs(len(packs), capacity, 1 - sum(map(len, train)) / (len(packs) * capacity))
    return DataReport(
        sources,
        multi_turn=sum(item.example.multi_turn for item in both),
        cut=sum(item.cut for item in both),
        held_out=len(held_out),
        lengths=Lengths.of([len(item) for item in both], sum(item.trained for item in both)),
        packs=packed,
        fingerprint=fingerprint(both),
    )


def refuse_unknown_format(report: SourceReport, formats: str | None = None) -> None:
    """Raise a DataError if no row is of a known format; `formats`: those in words, if not those of `ROW_FORMATS`."""
    unknown = len(report.dropped.get(UNKNOWN_FORMAT, ()))
    if unknown == 0 or unknown < report.read - len(report.dropped.get("not UTF-8", ())):
        return
    known = formats or "; ".join(f"{each.name} (needs {', '.join(sorted(each.keys))})" for each in ROW_FORMATS)
    raise DataError(
        f"{report.source}: unknown row format; keys seen: {', '.join(report.unknown_keys) or 'none'}",
        hint=f"known formats: {known}; or set data.format to a module:function of yours",
    )


def nothing_usable(reports: list[SourceReport], needed: str = "a thought and an answer") -> DataError:
    """Make the error that names what all rows were dropped for; `needed`: by a row beside its prompt."""
    lines = [
        f"{len(rows):,} {reason} (row{'s' if len(rows) > 1 else ''} {name_rows(rows)} of {report.source})"
        for report in reports
        for reason, rows in report.dropped.items()
    ]
    unused = sorted({column for report in reports for column in report.unused})
    if unused:
        lines.append(f"columns not used: {', '.join(unused)}")
    return DataError("no usable rows: " + "; ".join(lines), hint=f"a row needs a prompt, {needed}: docs/data.md")


def name_rows(rows: Sequence[int], most: int = 8) -> str:
    """Name the first few row numbers.

    >>> name_rows([1, 5, 9], most=2)
    '1, 5, …'
    """
    return ", ".join(map(str, rows[:most])) + (", …" if len(rows) > most else "")
