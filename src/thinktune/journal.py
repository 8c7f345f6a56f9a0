"""Completions, written down one by one as they finish, so that a stopped run goes on with what is missing.

A journal is JSON lines beside the result: `{"key", "id", "index", "text", "finish_reason", "error", "tokens"}`. The key
is a digest of everything that the completion follows from (id, prompt, sampling, model, sample index): what was made
with other settings is never taken for what is wanted now. Each line is with the operating system at once, so that
killing the process loses nothing, and is on the disk within 200 ms, so that a power cut loses little.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thinktune.engines.base import Completion, Engine, FinishReason, Request
from thinktune.errors import DiskFull, Interrupted, UsageError

_SYNC_SECONDS = 0.2


@dataclass(frozen=True)
class Record:
    """A finished completion as the journal keeps it; `tokens` counts what was generated."""

    id: str
    index: int
    text: str
    finish_reason: FinishReason
    error: str | None
    tokens: int


@dataclass(frozen=True)
class Completed:
    """The completions of all requests, by request id and sample index, and what this call had to do for them."""

    records: dict[tuple[str, int], Record]
    generated: int
    generated_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        return self.generated_tokens / self.seconds if self.generated_tokens else None


class Journal:
    """An append-only file of records by key.

    Raises:
        DiskFull: while writing.
        UsageError: the file cannot be opened for writing.
    """

    def __init__(self, file: Path, *, overwrite: bool = False) -> None:
        self.file = file
        self.records: dict[str, Record] = {}
        self._failure: OSError | None = None
        self._dirty = False
        self._closing = threading.Event()
        with telling_full_disk(file):
            self._descriptor = self._open(overwrite)
        self._thread = threading.Thread(target=self._sync_now_and_then, daemon=True)
        self._thread.start()

    def add(self, key: str, record: Record) -> None:
        """Write one record. Errors are written too, but `records` leaves them out: they are tried again."""
        line = json.dumps({"key": key, **asdict(record)}, ensure_ascii=False) + "\n"
        with telling_full_disk(self.file):
            if self._failure:
                raise self._failure
            _write_all(self._descriptor, line.encode())
        self._dirty = True
        self.records[key] = record

    def close(self) -> None:
        """Bring everything to the disk. Safe to call twice."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        with telling_full_disk(self.file):
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, overwrite: bool) -> int:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise UsageError(f"{self.file} cannot be written: {error.strerror}") from None
        whole = 0 if overwrite else self._read()
        # The last line of a killed run may be torn; the next one must not be glued to it.
        os.ftruncate(descriptor, whole)
        return descriptor

    def _read(self) -> int:
        """Take in what is there, and return how many bytes of it are whole lines."""
        whole = 0
        with self.file.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._take(line)
        return whole

    def _take(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
            key = fields.pop("key")
            record = Record(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):  # a damaged line costs its completion, not the run
            return
        if record.error is None:
            self.records[key] = record

    def _sync_now_and_then(self) -> None:
        while not self._closing.wait(_SYNC_SECONDS):
            if self._dirty:
                self._dirty = False
                try:
                    os.fsync(self._descriptor)
                except OSError as error:
                    self._failure = error
                    return


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data` or nothing: what a full disk took of it is cut off again."""
    start = os.lseek(descriptor, 0, os.SEEK_END)
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        os.ftruncate(descriptor, start)
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def telling_full_disk(file: Path) -> Iterator[None]:
    """Turn "no space left" into a `DiskFull` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
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
) -> Completed:
    """Answer all requests through the journal in `file`, generating only what it does not have yet.

    Args:
        model: fingerprint of the model, part of every key.
        console: where to say what goes on (a live line if it is a terminal).
        overwrite: forget what the journal has.

    Raises:
        Interrupted: by Ctrl-C; everything finished is in the journal.
        DiskFull: everything finished before is in the journal.
        GenerationError, OutOfMemory: see `Engine.generate`.
    """
    with Journal(file, overwrite=overwrite) as journal:
        keys = {(each.id, index): key for each in requests for index, key in enumerate(_keys(each, model))}
        missing = [each for each in requests if any(keys[each.id, i] not in journal.records for i in _samples(each))]
        found = sum(key in journal.records for key in keys.values())
        _tell_start(journal, keys, found, console)
        tokens = 0
        started = time.perf_counter()
        try:
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
        records = {place: journal.records[key] for place, key in keys.items()}
    return Completed(records, len(keys) - found, tokens, seconds)


def _samples(request: Request) -> range:
    return range(request.sampling.n)


def _keys(request: Request, model: str) -> list[str]:
    """A key for each sample. How many samples there are is no part of it, so that more of them can be added."""
    digest = hashlib.sha256()
    for part in (model, request.id, request.sampling.model_dump_json(exclude={"n"})):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(array("q", request.prompt_ids).tobytes())
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
    wanted = set(keys.values())
    changed = {(each.id, each.index) for key, each in journal.records.items() if key not in wanted} & {
        place for place, key in keys.items() if key not in journal.records
    }
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
        started, tokens = time.perf_counter(), 0
        for completion in completions:
            tokens += len(completion.token_ids)
            speed = tokens / (time.perf_counter() - started)
            progress.update(line, advance=1, speed=f"{speed:,.0f} tokens/s")
            yield completion
