"""Files of every kind, folders, the generator, and hubs that do not answer."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thinktune.config import Load
from thinktune.data import Row, files
from thinktune.data.sources import BUILTIN_ROWS, read_rows
from thinktune.errors import DataError, DownloadError, MissingExtra

ROWS = [{"question": f"Wie groß ist {n}?", "answer": f"gedacht\n#### {n}"} for n in range(3)]


def read(source: str | Path, split: str = "train", **options: Any) -> list[Row]:
    settings: dict[str, Any] = {"count": None, "seed": 1, "cache": Path("cache")}
    return list(read_rows(str(source), split, **{**settings, "load": Load(attempts=1), **options}))


def fields_of(rows: list[Row]) -> list[dict[str, Any]]:
    return [row.fields for row in rows]


def error_of(source: str | Path, split: str = "train") -> str:
    with pytest.raises(DataError) as caught:
        read(source, split)
    return str(caught.value)


def write_jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")


def write_list(path: Path) -> None:
    path.write_text(json.dumps(ROWS), encoding="utf-8")


def write_data_key(path: Path) -> None:
    path.write_text(json.dumps({"version": 1, "data": ROWS}), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_list,
    "data.json": write_data_key,
    "lines.json": write_jsonl,
    "rows.csv": write_csv,
    "ROWS.PARQUET": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_the_same_rows_numbered_from_one(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    rows = read(tmp_path / name)
    assert fields_of(rows) == ROWS
    assert [row.number for row in rows] == [1, 2, 3]


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith("PARQUET")])
def test_text_files_may_be_gzipped(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert fields_of(read(packed)) == ROWS


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n  \n\n{"a": 2}\n')
    assert fields_of(read(tmp_path / "a.jsonl")) == [{"a": 1}, {"a": 2}]


def test_a_line_that_is_not_json_is_named_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\nnot json at all\n{"a": 2}\n')
    message = error_of(tmp_path / "a.jsonl")
    assert f"{tmp_path / 'a.jsonl'}, line 3" in message
    assert "not json at all" in message


def test_bytes_that_are_not_utf8_cost_one_row_and_not_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff\xfe"}\n{"a": 3}\n')
    rows = read(tmp_path / "a.jsonl")
    assert [(row.number, row.fault) for row in rows] == [(1, ""), (2, "not UTF-8"), (3, "")]
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n\xe9,2\n1\n1,2,3\n4,5\n")
    faults = [row.fault for row in read(tmp_path / "a.csv")]
    assert faults == ["", "not UTF-8", "cells do not match the header", "cells do not match the header", ""]


def test_a_line_that_is_json_but_no_object_costs_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n[1, 2]\n"text"\nnull\n' + "[" * 100_000 + "\n")
    assert [row.fault for row in read(tmp_path / "a.jsonl")] == ["", *["not an object"] * 3, "nested too deep"]


def test_a_csv_cell_may_hold_a_thought_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"Q, with\n""quotes""","' + "long " * 100_000 + '"\n')
    (row,) = read(tmp_path / "a.csv")
    assert row.fields["question"] == 'Q, with\n"quotes"'
    assert len(row.fields["answer"]) == 500_000


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n  \n", "has no rows"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b'{"data": 3}', "must be a list of rows"),
        ("a.json", b'[{"a": 1},\n {"b" 2}]', "line 2: is not JSON"),
        ("a.json", b'["\xff"]', "is not UTF-8"),
        ("a.csv", b"question,answer\n", "has no rows"),
        ("a.csv", b'a,b\n"never closed,1\n', "is not CSV"),
        ("a.parquet", b"PAR1 not really", "is not Parquet"),
        ("a.jsonl.gz", b"plain", "not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-12], "not a whole gzip file"),
        ("a.txt", b"hello", "cannot tell what kind of file"),
        ("a.parquet.gz", b"hello", "cannot tell what kind of file"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = error_of(tmp_path / name)
    assert says in message
    assert name in message


@pytest.mark.parametrize("source", ["missing.jsonl", "./missing", "/no/such/folder", "~/no-such-folder/x", "a b"])
def test_a_missing_path_is_not_taken_for_a_data_set_of_the_hub(source: str) -> None:
    assert f"no file or folder {source}" in error_of(source)


def test_a_folder_is_read_file_by_file_and_numbered_through(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    write_jsonl(tmp_path / "part" / "b.jsonl")
    write_csv(tmp_path / "a.csv")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".cache").mkdir()
    write_jsonl(tmp_path / ".cache" / "old.jsonl")
    rows = read(tmp_path)
    assert fields_of(rows) == [*ROWS, *ROWS]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_folder_whose_names_tell_splits_apart_gives_only_the_wanted_one(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    (tmp_path / "data" / "test-00000-of-00001.jsonl").write_text('{"a": 1}')
    assert len(read(tmp_path)) == 6
    assert fields_of(read(tmp_path, "test")) == [{"a": 1}]
    message = error_of(tmp_path, "validation")
    assert "no file of the split 'validation'" in message
    assert "test-00000-of-00001.jsonl" in message


def test_a_folder_without_data_says_so(tmp_path: Path) -> None:
    assert "has no data files" in error_of(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="has no /proc")
def test_a_folder_with_folders_that_cannot_be_listed_has_the_files_of_the_others() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    assert ended.stdout.read() == b""  # it has ended, and nobody has asked how: its network cannot be listed
    try:
        assert "has no data files" in error_of(f"/proc/{ended.pid}")
    finally:
        ended.communicate()


def test_the_generator_gives_as_many_rows_as_are_wanted() -> None:
    assert len(read("builtin:arithmetic")) == BUILTIN_ROWS
    assert read("builtin:arithmetic", count=20, seed=5) == read("builtin:arithmetic", count=30, seed=5)[:20]
    assert read("builtin:arithmetic", "test", count=5) != read("builtin:arithmetic", count=5)


def test_a_generator_or_split_that_does_not_exist_is_answered_with_those_that_do() -> None:
    assert "there is builtin:arithmetic and builtin:basics" in error_of("builtin:poetry")
    assert "it has train and test" in error_of("builtin:arithmetic", "validation")


def test_a_modelscope_data_set_without_its_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinktune.data.hub.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"thinktune\[modelscope\]"):
        read("ms:someone/rows")


def test_a_hub_that_cannot_be_reached_is_a_download_error() -> None:
    with pytest.raises(DownloadError, match="data set someone/rows"):
        read("someone/rows")  # the tests run with HF_HUB_OFFLINE


def test_a_number_too_long_for_python_drops_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"n": {"9" * 5000}}}\n{{"n": 1}}\n')
    assert [row.fault for row in read(tmp_path / "a.jsonl")] == ["number with more digits than can be read", ""]
    (tmp_path / "a.json").write_text(f'[{{"n": {"9" * 5000}}}]')
    assert "more digits than can be read" in error_of(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_in_utf_16_is_called_that(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes('{"question": "q"}\n'.encode("utf-16"))
    assert "is UTF-16 text" in error_of(tmp_path / name)


def test_packed_data_under_a_plain_name_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"{}"))
    assert "is gzip" in error_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.jsonl", "rows.json.gz"])
def test_a_file_that_unpacks_to_gigabytes_is_refused_before_memory_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(files, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(files, "_LONGEST_UNPACKED", 1000)
    start = b"question,answer\n" if ".csv" in name else b""
    content = start + b" " * 2000
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r"is longer than|unpacks to more than"):
        list(files.read_path(tmp_path / name, "train"))
