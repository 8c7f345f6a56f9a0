"""Completions, written down one by one as they finish, so that a stopped run goes on with what is missing.

A journal is JSON lines beside the result: `{"key", "id", "index", "text", "finish_reason", "error", "tokens",
"crc"}`. The key is a digest of everything that the completion follows from (id, prompt, sampling, model, sample
index): what was made with other settings is never taken for what is wanted now. The CRC-32 of what stands before it
in the line tells a damaged line, whose completion is made anew; lines of before there was one count without. Each
line is with the operating system at once, so that killing the process loses nothing, and is on the disk within 200
ms, so that a power cut loses little.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
import time
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thinktune.config import Sampling
from thinktune.errors import DiskFull, Interrupted, UsageError
from thinktune.files import NO_SPACE
from thinktune.inference.engines.base import Completion, Engine, FinishReason, Request

_SYNC_SECONDS = 0.2
_SHOW_SECONDS = 0.1
_BETWEEN = 64  # tokens that a thought within a budget and its answer may need beside max_tokens
_TELL_SECONDS = 60.0  # between two lines of progress where there is no terminal, as under nohup or in a batch system


@dataclass(frozen=True)
class Record:
    """A finished completion as the journal keeps it; `tokens` counts what was generated."""

    id: str
    index: int
    text: str
    finish_reason: FinishReason
    error: str | None
    tokens: int


class Records(Mapping[tuple[str, int], Record]):
    """Records by request id and sample index, read from the journal when they are asked for: a long file's do not lie
    in memory."""

    def __init__(self, file: Path, offsets: dict[tuple[str, int], int]) -> None:
        self._stream = file.open("rb")
        self._offsets = offsets

    def __getitem__(self, place: tuple[str, int]) -> Record:
        return _read_record(self._stream, self._offsets[place])[1]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)


@dataclass(frozen=True)
class Completed:
    """The completions of all requests, by request id and sample index, and what this call had to do for them.

    Attributes:
        seconds: spent generating, without those to load the model.
    """

    records: Records
    generated_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        return self.generated_tokens / self.seconds if self.generated_tokens else None


class Journal:
    """An append-only file of records by key, which one process at a time may hold open.

    Attributes:
        records: where in the file the record of each key begins. Errors of earlier calls are not among them: they are
            to be tried again.
        failed: the keys whose last record, of an earlier call, is an error.
        damaged: how many lines cannot be read, or are not what was written.

    Raises:
        DiskFull: while writing.
        UsageError: the file cannot be opened for writing, or another process holds it.
    """

    def __init__(self, file: Path, *, overwrite: bool = False) -> None:
        self.file = file
        self.records: dict[str, int] = {}
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

    def add(self, key: str, record: Record) -> None:
        """Write one record, errors too."""
        line = _encode_line(key, record)
        with telling_full_disk(self.file):
            if self._failure:
                raise self._failure
            _write_all(self._descriptor, line, self._end)
        self._dirty = True
        self.records[key] = self._end
        self._end += len(line)

    def places_beside(self, keys: set[str]) -> set[tuple[str, int]]:
        """Request id and sample index of every record that has none of these keys."""
        with self.file.open("rb") as stream:
            others = (_read_record(stream, at)[1] for key, at in self.records.items() if key not in keys)
            return {(record.id, record.index) for record in others}

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
        self._read()
        # The last line of a killed run may be torn; the next one must not be glued to it.
        os.ftruncate(descriptor, self._end)
        return descriptor

    def _locked(self) -> int:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            if error.errno in NO_SPACE:
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

    def _read(self) -> None:
        """Take in what is there, up to the end of its last whole line."""
        with self.file.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._take(line)
                self._end += len(line)

    def _take(self, line: bytes) -> None:
        try:
            key, record = _parse(line)
        except (ValueError, TypeError, KeyError, RecursionError):  # a damaged line costs its completion, not the run
            self.damaged += 1
            return
        if record.error is None:
            self.records[key] = self._end
            self.failed.discard(key)
        else:
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
_TYPES: dict[str, Any] = {"key": str, "id": str, "index": int, "text": str, "error": str | None, "tokens": int}


def _encode_line(key: str, record: Record) -> bytes:
    checked = _encode({"key": key, **vars(record)}).encode().removesuffix(b"}")
    return b'%s, "crc": "%08x"}\n' % (checked, zlib.crc32(checked))


def _parse(line: bytes) -> tuple[str, Record]:
    """Key and record of a line.

    Raises:
        ValueError, TypeError, KeyError, RecursionError: the line is not as it was written.
    """
    if checked := _CHECKED.fullmatch(line):
        if zlib.crc32(checked[1]) != int(checked[2], 16):
            raise ValueError("the checksum differs")
        line = checked[1] + b"}"
    fields = json.loads(line)
    for name, kind in _TYPES.items():
        if not isinstance(fields[name], kind):
            raise TypeError(name)
    if fields["finish_reason"] not in get_args(FinishReason):
        raise ValueError("finish_reason")
    return fields.pop("key"), Record(**fields)


def _read_record(stream: BinaryIO, offset: int) -> tuple[str, Record]:
    stream.seek(offset)
    return _parse(stream.readline())


def _write_all(descriptor: int, data: bytes, start: int) -> None:
    """Append all of `data` or nothing: what a full disk took of it is cut off again. `start` is the file's length."""
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        os.ftruncate(descriptor, start)
        raise


@contextmanager
def telling_full_disk(file: Path) -> Iterator[None]:
    """Turn "no space left" into a `DiskFull` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DiskFull(
            f"no space left on the disk while writing {file}",
            hint="free some space and give the same command again: what was finished is kept",
        ) from error


def complete(
    engine: Engine,
    requests: Sequence[Request],
    file: Path,
    *,
    model: str,
    console: Console,
    overwrite: bool = False,
    only_failed: bool = False,
) -> Completed:
    """Answer all requests through the journal in `file`, generating only what it does not have yet.

    Args:
        model: fingerprint of the model, part of every key.
        console: where to say what goes on (a live line if it is a terminal).
        overwrite: forget what the journal has.
        only_failed: generate only what the journal has as an error; the rest of what is missing stays so.

    Raises:
        UsageError: the engine cannot honour a request's sampling, or another process writes the journal.
        Interrupted: by Ctrl-C; everything finished is in the journal.
        DiskFull: everything finished before is in the journal.
        GenerationError, OutOfMemory: see `Engine.generate`.
    """
    for sampling, name in {each.sampling: each.id for each in requests}.items():
        try:
            engine.require_supported(sampling)
        except UsageError as error:
            raise UsageError(f"{name}: {error.message}", hint=error.hint) from None
    with Journal(file, overwrite=overwrite) as journal:
        digests = _Digests(model, engine.context_setting)
        keys = {(each.id, index): key for each in requests for index, key in enumerate(digests.keys(each))}
        wanted = journal.failed if only_failed else {key for key in keys.values() if key not in journal.records}
        missing = [each for each in requests if any(keys[each.id, index] in wanted for index in _samples(each))]
        found = sum(key in journal.records for key in keys.values())
        _tell_start(journal, keys, found, console)
        tokens = 0
        try:
            if missing:
                engine.start()
            started = time.perf_counter()
            for completion in _with_progress(engine, missing, console):
                tokens += len(completion.token_ids)
                key = keys[completion.request_id, completion.index]
                if key not in journal.records:
                    journal.add(key, _record(completion))
        except KeyboardInterrupt:
            done = sum(key in journal.records for key in keys.values())
            raise Interrupted(
                f"stopped with {done} of {len(keys)} completions finished", hint="the same command goes on from there"
            ) from None
        seconds = time.perf_counter() - started
        offsets = {place: journal.records[key] for place, key in keys.items() if key in journal.records}
        return Completed(Records(file, offsets), tokens, seconds)


def _samples(request: Request) -> range:
    return range(request.sampling.n)


class _Digests:
    """Keys of one model's completions.

    Args:
        context: what a setting holds it to. It is part of the key where it may cut a completion short, so that this is
            made anew in another one.
    """

    def __init__(self, model: str, context: int | None) -> None:
        self._model = model
        self._context = context
        self._settings: dict[Sampling, str] = {}

    def keys(self, request: Request) -> list[str]:
        """A key for each sample. How many samples there are is no part of it, so that more of them can be added."""
        settings = self._settings.get(request.sampling)
        if settings is None:
            settings = self._settings[request.sampling] = request.sampling.model_dump_json(exclude={"n"})
        digest = hashlib.sha256()
        for part in (self._model, request.id, settings):
            digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
        digest.update(array("q", request.prompt_ids).tobytes())
        needed = len(request.prompt_ids) + request.sampling.max_tokens + _BETWEEN
        if self._context is not None and needed > self._context:
            digest.update(f"context {self._context}\0".encode())
        if request.adapter is not None:
            digest.update(request.adapter.encode("utf-8", "surrogatepass") + b"\0")
        keys = []
        for index in _samples(request):
            sample = digest.copy()
            sample.update(f"/{index}".encode())
            keys.append(sample.hexdigest()[:32])
        return keys


def _record(completion: Completion) -> Record:
    return Record(
        completion.request_id,
        completion.index,
        completion.text,
        completion.finish_reason,
        completion.error,
        len(completion.token_ids),
    )


def _tell_start(journal: Journal, keys: dict[tuple[str, int], str], found: int, console: Console) -> None:
    places = {place for place, key in keys.items() if key not in journal.records}
    changed = journal.places_beside(set(keys.values())) & places if places else ()
    lines = []
    if found == len(keys):
        lines.append(f"all {found} completions are in {journal.file} already; --overwrite makes them anew")
    elif found:
        lines.append(f"going on from {journal.file}: {found} of {len(keys)} completions are there already")
    if changed:
        lines.append(
            f"{len(changed)} completions in {journal.file} were made with another prompt, sampling or model: "
            "they are made anew"
        )
    if journal.damaged:
        lines.append(f"{journal.damaged} lines of {journal.file} are damaged: what they held is made anew")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _with_progress(engine: Engine, requests: Sequence[Request], console: Console) -> Iterator[Completion]:
    """The engine's completions, with a live line of how far it is."""
    if not requests:
        return
    columns: tuple[Any, ...] = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    total = sum(each.sampling.n for each in requests)
    # Closing the generator gives the engine the chance to leave the model as it was, whatever ends the loop.
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        closing(engine.generate(requests)) as completions,
    ):
        line = progress.add_task("", total=total, speed="")
        started = shown = told = time.perf_counter()
        tokens = 0
        for done, completion in enumerate(completions, start=1):
            tokens += len(completion.token_ids)
            now = time.perf_counter()
            speed = f"{tokens / (now - started):,.0f} tokens/s"
            if now - shown > _SHOW_SECONDS or done == total:  # an update costs as much as writing the completion
                shown = now
                progress.update(line, completed=done, speed=speed)
            if now - told > _TELL_SECONDS and not console.is_terminal:
                told = now
                left = timedelta(seconds=round((now - started) / done * (total - done)))
                console.print(f"{done:,} of {total:,} completions, {speed}, {left} left", soft_wrap=True)
            yield completion
