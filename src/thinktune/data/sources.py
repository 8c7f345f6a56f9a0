"""The sources of rows: the built-in generator, local files, a Hugging Face or ModelScope data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args

from thinktune.config import Load
from thinktune.data.arithmetic import Split, problems
from thinktune.data.basics import basics
from thinktune.data.examples import Row
from thinktune.data.files import is_data_file, read_path
from thinktune.data.hub import read_hub_dataset, read_modelscope_dataset
from thinktune.errors import DataError

BUILTIN = {"builtin:arithmetic": problems, "builtin:basics": basics}
"""The generators of rows. The rows of a split, a count and a seed never change: other problems get a new name."""
BUILTIN_ROWS = 2000
"""Rows the generator gives where `data.sample` does not say how many."""

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


def read_rows(
    source: str,
    split: str,
    *,
    count: int | None,
    seed: int,
    cache: Path,
    load: Load,
) -> Iterator[Row]:
    """Yield the rows of one source, numbered from 1.

    Args:
        count, seed: number of rows and random seed of the generator.
        cache: folder that keeps downloaded data sets.

    Raises:
        DataError: no such file or data set, or one that cannot be read.
        DownloadError: the hub did not answer, and there is no cached copy.
        MissingExtra: a ModelScope data set without ModelScope's client.
    """
    if source.startswith("builtin:"):
        return _generate(source, split, count or BUILTIN_ROWS, seed)
    if source.startswith("ms:"):
        return read_modelscope_dataset(source, split, cache, load)
    return _read_local(source, split) or read_hub_dataset(source, split, cache, load)


def check_local(source: str, split: str) -> None:
    """Read the first row of a local source, so that a fault of the whole source is reported before a model is loaded.
    Other sources are passed over.

    Raises:
        DataError: see `read_rows`.
    """
    if not source.startswith(("builtin:", "ms:")) and (rows := _read_local(source, split)):
        next(rows)


def is_local(source: str) -> bool:
    """Tell whether a source is on this machine, and nothing is downloaded to read it."""
    return source.startswith("builtin:") or Path(source).expanduser().exists()


def _read_local(source: str, split: str) -> Iterator[Row] | None:
    """Read a local source; None if it is the name of a data set on a hub."""
    path = Path(source).expanduser()
    if path.exists():
        return read_path(path, split)
    if is_data_file(path) or not _HUB_ID.fullmatch(source):
        raise DataError(f"no file or folder {source}", hint=f"looked in {path.absolute().parent}")
    return None


def _generate(source: str, split: str, count: int, seed: int) -> Iterator[Row]:
    if source not in BUILTIN:
        raise DataError(f"no built-in data {source}", hint=f"there is {' and '.join(BUILTIN)}")
    if split not in get_args(Split):
        raise DataError(f"{source} has no split {split!r}", hint="it has train and test")
    for number, fields in enumerate(BUILTIN[source](cast(Split, split), count, seed), start=1):
        yield Row(number, fields)
