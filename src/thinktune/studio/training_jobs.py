"""Trainings as processes of their own: started, stopped and resumed from the page, and still there when it is not.

A training is `python -m thinktune train CONFIG`, or `run` where it is to be scored as well: the command line that the
page shows. Its config, its output and its process id lie in the studio's folder, so that the next server finds it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

import psutil

from thinktune.config import Config, dump_config, load_config
from thinktune.errors import ConfigError, RunFolderError, UsageError
from thinktune.files import write_json, write_text
from thinktune.records import MetricsLine, read_records
from thinktune.run_folder import RunFolder
from thinktune.studio.allowed_settings import require_allowed
from thinktune.studio.progress import Progress, read_progress

State = Literal["trained", "training", "unfinished"]
_NAME = re.compile(r"\w[\w.-]{0,63}")
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")
"""Names of files that rows are read from."""
_LOG_TAIL = 20_000  # bytes


@dataclass(frozen=True)
class Run:
    """A run folder as the page lists it."""

    name: str
    folder: RunFolder
    state: State
    metrics: list[dict[str, Any]]

    def last(self, key: str) -> Any:
        """Return the newest value of a key in metrics.jsonl."""
        return next((line[key] for line in reversed(self.metrics) if key in line), None)


class Trainings:
    """Every run in a folder, and the processes that train them."""

    def __init__(
        self, runs: Path, folder: Path, *, models: Callable[[], Collection[str]] = tuple, data: Collection[str] = ()
    ) -> None:
        """
        Args:
            models, data: those that a training may use besides those of configs and hubs.
        """
        self._models = models
        self._given = tuple(data)
        self._runs = runs
        self._folder = folder
        self._children: list[subprocess.Popen[bytes]] = []
        self._metrics: dict[Path, tuple[tuple[int, ...], list[dict[str, Any]]]] = {}

    def all(self) -> list[Run]:
        """List every run, newest first; one that is being prepared too."""
        return sorted(map(self._read, self._names()), key=lambda run: -self._changed(run.name))

    def get(self, name: str) -> Run:
        """Look a run up.

        Raises:
            UsageError: there is none of that name.
        """
        if name not in self._names():
            raise UsageError(f"there is no run {name!r}")
        return self._read(name)

    @property
    def uploads(self) -> Path:
        """The folder of data that were uploaded from the page."""
        return self._folder.parent / "data"

    def data(self) -> list[str]:
        """List the data of this machine that trainings may use: those given at the start, and uploaded ones."""
        return [*self._given, *(str(file) for file in sorted(self.uploads.glob("*")))]

    def take_data(self, file: Path) -> str:
        """Keep an uploaded file of rows, and return its reference.

        Raises:
            UsageError: it is no file of rows by its name.
        """
        if file.suffix not in ROW_FILES:
            raise UsageError(f"{file.name} is no file of rows", hint=f"rows are in {', '.join(ROW_FILES)}")
        stem = re.sub(r"[^\w.-]+", "-", file.stem).strip("-.")[:60] or "rows"
        self.uploads.mkdir(parents=True, exist_ok=True)
        names = (f"{stem}{number or ''}{file.suffix}" for number in range(1000))
        kept = next(self.uploads / name for name in names if not _differs(self.uploads / name, file))
        shutil.copyfile(file, kept)
        return str(kept)

    def configs(self) -> list[tuple[str, str]]:
        """List the runs whose config a training may begin with: name, and path of the config."""
        return [(run.name, str(run.folder.config)) for run in self.all() if run.folder.config.is_file()]

    def plan(
        self, name: str, config: Path, settings: Sequence[str], *, score: bool = False
    ) -> tuple[Config, list[str]]:
        """Return the config of a training that would go to the run `name`, and its command line.

        Args:
            score: also merge the model and score it.

        Raises:
            ConfigError, UsageError: settings or the name cannot be used, or not from here.
        """
        out = self._runs / _checked(name)
        if any(setting.partition("=")[0].strip() == "output" for setting in settings):
            raise ConfigError("output is the name of the run", hint="take it out of the further settings")
        chosen = load_config(config, [*settings, f"output={json.dumps(str(out))}"])
        require_allowed(chosen, load_config(config), self._models(), self.data())
        command = ["thinktune", "run" if score else "train", str(config), *settings, f"output={out}"]
        return chosen, command

    def start(self, name: str, config: Path, settings: Sequence[str], *, score: bool = False) -> None:
        """Start a training, and score the model after it if asked to.

        Raises:
            RunFolderError: there is a run of that name.
            ConfigError, UsageError: see `plan`.
        """
        chosen, _ = self.plan(name, config, settings)
        if RunFolder(chosen.run_folder).exists or self.process(name):
            raise RunFolderError(f"there is a run {name} already", hint="choose another name, or resume it")
        file = self._file(name, "yaml")
        write_text(file, dump_config(chosen))
        self._launch(name, "run" if score else "train", [str(file)])

    def score(self, name: str) -> None:
        """Merge a trained run, and score it and its base as its config says.

        Raises:
            RunFolderError: it is not trained, or at work.
            UsageError: its config names no problems.
        """
        run = self.get(name)
        if run.state != "trained":
            raise RunFolderError(f"{name} is {run.state}", hint="only a trained run can be scored")
        if run.folder.read_config().eval.data is None:
            raise UsageError(f"the config of {name} names no problems to be scored on", hint="thinktune eval does it")
        self._launch(name, "run", [str(run.folder.config)])

    def progress(self, run: Run) -> Progress:
        """Return how far a run has come."""
        file = self._file(run.name, "log")
        logged = file.stat().st_mtime if file.exists() else 0.0
        works = run.state == "training"
        return read_progress(run.folder, run.last("step"), self.log(run.name), logged, runs=works)

    def resume(self, name: str) -> None:
        """Resume a training from its newest checkpoint.

        Raises:
            RunFolderError: it is running, or trained to its end.
        """
        run = self.get(name)
        if run.state != "unfinished":
            raise RunFolderError(f"{name} is {run.state}", hint="only an unfinished training can be resumed")
        scored = self._record(name).get("verb") == "run"  # which goes on by itself
        self._launch(name, "run" if scored else "train", [str(run.folder.config), *([] if scored else ["--resume"])])

    def stop(self, name: str) -> None:
        """Ask the training to save a checkpoint and end."""
        if process := self.process(name):
            process.send_signal(signal.SIGTERM)

    def process(self, name: str) -> psutil.Process | None:
        """Return the process that trains a run now; not one that was given the same number later."""
        for child in self._children:
            child.poll()  # so that one that has ended does not stay as a zombie
        try:
            record = self._record(name)
            process = psutil.Process(record["pid"])
            same = abs(process.create_time() - record["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except (KeyError, psutil.Error):
            return None
        return process if same else None

    def _record(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._file(name, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def log(self, name: str) -> str:
        """Return the end of a training's output."""
        file = self._file(name, "log")
        if not file.exists():
            return ""
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _LOG_TAIL))
            return stream.read().decode("utf-8", "replace")

    def _launch(self, name: str, verb: str, arguments: Sequence[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._file(name, "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "thinktune", verb, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C for the server is not for the training
            )
        self._children.append(child)
        created = psutil.Process(child.pid).create_time()
        write_json(self._file(name, "json"), {"pid": child.pid, "created": created, "verb": verb})

    def _names(self) -> set[str]:
        """List run folders, those of sweeps too, by their path; and those about to become one."""
        configs = [*self._runs.glob("*/config.yaml"), *self._runs.glob("*/*/config.yaml")]
        found = {str(file.parent.relative_to(self._runs)) for file in configs}
        started = (unquote(file.stem) for file in self._folder.glob("*.json"))
        return found | {name for name in started if self.process(name)}

    def _read(self, name: str) -> Run:
        run = RunFolder(self._runs / name)
        state: State = "training" if self.process(name) else "trained" if run.is_trained else "unfinished"
        return Run(name, run, state, self._read_metrics(run.metrics))

    def _read_metrics(self, file: Path) -> list[dict[str, Any]]:
        """Read metrics.jsonl, unless it is as it was: every open page asks for that of all runs every second or two."""
        try:
            stat = file.stat()
        except FileNotFoundError:
            return []
        state = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if file not in self._metrics or self._metrics[file][0] != state:
            self._metrics[file] = state, read_records(file, MetricsLine)
        return self._metrics[file][1]

    def _file(self, name: str, kind: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.{kind}"

    def _changed(self, name: str) -> float:
        for file in (self._runs / name / "metrics.jsonl", self._runs / name / "config.yaml"):
            if file.exists():
                return file.stat().st_mtime
        return self._file(name, "json").stat().st_mtime


def in_words(command: Sequence[str]) -> str:
    """Write a command line as it is typed."""
    return shlex.join(command)


def _differs(kept: Path, file: Path) -> bool:
    return kept.exists() and kept.read_bytes() != file.read_bytes()


def _checked(name: str) -> str:
    name = name.strip()
    if not _NAME.fullmatch(name) or name == "studio":
        raise UsageError(f"{name!r} cannot be the name of a run", hint="letters, digits, dots, dashes, underscores")
    return name
