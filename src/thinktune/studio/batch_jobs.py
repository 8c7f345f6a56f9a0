"""Batch files answered in the background, one after the other. A job is a folder, so that it outlives page and server.

In it: `questions.jsonl` as it was uploaded, `job.json` with model, profile and state, and the result file with its
journal. A job that was running when a server ended goes on when the next one starts.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from rich.console import Console

from thinktune.config import SEED, Infer, Profile
from thinktune.errors import BatchFileError, Interrupted, ThinktuneError, UsageError
from thinktune.files import write_json
from thinktune.inference.batch import infer
from thinktune.inference.batch_file import Item, read_batch_file
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.profiles import samplings
from thinktune.studio.model_pool import Pool, reason

State = Literal["running", "done", "stopped", "failed"]
MOST_BYTES = 16 * 2**20
MOST_ITEMS = 20_000


@dataclass(frozen=True)
class Job:
    """The contents of job.json. `total` counts completions."""

    name: str
    model: str
    profile: Profile
    think_budget: int | None
    total: int
    state: State = "running"
    error: str = ""


class Jobs:
    """The jobs of a studio."""

    def __init__(self, folder: Path, pool: Pool) -> None:
        self._folder = folder
        self._pool = pool
        self._handles: dict[str, RequestHandle] = {}
        self._lock = threading.Lock()
        self._waiting: SimpleQueue[str | None] = SimpleQueue()
        self._worker: threading.Thread | None = None

    def start(self) -> None:
        """Start working, with the jobs that an earlier server left running."""
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        for job in reversed(self.all()):
            if job.state == "running":
                self._enqueue(job.name)

    def close(self) -> None:
        """Stop between two tokens; a running job stays marked as running, and goes on with the next server."""
        if self._worker is None:
            return
        self._waiting.put(None)
        worker, self._worker = self._worker, None
        for handle in list(self._handles.values()):
            handle.stop()
        worker.join(timeout=10)

    def all(self) -> list[Job]:
        """List every job, newest first."""
        found = [self._read(file.parent.name) for file in self._folder.glob("*/job.json")]
        return sorted((job for job in found if job), key=lambda job: job.name, reverse=True)

    def get(self, name: str) -> Job:
        """Read a job.

        Raises:
            UsageError: there is none of that name.
        """
        job = self._read(name) if re.fullmatch(r"[\w.-]+", name) and ".." not in name else None
        if job is None:
            raise UsageError(f"there is no job {name!r}")
        return job

    def add(self, file: Path, model: str, profile: Profile, think_budget: int | None) -> Job:
        """Copy a batch file into a new job, and run it when its turn comes.

        Raises:
            BatchFileError: see `check`.
            ConfigError: the budget leaves no room for answers.
            UsageError: there is no such model.
        """
        items = check(file, profile, think_budget)
        if model not in self._pool.names():
            raise UsageError(f"the studio has no model {model!r}")
        stem = re.sub(r"[^\w.-]+", "-", file.stem).strip("-.")[:40] or "batch"
        with self._lock:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}"
            while (self._folder / name).exists():
                name += "-1"
            (self._folder / name).mkdir(parents=True)
        shutil.copyfile(file, self._folder / name / "questions.jsonl")
        job = Job(name, model, profile, think_budget, sum(item.sampling.n for item in items))
        self._write(job)
        self._enqueue(name)
        return job

    def stop(self, name: str) -> None:
        """Stop a job; `go_on` continues it."""
        job = self.get(name)
        if job.state != "running":
            return
        self._write(replace(job, state="stopped"))
        if handle := self._handles.get(name):
            handle.stop()

    def go_on(self, name: str) -> None:
        job = self.get(name)
        if job.state in ("stopped", "failed"):
            self._write(replace(job, state="running", error=""))
            self._enqueue(name)

    def result(self, name: str) -> Path | None:
        """Return the result file, if it is there."""
        file = self._folder / self.get(name).name / "results.json"
        return file if file.exists() else None

    def done(self, name: str) -> int:
        """Count the finished completions."""
        return count_lines(self._folder / name / "results.journal.jsonl")

    def _enqueue(self, name: str) -> None:
        self._handles[name] = RequestHandle()
        self._waiting.put(name)

    def _work(self) -> None:
        while (name := self._waiting.get()) is not None:
            if self._worker is None:
                return
            if self.get(name).state == "running":
                self._run(name)

    def _run(self, name: str) -> None:
        job = self.get(name)
        folder = self._folder / name
        try:
            items = check(folder / "questions.jsonl", job.profile, job.think_budget)
            opened = self._pool.open(job.model, self._handles[name])
            infer(opened, items, folder / "results.json", name=job.model, console=Console(quiet=True))
        except Interrupted:
            return  # by `stop`, which has said so, or by the end of the server, after which it goes on
        except ThinktuneError as error:
            self._write(replace(job, state="failed", error=reason(error)))
        except Exception as error:  # noqa: BLE001 - one job's fault must not end the thread that works for all
            self._write(replace(job, state="failed", error=f"{type(error).__name__}: {error}"))
        else:
            self._write(replace(job, state="done"))

    def _read(self, name: str) -> Job | None:
        file = self._folder / name / "job.json"
        try:
            return Job(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # not there, or not ours
            return None

    def _write(self, job: Job) -> None:
        write_json(self._folder / job.name / "job.json", asdict(job))


def check(file: Path, profile: Profile = "default", think_budget: int | None = None) -> list[Item]:
    """Read the items of a batch file as the command line would.

    Raises:
        BatchFileError: it cannot be used, or is too large for a page.
        ConfigError: the budget leaves no room for answers.
    """
    if file.stat().st_size > MOST_BYTES:
        raise BatchFileError(f"{file.name} has more than {MOST_BYTES // 2**20} MiB", hint="use thinktune infer")
    settings = samplings(Infer(profile=profile, think_budget=think_budget), SEED)
    items = read_batch_file(file, samplings=settings)
    if len(items) > MOST_ITEMS:
        raise BatchFileError(f"{file.name} has more than {MOST_ITEMS:,} items", hint="use thinktune infer")
    return items


def types_of(items: list[Item]) -> Iterator[str]:
    for kind, count in Counter(item.type for item in items).most_common():
        yield f"{count} {kind}"


def count_lines(file: Path) -> int:
    """Count the whole lines of a file that may still be written to; 0 if there is none."""
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))
