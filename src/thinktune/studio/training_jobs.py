"""Trainings and sweeps: started, stopped and resumed from the page, and still there when it is not.

A training is `thinktune train CONFIG`, `run` where it is to be scored as well, or `sweep`: the command line that the
page shows.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thinktune.config import Config, Load, dump_config, load_config
from thinktune.config.grid import Member, plan_grid, split_values
from thinktune.errors import ConfigError, RunFolderError, UsageError
from thinktune.files import write_text
from thinktune.records import MetricsLine, read_records
from thinktune.run_folder import RunFolder
from thinktune.studio.allowed_settings import require_allowed, require_model
from thinktune.studio.processes import Processes
from thinktune.studio.progress import Progress, find_error, read_progress, read_sweep

State = Literal["trained", "training", "unfinished", "sweep"]
_NAME = re.compile(r"\w[\w.-]{0,63}")
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")
"""Names of files that rows are read from."""
_MOST_MEMBERS = 64  # of a sweep


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

    @property
    def sweeps(self) -> bool:
        """Whether it is the folder of a sweep's members, and no run itself."""
        return self.state == "sweep"


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
        self.processes = Processes(folder)
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
        return self._runs / "studio/data"

    def data(self) -> list[str]:
        """List the data of this machine that trainings may use: given at the start, uploaded, or collected."""
        files = [file for file in sorted(self.uploads.glob("*")) if file.suffix in ROW_FILES]
        return [*self._given, *(str(file) for file in files if ".journal" not in file.suffixes)]

    def take_data(self, file: Path) -> str:
        """Keep an uploaded file of rows, and return its reference.

        Raises:
            UsageError: it is no file of rows by its name.
        """
        if file.suffix not in ROW_FILES:
            raise UsageError(f"{file.name} is no file of rows", hint=f"rows are in {', '.join(ROW_FILES)}")
        stem = re.sub(r"[^\w-]+", "-", file.stem).strip("-")[:60] or "rows"
        self.uploads.mkdir(parents=True, exist_ok=True)
        names = (f"{stem}{number or ''}{file.suffix}" for number in range(1000))
        kept = next(self.uploads / name for name in names if not _differs(self.uploads / name, file))
        shutil.copyfile(file, kept)
        return str(kept)

    def configs(self) -> list[tuple[str, str]]:
        """List the configs of uploaded rows, and of runs, that a training may begin with: name, and path."""
        fitted = [(file.stem, str(file)) for file in sorted(self.uploads.glob("*/*.yaml"))]
        runs = [(f"runs/{run.name}", str(run.folder.config)) for run in self.all() if run.folder.config.is_file()]
        return [*fitted, *runs]

    def fit_config(self, rows: str, model: str) -> str:
        """Write a config fitted to uploaded rows, with some of them held out to score on, and return its path.

        Raises:
            ThinktuneError: the rows cannot be used, or the model's tokenizer cannot be had.
        """
        from thinktune.planner.new_config import write_config

        file = Path(rows)
        require_model(model, self._models())
        names = (f"{file.stem}{number or ''}" for number in range(1000))
        folder = next(self.uploads / name for name in names if not (self.uploads / name).exists())
        return str(write_config(file, folder, model, load=Load()).file)

    def plan(
        self, name: str, config: Path, settings: Sequence[str], *, score: bool = False, grid: Sequence[str] = ()
    ) -> tuple[Config, list[str]]:
        """Return the config of a training that would go to the run `name`, and its command line.

        Args:
            score: also merge the model and score it.
            grid: `key=value,value` to sweep over: the config is that of all members, without it.

        Raises:
            ConfigError, UsageError: settings or the name cannot be used, or not from here.
        """
        out = self._runs / _checked(name)
        if any(setting.partition("=")[0].strip() == "output" for setting in settings):
            raise ConfigError("output is the name of the run", hint="take it out of the further settings")
        chosen = load_config(config, [*settings, f"output={json.dumps(str(out))}"])
        shipped = load_config(config)
        require_allowed(chosen, shipped, self._models(), self.data())
        for member in _members(config, settings, grid):
            require_allowed(member.config, shipped, self._models(), self.data())
        verb = "sweep" if grid else "run" if score else "train"
        return chosen, ["thinktune", verb, str(config), *settings, *grid, f"output={out}"]

    def start(
        self, name: str, config: Path, settings: Sequence[str], *, score: bool = False, grid: Sequence[str] = ()
    ) -> None:
        """Start a training, and score the model after it if asked to; or a sweep. Arguments as for `plan`.

        Raises:
            RunFolderError: there is a run of that name.
            ConfigError, UsageError: see `plan`.
        """
        chosen, command = self.plan(name, config, settings, score=score, grid=grid)
        if RunFolder(chosen.run_folder).exists or self.processes.running(name):
            raise RunFolderError(f"there is a run {name} already", hint="choose another name, or resume it")
        file = self.processes.file(name, "yaml")
        write_text(file, dump_config(chosen))
        self.processes.launch(name, command[1], [str(file), *grid])

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
        self.processes.launch(name, "run", [str(run.folder.config)])

    def progress(self, run: Run) -> Progress:
        """Return how far a run has come."""
        log = self.log(run.name)
        if run.sweeps:
            done = [member.folder.is_trained for member in self.members(run.name)]
            return read_sweep(done, log, runs=self.processes.running(run.name) is not None)
        file = self.processes.file(self._owner(run.name), "log")
        logged = file.stat().st_mtime if file.exists() else 0.0
        return read_progress(run.folder, run.last("step"), log, logged, runs=run.state == "training")

    def members(self, sweep: str) -> list[Run]:
        """List the runs of a sweep that were begun."""
        return [self._read(name) for name in sorted(self._names()) if name.startswith(f"{sweep}/")]

    def resume(self, name: str) -> None:
        """Resume a training from its newest checkpoint.

        Raises:
            RunFolderError: it is running, or trained to its end.
        """
        run, record = self.get(name), self.processes.record(name)
        if not run.folder.config.is_file() and not self.processes.running(name):  # a sweep, or nothing was made yet
            self.processes.launch(name, record["verb"], record["arguments"])
            return
        if run.state != "unfinished":
            raise RunFolderError(f"{name} is {run.state}", hint="only an unfinished training can be resumed")
        scored = record.get("verb") == "run"  # which goes on by itself
        arguments = [str(run.folder.config), *([] if scored else ["--resume"])]
        self.processes.launch(name, "run" if scored else "train", arguments)

    def stop(self, name: str) -> None:
        """Ask the training to save a checkpoint and end; of a member, its sweep."""
        self.processes.stop(self._owner(name))

    def log(self, name: str) -> str:
        """Return the end of a training's output."""
        return self.processes.log(self._owner(name))

    def _owner(self, name: str) -> str:
        """Return the name of the command that trains a run: its own, or its sweep's."""
        sweep, _, member = name.rpartition("/")
        return sweep if member and not self.processes.record(name) and self.processes.record(sweep) else name

    def _names(self) -> set[str]:
        """List run folders, those of sweeps' members too, by their path; sweeps; and those about to become a run."""
        configs = [*self._runs.glob("*/config.yaml"), *self._runs.glob("*/*/config.yaml")]
        found = {str(file.parent.relative_to(self._runs)) for file in configs}
        return found | {name for name in self.processes.names() if self.processes.running(name) or self._lists(name)}

    def _lists(self, name: str) -> bool:
        """Whether a command that has ended is to be seen, although there is no config in a folder of its name: a sweep,
        or one that failed before its folder was made."""
        if (self._runs / name).is_dir():
            return self.processes.record(name).get("verb") == "sweep"
        return bool(find_error(self.processes.log(name)))

    def _read(self, name: str) -> Run:
        run = RunFolder(self._runs / name)
        state: State = "trained" if run.is_trained else "unfinished"
        if self.processes.record(name).get("verb") == "sweep":
            state = "sweep"
        elif self.processes.running(owner := self._owner(name)) and (owner == name or not run.is_trained):
            state = "training"
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

    def _changed(self, name: str) -> float:
        for file in (self._runs / name / "metrics.jsonl", self._runs / name / "config.yaml"):
            if file.exists():
                return file.stat().st_mtime
        return self.processes.file(name, "json").stat().st_mtime


def in_words(command: Sequence[str]) -> str:
    """Write a command line as it is typed."""
    return shlex.join(command)


def _members(config: Path, settings: Sequence[str], grid: Sequence[str]) -> list[Member]:
    if not grid:
        return []
    for setting in settings:
        if len(split_values(setting.partition("=")[2])) > 1:
            raise ConfigError(f"{setting}: commas make several values of it", hint="put the value in quotes")
    return plan_grid(config, [*settings, *grid], most=_MOST_MEMBERS)


def _differs(kept: Path, file: Path) -> bool:
    return kept.exists() and kept.read_bytes() != file.read_bytes()


def _checked(name: str) -> str:
    name = name.strip()
    if not _NAME.fullmatch(name) or name == "studio":
        raise UsageError(f"{name!r} cannot be the name of a run", hint="letters, digits, dots, dashes, underscores")
    return name
