"""Answer requests through a journal: generate only the missing completions, and report the progress."""

from __future__ import annotations

import hashlib
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from thinktune.config import Sampling
from thinktune.errors import Interrupted, UsageError
from thinktune.inference.engines.base import Completion, Engine, Request
from thinktune.inference.journal import Completions, Journal

_SHOW_SECONDS = 0.1
_TELL_SECONDS = 60.0  # between two lines of progress where there is no terminal, as under nohup or in a batch system
_BETWEEN = 64  # tokens that a thought within a budget and its answer may need beside max_tokens


@dataclass(frozen=True)
class Completed:
    """The completions of all requests, by request id and sample index, and the counts of this call's work.

    Attributes:
        seconds: of generating, loading the model excluded.
    """

    completions: Completions
    generated_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        return self.generated_tokens / self.seconds if self.generated_tokens else None


def complete(
    engine: Engine,
    requests: Sequence[Request],
    file: Path,
    *,
    model: str,
    console: Console,
    overwrite: bool = False,
    only_failed: bool = False,
    beside: Sequence[Path] = (),
) -> Completed:
    """Answer all requests through the journal in `file`, generating only the completions that it lacks.

    Args:
        model: fingerprint of the model, part of every key.
        console: place of the progress line (live on a terminal).
        overwrite: begin the journal anew.
        only_failed: generate only completions that the journal has as errors; other missing ones stay missing.
        beside: further journals, whose completions count as there.

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
    with Journal(file, overwrite=overwrite, beside=beside) as journal:
        digests = _Digests(model, engine.context_setting)
        keys = {(each.id, index): key for each in requests for index, key in enumerate(digests.keys(each))}
        wanted = journal.failed if only_failed else {key for key in keys.values() if key not in journal.offsets}
        missing = [each for each in requests if any(keys[each.id, index] in wanted for index in _samples(each))]
        found = sum(key in journal.offsets for key in keys.values())
        _tell_start(journal, keys, found, console)
        tokens = 0
        try:
            if missing:
                engine.start()
            started = time.perf_counter()
            for completion in _with_progress(engine, missing, console):
                tokens += completion.tokens
                key = keys[completion.request_id, completion.index]
                if key not in journal.offsets:
                    journal.add(key, completion)
        except KeyboardInterrupt:
            done = sum(key in journal.offsets for key in keys.values())
            raise Interrupted(
                f"stopped with {done} of {len(keys)} completions finished", hint="the same command goes on from there"
            ) from None
        seconds = time.perf_counter() - started
        offsets = {place: journal.offsets[key] for place, key in keys.items() if key in journal.offsets}
        return Completed(Completions(journal.files(), offsets), tokens, seconds)


def _samples(request: Request) -> range:
    return range(request.sampling.n)


class _Digests:
    """Keys of one model's completions.

    Args:
        context: the context length that a setting limits it to. It is part of the key if it may cut a completion
            short, which is then made anew under another limit.
    """

    def __init__(self, model: str, context: int | None) -> None:
        self._model = model
        self._context = context
        self._settings: dict[Sampling, str] = {}

    def keys(self, request: Request) -> list[str]:
        """Return a key for each sample. The number of samples is no part of it, so that more of them can be added."""
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


def _tell_start(journal: Journal, keys: dict[tuple[str, int], str], found: int, console: Console) -> None:
    places = {place for place, key in keys.items() if key not in journal.offsets}
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
        lines.append(f"{journal.damaged} lines of {journal.file} are damaged: their completions are made anew")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _with_progress(engine: Engine, requests: Sequence[Request], console: Console) -> Iterator[Completion]:
    """Yield the engine's completions, with a live line of the progress."""
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
            tokens += completion.tokens
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
