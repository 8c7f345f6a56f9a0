"""From sources to the training data of `method: dpo`: as `prepare` does, for two replies that stay together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from random import Random

from thinktune.config import Config, Data, Source
from thinktune.data.examples import Row, RowFault
from thinktune.data.packing import packs_of
from thinktune.data.pairs import COLUMNS, FORMATS, KEYS, Pair, TokenPair, to_pair, tokenize_pairs
from thinktune.data.prepare import (
    UNKNOWN_FORMAT,
    Prepared,
    hold_out,
    nothing_usable,
    refuse_unknown_format,
    report_of,
    shares,
)
from thinktune.data.report import TOO_LONG, Lengths, SourceReport
from thinktune.data.sources import read_rows
from thinktune.data.tokens import Renders
from thinktune.errors import DataError

logger = logging.getLogger(__name__)


def prepare_pairs(config: Config, chat: Renders) -> Prepared:
    """Read, check, draw and tokenise the pairs of a training. Errors as for `prepare`."""
    data, seed = config.data, config.data_seed
    taken, reports = [], []
    for source, wanted in zip(data.sources, shares(data.sources, data.sample), strict=True):
        report = SourceReport(source.source)
        usable = _read(config, source, report)
        Random(seed).shuffle(usable)
        taken.append(list(islice(_fit(tokenize_pairs(usable, chat), data, report), wanted)))
        reports.append(report)
        _count(report, taken[-1], wanted)
    pairs = [pair for each in taken for pair in each]
    if not pairs:
        raise nothing_usable(reports, "chosen and rejected")
    Random(seed).shuffle(pairs)
    train, held_out = hold_out(pairs, data.eval_fraction, lambda pair: pair.chosen)
    packs = packs_of([len(pair) for pair in train], config)
    packs = [[place for index in pack for place in (2 * index, 2 * index + 1)] for pack in packs]
    documents = [list(chain.from_iterable((pair.chosen, pair.rejected) for pair in part)) for part in (train, held_out)]
    whole = report_of(config, reports, documents[0], packs, documents[1])
    whole = replace(whole, multi_turn=whole.multi_turn // 2, held_out=len(held_out))
    rows = [sorted(pair.chosen.example.row for pair in each) for each in taken]
    return Prepared(documents[0], packs, documents[1], whole, whole.fingerprint, rows)


def _read(config: Config, source: Source, report: SourceReport) -> list[Pair]:
    data = config.data
    split, seed = source.split or data.split, config.data_seed
    pairs = []
    for row in read_rows(source.source, split, count=None, seed=seed, cache=data.cache, load=config.load):
        report.read += 1
        try:
            pairs.append(_pair(row, config, report))
        except RowFault as fault:
            report.drop(str(fault), row.number)
    refuse_unknown_format(report, FORMATS)
    report.usable = len(pairs)
    return pairs


def _pair(row: Row, config: Config, report: SourceReport) -> Pair:
    if row.fault:
        raise RowFault(row.fault)
    if not row.fields.keys() >= KEYS:
        report.unknown_keys = sorted({*report.unknown_keys, *map(str, row.fields)})
        raise RowFault(UNKNOWN_FORMAT)
    report.leave_unused(sorted(row.fields.keys() - COLUMNS))
    return to_pair(row, report.source, config.format, config.data.system)


def _fit(encoded: Iterable[TokenPair], data: Data, report: SourceReport) -> Iterator[TokenPair]:
    """Yield the pairs whose replies both fit into data.max_length: half of a reply is not what was preferred."""
    for pair in encoded:
        row = pair.chosen.example.row
        if pair.longest <= data.max_length:
            yield pair
        elif data.overlong == "error":
            raise DataError(
                f"{report.source}, row {row}: {pair.longest:,} tokens, but data.max_length is {data.max_length:,}",
                hint="raise data.max_length, or set data.overlong: drop",
            )
        else:
            report.drop(TOO_LONG, row)


def _count(report: SourceReport, taken: list[TokenPair], wanted: int | None) -> None:
    report.kept = len(taken)
    for rows in report.dropped.values():
        rows.sort()  # pairs came in drawn order
    documents = [each for pair in taken for each in (pair.chosen, pair.rejected)]
    if documents:
        report.lengths = Lengths.of(list(map(len, documents)), sum(each.trained for each in documents))
    if wanted is not None and report.kept < wanted:
        logger.info(f"{report.source}: {wanted:,} pairs asked for, {report.kept:,} usable")
