"""Problems of a benchmark, from the rows of its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Any

from thinktune.config import Data, Format, Load
from thinktune.data import Row
from thinktune.data.files import read_path
from thinktune.errors import DataError
from thinktune.evaluation.suites.benchmark import Benchmark
from thinktune.evaluation.suites.pinned_files import PinnedFiles, fetch_pinned
from thinktune.inference.problems import GoldItem, read_problems
from thinktune.scoring import TASKS
from thinktune.tags import valid_text


@dataclass(frozen=True)
class Problems:
    """The problems of a benchmark, and the files that they come from (None: no pinned ones)."""

    items: list[GoldItem]
    files: PinnedFiles | None


def load_problems(name: str, benchmark: Benchmark, cache: Path, load: Load, seed: int) -> Problems:
    """Read the problems of a benchmark in the order of its files.

    Raises:
        NotAvailable, DownloadError: see `fetch_pinned`.
        DataError: a row cannot be used, or there are more or fewer problems than the benchmark has.
    """
    if benchmark.files:
        found = fetch_pinned(name, benchmark, cache, load)
        return Problems(problems_of(name, benchmark, found.paths.values()), found)
    count = benchmark.problems if benchmark.source.startswith("builtin:") else None
    data = Data(source=benchmark.source, split=benchmark.split, sample=count, cache=cache)
    items = read_problems(data, Format(), seed, load=load)
    require_count(benchmark, len(items))
    return Problems(items, None)


def problems_of(name: str, benchmark: Benchmark, files: Iterable[Path]) -> list[GoldItem]:
    """Make the problems of a benchmark of the rows of its files.

    Raises:
        DataError: see `load_problems`.
    """
    rows = (row for file in files for row in read_path(file, benchmark.split))
    items = list(_items(name, benchmark, rows))
    require_count(benchmark, len(items))
    return items


def require_count(benchmark: Benchmark, count: int) -> None:
    """Raise DataError if there are more or fewer problems than the benchmark has."""
    if benchmark.problems not in (None, count):
        raise DataError(f"{benchmark.title}: {benchmark.source} has {count} problems, not {benchmark.problems}")


def draw(items: list[GoldItem], count: int | None, seed: int) -> list[GoldItem]:
    """Draw so many problems, the same for a seed; None: all."""
    return items if count is None or count >= len(items) else Random(seed).sample(items, count)


def _items(name: str, benchmark: Benchmark, rows: Iterator[Row]) -> Iterator[GoldItem]:
    for number, row in enumerate(rows, start=1):
        where = f"{benchmark.title}, row {number} of {benchmark.source}"
        if row.fault:
            raise DataError(f"{where}: {row.fault}")
        try:
            yield _item(f"{name}:{number}", benchmark, row.fields)
        except KeyError as error:
            fields = ", ".join(row.fields)
            raise DataError(f"{where} has no field {error}; it has {fields}") from None
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None


def _item(name: str, benchmark: Benchmark, fields: Mapping[str, Any]) -> GoldItem:
    """Make the problem of a row.

    Raises:
        KeyError: the row has no such field.
        ValueError: its gold record cannot be used.
    """
    filled = [text for field, text in benchmark.question_with.items() if str(fields[field] or "").strip()]
    question = valid_text((filled or [benchmark.question])[0].format_map(fields)).strip()
    gold: dict[str, Any] = {}
    if benchmark.options:
        texts, gold["reference"] = _shuffled([str(fields[key]).strip() for key in benchmark.options], question)
        gold["options"] = texts
        question += "\n\n" + "\n".join(f"{letter}) {text}" for letter, text in texts.items())
    elif benchmark.reference:
        answer = fields[benchmark.reference]
        gold["reference"] = answer.rpartition(benchmark.after)[2].strip() if benchmark.after else answer
    gold |= {"prompt": question} | {key: fields[field] for key, field in benchmark.gold.items()}
    if fault := TASKS[benchmark.type].gold_fault(gold):
        raise ValueError(fault)
    return GoldItem(name, ({"role": "user", "content": question},), benchmark.type, gold)


def _shuffled(texts: list[str], question: str) -> tuple[dict[str, str], str]:
    """Return the options by letter and the letter of the first one. The order depends on the question alone: it is the
    same for every model and seed, and where rows are added."""
    order = Random(question).sample(range(len(texts)), len(texts))
    letters = ascii_uppercase[: len(texts)]
    return {letter: texts[at] for letter, at in zip(letters, order, strict=True)}, letters[order.index(0)]
