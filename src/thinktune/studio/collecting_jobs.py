"""Rows from a model's own right answers: `thinktune collect`, started from the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinktune.errors import ConfigError, UsageError
from thinktune.studio.allowed_settings import is_remote
from thinktune.studio.processes import Processes
from thinktune.studio.progress import find_error

_NAME = re.compile(r"\w[\w-]{0,63}")
_COUNT = re.compile(r"^([\d,]+) of ([\d,]+) completions", re.MULTILINE)


@dataclass(frozen=True)
class Order:
    """Rows to collect: of how many problems (0: all), and how many completions of each."""

    name: str
    model: str
    data: str
    problems: int
    completions: int
    max_tokens: int
    pairs: bool


@dataclass(frozen=True)
class Collecting:
    """A collection that was started, with its completions so far where they are known, and the error that ended it."""

    name: str
    state: Literal["running", "done", "stopped", "failed"]
    done: int | None = None
    total: int | None = None
    error: str = ""


class Collections:
    """Every collection of rows; they become files of `rows`, where trainings find them.

    Args:
        models, data: those that may be used.
    """

    def __init__(
        self, folder: Path, rows: Path, *, models: Callable[[], Collection[str]], data: Callable[[], Collection[str]]
    ) -> None:
        self._processes = Processes(folder)
        self._rows = rows
        self._models = models
        self._data = data

    def command(self, order: Order) -> list[str]:
        """Return the command line that collects the rows.

        Raises:
            ConfigError, UsageError: it cannot be done, or not from here.
        """
        if not _NAME.fullmatch(order.name):
            raise UsageError(f"{order.name!r} cannot be the name of rows", hint="letters, digits, dashes, underscores")
        if order.model not in self._models():
            raise ConfigError(f"{order.model!r} is none of the studio's models")
        if order.data not in self._data() and not is_remote(order.data, hub=True):
            raise ConfigError(f"{order.data!r} is not of a hub, and the studio was not started with it")
        command = ["thinktune", "collect", order.model, order.data, "-o", str(self._file(order.name))]
        command += ["--n", str(order.completions), "--max-tokens", str(order.max_tokens)]
        if order.problems:
            command += ["--sample", str(order.problems)]
        return [*command, "--pairs", str(self._file(f"{order.name}-pairs"))] if order.pairs else command

    def start(self, order: Order) -> None:
        """Start to collect; or go on, where the same was stopped.

        Raises:
            ConfigError, UsageError: see `command`; or there are rows of that name.
        """
        _, verb, *arguments = self.command(order)
        if self._file(order.name).exists() or self._processes.running(order.name):
            raise UsageError(f"there are rows {order.name} already", hint="choose another name")
        self._rows.mkdir(parents=True, exist_ok=True)
        self._processes.launch(order.name, verb, arguments)

    def stop(self, name: str) -> None:
        self._processes.stop(name)

    def newest(self) -> Collecting | None:
        """Return the collection that was started last."""
        names = sorted(self._processes.names(), key=lambda name: self._processes.file(name, "json").stat().st_mtime)
        return self._read(names[-1]) if names else None

    def _read(self, name: str) -> Collecting:
        log = self._processes.log(name)
        counts = _COUNT.findall(log)
        done, total = (int(count.replace(",", "")) for count in counts[-1]) if counts else (None, None)
        if self._processes.running(name):
            return Collecting(name, "running", done, total)
        if self._file(name).exists():
            return Collecting(name, "done")
        error = find_error(log)
        if not error or error.startswith("stopped"):
            return Collecting(name, "stopped", done, total)
        return Collecting(name, "failed", done, total, error)

    def _file(self, name: str) -> Path:
        return self._rows / f"{name}.jsonl"
