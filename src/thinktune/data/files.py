"""Rows of local files: JSON lines, JSON, CSV, Parquet; all but Parquet also gzipped; or a folder of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, cast

from thinktune.data.examples import Row
from thinktune.errors import DataError
from thinktune.files import foreign_kind

_SPLIT_NAMES = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_TOO_MANY_DIGITS = "number with more digits than can be read"
_LONGEST_LINE = 2**28  # bytes or characters; a gzip file of megabytes can hold one of gigabytes
_MOST_BLANKS = 1_000_000
_LONGEST_UNPACKED = 2**30  # bytes of a gzipped JSON file, which is read at once


def read_path(path: Path, split: str) -> Iterator[Row]:
    """Yield the rows of a file, or of all data files in a folder (those of the split, where names tell splits apart).

    Rows are numbered from 1 through all files, in the order of their names.

    Raises:
        DataError: missing, empty, of an unknown kind, or of another format than its name says (with the line).
    """
    files = _files_of_split(path, split) if path.is_dir() else [path]
    number = 0
    for number, row in enumerate(chain.from_iterable(map(_read_file, files)), start=1):
        yield Row(number, row.fields, row.fault)
    if number == 0:
        raise DataError(f"{path}: has no rows")


def is_data_file(path: Path) -> bool:
    return _kind(path) in _READERS


def _read_file(path: Path) -> Iterator[Row]:
    reader = _READERS.get(_kind(path))
    if reader is None:
        raise DataError(
            f"{path}: cannot tell what kind of file this is", hint=f"known are {', '.join(_READERS)}, also .gz"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty")
        if reader is not _read_parquet:
            with _open(path) as file:
                kind = foreign_kind(file.read(4))
            if kind:
                raise DataError(f"{path}: is {kind}, not UTF-8 text", hint="unpack or convert it, or name it rightly")
        yield from reader(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no file {path}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is not a whole gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return "" if path.name.lower().endswith(".parquet.gz") else Path(name).suffix


def _files_of_split(folder: Path, split: str) -> list[Path]:
    # Unlike rglob, os.walk passes over folders that cannot be listed, or vanish.
    found = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    files = sorted(path for path in found if is_data_file(path) and not _hidden(path, folder))
    if not files:
        raise DataError(f"{folder}: has no data files", hint=f"known are {', '.join(_READERS)}, also .gz")
    splits = {file: _split_named_by(file.relative_to(folder)) for file in files}
    if not any(splits.values()):
        return files
    wanted = [file for file in files if splits[file] == _SPLIT_NAMES.get(split, split)]
    if not wanted:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:10])
        raise DataError(f"{folder}: no file of the split {split!r}; there are {names}", hint="set data.split")
    return wanted


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _split_named_by(path: Path) -> str | None:
    """Return the split that a name like `data/train-00000-of-00001.parquet` speaks of."""
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), None)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.name.lower().endswith(".gz") else path.open("rb")


def _read_json_lines(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        last = 0
        for at, line in enumerate(_lines(file, path), start=1):
            if at == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                last = at
                yield _parse_line(line, path, at)
            elif at - last > _MOST_BLANKS:
                raise DataError(f"{path}, line {at}: {_MOST_BLANKS:,} blank lines before it")


def _lines(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    at = 0
    while line := file.readline(_LONGEST_LINE + 1):
        at += 1
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{path}, line {at}: is longer than {_LONGEST_LINE >> 20} MiB")
        yield line


def _parse_line(line: bytes, path: Path, at: int) -> Row:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return Row(0, {}, "not UTF-8")
    try:
        return _as_row(json.loads(text))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {at}: is not JSON: {error.msg}: {text.strip()[:80]}") from None
    except ValueError:
        return Row(0, {}, _TOO_MANY_DIGITS)
    except RecursionError:
        return Row(0, {}, "nested too deep")


def _as_row(value: object) -> Row:
    return Row(0, value) if isinstance(value, dict) else Row(0, {}, "not an object")


def _read_json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        raw = file.read(_LONGEST_UNPACKED + 1 if path.suffix.lower() == ".gz" else -1)
    if path.suffix.lower() == ".gz" and len(raw) > _LONGEST_UNPACKED:
        raise DataError(
            f"{path}: unpacks to more than {_LONGEST_UNPACKED >> 30} GiB", hint="write it as JSON lines, or unpack it"
        )
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start})", hint="save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under another name
            yield from _read_json_lines(path)
            return
        raise DataError(f"{path}, line {error.lineno}: is not JSON: {error.msg}") from None
    except ValueError:
        raise DataError(f"{path}: holds a {_TOO_MANY_DIGITS}") from None
    except RecursionError:
        raise DataError(f"{path}: is nested too deep") from None
    if isinstance(value, dict):
        value = value.get("data", [value])
    if not isinstance(value, list):
        raise DataError(f"{path}: must be a list of rows, or have one under 'data'")
    yield from map(_as_row, value)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_LINE)  # csv's own limit of 128 KiB refuses long thoughts
    with _open(path) as raw:
        # Bytes that are not UTF-8 become surrogates, so that the rows that hold them can be told apart and dropped.
        text = io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.DictReader(_lines(text, path), strict=True)
        try:
            for fields in reader:
                yield Row(0, fields, _csv_fault(fields))
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: is not CSV: {error}") from None


def _csv_fault(fields: dict[str | Any, Any]) -> str:
    if None in fields or None in fields.values():
        return "cells do not match the header"
    try:
        "".join(fields.values()).encode()
    except UnicodeEncodeError:
        return "not UTF-8"
    return ""


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from map(_as_row, batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: is not Parquet: {error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: holds text that is not UTF-8") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
