"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from thinktune.errors import DiskFull

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE_IN_WORDS = (
    "No space left",  # safetensors, torch
    "unexpected pos",  # torch.save to a path
    "requested and",  # numpy's tofile, which gguf calls
    "Not enough disk space",  # datasets, before it downloads
    "os error 28",  # tokenizers and others in Rust: ENOSPC
    "os error 122",  # EDQUOT
)
"""Parts of messages that libraries have for a full disk, in errors without a number."""
_STARTS = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, says that a disk, or a person's share of it, is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error can be raised from itself
        seen.add(id(error))
        number = getattr(error, "errno", None)
        if number in _NO_SPACE or (number is None and any(part in str(error) for part in _NO_SPACE_IN_WORDS)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


@contextmanager
def telling_full_disk(
    place: Path | str,
    work: str = "writing",
    *,
    hint: str = "free some space, then run it again: finished work is kept",
) -> Iterator[None]:
    """Turn any error of a full disk into a `DiskFull` that names place and work."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise DiskFull(f"no space left on the disk while {work} {place}", hint=hint) from error


def foreign_kind(start: bytes) -> str | None:
    """Return the kind of a file by its first bytes, if these cannot be UTF-8 text; None if they may be."""
    return next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), None)


def read_text(file: Path, limit: int) -> str:
    """Read a text of at most `limit` bytes.

    Raises:
        OSError, with a `strerror` for the person: it cannot be read, is longer, or never ends (a device, a pipe).
        UnicodeDecodeError: it is not UTF-8.
    """
    if file.exists() and not file.is_dir() and not file.is_file() and file.resolve().parent.name != "fd":
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(file))
    with file.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 20} MiB", str(file))
    return content.decode("utf-8-sig")


def write_text(file: Path, text: str) -> None:
    """Replace `file` atomically; a crash or a full disk leaves the old one."""
    with replacing_text(file) as stream:
        stream.write(text)


def write_json(file: Path, values: Any) -> None:
    """Replace `file` atomically with indented, not ASCII-escaped JSON."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(file: Path, records: Iterable[Any]) -> None:
    """Replace `file` atomically with a line of JSON a record. Values unknown to JSON are written as their text."""
    with replacing_text(file) as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records)


@contextmanager
def replacing_text(file: Path) -> Iterator[TextIO]:
    """Yield a stream of UTF-8 text that takes the place of `file` only on success, when all of it is on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair, which JSON can smuggle in, becomes the escape that JSON has for it: no whole file is lost.
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def sync(path: Path) -> None:
    """Flush a file, or all files and folders below a folder, to the disk: a power cut leaves them as they are now."""
    for inner in path.iterdir() if path.is_dir() else ():
        if not inner.is_symlink():
            sync(inner)
    sync_entry(path)


def sync_entry(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, to the disk, where the system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if is_full_disk(error) or error.errno == errno.EIO:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling path to write a file or folder to; it takes the target's place only on success."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        if temporary.is_dir() and target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync_entry(target.parent)
    except OSError as error:
        if is_full_disk(error) and error.filename is None:  # as where a file that is open is written
            error.filename = str(target)
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def name_of(reference: str) -> str:
    """Turn the reference of a model or of data into part of a file name."""
    return re.sub(r"[^\w.-]+", "-", Path(reference).stem if Path(reference).is_file() else reference).strip("-.")
