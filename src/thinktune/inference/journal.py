"""Completions, written down one by one as they finish, so that a stopped run resumes with the missing ones.

A journal is JSON lines beside the result: `{"key", "id", "index", "text", "finish_reason", "error", "tokens",
"crc"}`. The key is a digest of everything that the completion follows from (id, prompt, sampling, model, sample
index): a completion made with other settings is never taken for a current one. The CRC-32 of the text before it in the
line tells a damaged line, whose completion is made anew; lines of before there was one count without. Each line is with
the operating system at once, so that killing the process loses nothing, and is on the disk within 200 ms, so that a
power cut loses little.

Several journals add up, as the keys say all: those of shards (`shard`) are read beside the one that is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from thinktune.errors import UsageError
from thinktune.files import is_full_disk, telling_full_disk
from thinktune.inference.engines.base import Completion

_SYNC_SECONDS = 0.2


class JoinedFiles:
    """Journals read as if they were one file: a completion's offset counts the bytes of all files before its own."""

    def __init__(self, files: Sequence[Path], starts: Sequence[int]) -> None:
        self._streams = [file.open("rb") for file in files]
        self._starts = starts

    def read(self, offset: int) -> Completion:
        """Read the completion at an offset."""
        place = bisect_right(self._starts, offset) - 1
        stream = self._streams[place]
        stream.seek(offset - self._starts[place])
        return _parse(stream.readline())[1]

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class Completions(Mapping[tuple[str, int], Completion]):
    """Completions by request id and sample index, read from the journals on access: a long file's do not lie in
    memory."""

    def __init__(self, files: JoinedFiles, offsets: dict[tuple[str, int], int]) -> None:
        self._files = files
        self._offsets = offsets

    def __getitem__(self, place: tuple[str, int]) -> Completion:
        return self._files.read(self._offsets[place])

    def __contains__(self, place: object) -> bool:
        return place in self._offsets  # a Mapping would read the completion

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)


class Journal:
    """An append-only file of completions by key, which one process at a time may hold open.

    Args:
        beside: further journals, which are read and not written.

    Attributes:
        offsets: offset of each key's completion in the joined files. Errors of earlier calls are not among them: they
            are to be tried again.
        failed: the keys whose last completion, of an earlier call, is an error.
        damaged: number of lines that are unreadable or altered.

    Raises:
        DiskFull: while writing.
        UsageError: the file cannot be opened for writing, or another process holds it.
    """

    def __init__(self, file: Path, *, overwrite: bool = False, beside: Sequence[Path] = ()) -> None:
        self.file = file
        self._files = [*beside, file]
        self._starts = [0]
        self.offsets: dict[str, int] = {}
        self.failed: set[str] = set()
        self.damaged = 0
        self._end = 0
        self._failure: OSError | None = None
        self._dirty = False
        self._closing = threading.Event()
        with telling_full_disk(file):
            self._descriptor = self._open(overwrite)
        self._thread = threading.Thread(target=self._sync_now_and_then, daemon=True)
        self._thread.start()

    def add(self, key: str, completion: Completion) -> None:
        """Append one completion, errors too."""
        line = _encode_line(key, completion)
        with telling_full_disk(self.file):
            if self._failure:
                raise self._failure
            _write_all(self._descriptor, line, self._end - self._starts[-1])
        self._dirty = True
        self.offsets[key] = self._end
        self._end += len(line)

    def places_beside(self, keys: set[str]) -> set[tuple[str, int]]:
        """Return request id and sample index of every completion that has none of these keys."""
        with closing(self.files()) as files:
            others = (files.read(at) for key, at in self.offsets.items() if key not in keys)
            return {(each.request_id, each.index) for each in others}

    def files(self) -> JoinedFiles:
        """Open the files for the offsets."""
        return JoinedFiles(self._files, self._starts)

    def close(self) -> None:
        """Bring everything to the disk. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        with telling_full_disk(self.file):
            try:
                os.fsync(self._descriptor)
                if self._failure:  # the system tells of a failed write once only
                    raise self._failure
            finally:
                os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, overwrite: bool) -> int:
        descriptor = self._locked()
        if overwrite and os.fstat(descriptor).st_size:
            # Not emptied: a call that has just finished may be writing its result from it.
            self.file.unlink()
            old, descriptor = descriptor, self._locked()
            os.close(old)
        for file in self._files[:-1]:
            self._read(file)
            self._starts.append(self._end)
        self._read(self.file)
        # The last line of a killed run may be torn; the next one must not be glued to it.
        os.ftruncate(descriptor, self._end - self._starts[-1])
        return descriptor

    def _locked(self) -> int:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            if is_full_disk(error):
                raise
            raise UsageError(f"{self.file} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of by the system when the process ends
            if not os.path.samestat(os.fstat(descriptor), self.file.stat()):  # put away in between
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            raise UsageError(
                f"another process is writing {self.file}", hint="wait for it, or choose another result file"
            ) from None
        return descriptor

    def _read(self, file: Path) -> None:
        """Read the completions of earlier calls, up to the end of the last whole line."""
        with file.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._take(line)
                self._end += len(line)

    def _take(self, line: bytes) -> None:
        try:
            key, completion = _parse(line)
        except (ValueError, TypeError, KeyError, RecursionError):  # a damaged line costs its completion, not the run
            self.damaged += 1
            return
        if completion.error is None:
            self.offsets[key] = self._end
            self.failed.discard(key)
        elif key not in self.offsets:
            self.failed.add(key)

    def _sync_now_and_then(self) -> None:
        while not self._closing.wait(_SYNC_SECONDS):
            if self._dirty:
                self._dirty = False
                try:
                    os.fsync(self._descriptor)
                except OSError as error:
                    self._failure = error
                    return


_encode = json.JSONEncoder(ensure_ascii=False).encode
_CHECKED = re.compile(rb'(.*), "crc": "([0-9a-f]{8})"}\s*', re.DOTALL)


def _encode_line(key: str, completion: Completion) -> bytes:
    checked = _encode({"key": key, **completion.as_dict()}).encode().removesuffix(b"}")
    return b'%s, "crc": "%08x"}\n' % (checked, zlib.crc32(checked))


def _parse(line: bytes) -> tuple[str, Completion]:
    """Return the key and the completion of a line.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: the line is not as it was written.
    """
    if checked := _CHECKED.fullmatch(line):
        if zlib.crc32(checked[1]) != int(checked[2], 16):
            raise ValueError("the checksum differs")
        line = checked[1] + b"}"
    values = json.loads(line)
    if not isinstance(key := values["key"], str):
        raise TypeError("key")
    del values["key"]
    return key, Completion.from_dict(values)


def _write_all(descriptor: int, data: bytes, start: int) -> None:
    """Append all of `data` or nothing: a part that fitted on a full disk is cut off again. `start`: file length."""
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        os.ftruncate(descriptor, start)
        raise
