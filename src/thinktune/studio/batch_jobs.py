"""Question files answered in the background, one after the other, by one model after the other. A job is a folder,
so that it outlives page and server.

In it: `questions.jsonl` as it was uploaded, `job.json` with models, profile and state, and the result file of each
model with its journal: `results.json`, `results-1.json`, … A job that was running when a server ended goes on with the
next.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from rich.console import Console

from thinktune.config import SEED, Infer, Profile
from thinktune.errors import BatchFileError, Interrupted, ThinktuneError, UsageError
from thinktune.files import write_json
from thinktune.inference.batch import infer
from thinktune.inference.batch_file import Item, read_batch_file
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.profiles import samplings
from thinktune.studio.known_answers import golds_of
from thinktune.studio.model_pool import Pool, reason

State = Literal["running", "done", "stopped", "failed"]
MOST_BYTES = 16 * 2**20
MOST_ITEMS = 20_000


@dataclass(frozen=True)
class Job:
    """The contents of job.json. `total` counts the completions of all models."""

    name: str
    models: tuple[str, ...]
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
        self._began: dict[str, tuple[float, int]] = {}  # when a job began to run here, and the answers it had then
        self._items: dict[str, tuple[list[Item], dict[str, Any]]] = {}  # of the job looked at last
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

    def add(self, file: Path, models: Sequence[str], profile: Profile, think_budget: int | None) -> Job:
        """Copy a batch file into a new job, and run it when its turn comes.

        Raises:
            BatchFileError: see `check`.
            ConfigError: the budget leaves no room for answers.
            UsageError: there is no such model.
        """
        items = check(file, profile, think_budget)
        models = tuple(dict.fromkeys(models))
        if unknown := set(models) - set(self._pool.names()):
            raise UsageError(f"the studio has no model {min(unknown)!r}")
        stem = re.sub(r"[^\w.-]+", "-", file.stem).strip("-.")[:40] or "batch"
        with self._lock:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}"
            while (self._folder / name).exists():
                name += "-1"
            (self._folder / name).mkdir(parents=True)
        shutil.copyfile(file, self._folder / name / "questions.jsonl")
        total = len(models) * sum(item.sampling.n for item in items)
        job = Job(name, models, profile, think_budget, total)
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

    def files(self, job: Job) -> list[Path]:
        """Return the result file of each model, whether it is there or not."""
        names = (f"results-{at}.json" if at else "results.json" for at in range(len(job.models)))
        return [self._folder / job.name / name for name in names]

    def results(self, name: str) -> list[tuple[int, Path]]:
        """Return the result files that are there, with their model's place."""
        return [(at, file) for at, file in enumerate(self.files(self.get(name))) if file.exists()]

    def items(self, name: str) -> list[Item]:
        """Return the items of a job, as they were uploaded."""
        return self._read_items(name)[0]

    def golds(self, name: str) -> dict[str, Any]:
        """Return the gold records of a job's file, by id."""
        return self._read_items(name)[1]

    def _read_items(self, name: str) -> tuple[list[Item], dict[str, Any]]:
        found = self._items.get(name)
        if found is None:
            job = self.get(name)
            file = self._folder / job.name / "questions.jsonl"
            found = check(file, job.profile, job.think_budget), golds_of(file)
            self._items = {name: found}
        return found

    def done(self, name: str) -> int:
        """Count the finished completions."""
        return sum(count_lines(_journal(file)) for file in self.files(self.get(name)))

    def seconds_left(self, name: str) -> float | None:
        """Return the seconds that a running job still takes at its speed so far; None if that is not known yet."""
        began, before = self._began.get(name, (0.0, 0))
        done = self.done(name)
        if not began or done <= before:
            return None
        return (time.monotonic() - began) / (done - before) * max(0, self.get(name).total - done)

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
            self._began[name] = time.monotonic(), self.done(name)
            for model, out in zip(job.models, self.files(job), strict=True):
                opened = self._pool.open(model, self._handles[name])
                infer(opened, items, out, name=model, console=Console(quiet=True))
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
            fields = json.loads(file.read_text(encoding="utf-8"))
            models = [fields.pop("model")] if "model" in fields else fields["models"]  # earlier jobs have one
            return Job(**{**fields, "models": tuple(models)})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or not ours
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


def faults(file: Path) -> list[str]:
    """Return the faults of a batch file's lines, with their numbers; none if it cannot be read line by line."""
    try:
        return [item.problem for item in read_batch_file(file, skip_bad=True) if item.problem]
    except BatchFileError:
        return []


def _journal(result: Path) -> Path:
    return result.with_name(f"{result.stem}.journal.jsonl")


def types_of(items: list[Item]) -> Iterator[str]:
    for kind, count in Counter(item.type for item in items).most_common():
        yield f"{count} {kind}"


def count_lines(file: Path) -> int:
    """Count the whole lines of a file that may still be written to; 0 if there is none."""
    if not file.exists():
        return 0
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(2**20), b""))
