"""`thinktune sweep … --workers N`: the members of a sweep side by side, a task of Ray's for each training and scoring.

The run folders are the only state: a task that is retried, after its process or machine was lost, finds there what is
done and goes on, and so does the next call. The base model is scored once, while the first members train; its answers
are copied to each.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from thinktune.cluster import cause_of, connect, import_ray
from thinktune.config import Config
from thinktune.config.grid import Member
from thinktune.errors import DiskFull, Interrupted
from thinktune.inference.engines import EngineSettings
from thinktune.inference.engines.fleet.opening import choose_crew
from thinktune.report.html import write_report
from thinktune.run_folder import RunFolder
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.workflows.sweep import Swept, evaluate_member, in_a_line, plan_sweep, score, train_member

_RETRIES = 3  # of a task whose process or machine is lost
_SAVING_SECONDS = 300.0  # in which a step ends and a checkpoint is written


def sweep_in_parallel(
    file: str | Path,
    overrides: Sequence[str],
    *,
    console: Console,
    overwrite: bool = False,
    workers: int | None = None,
    cluster: str | None = None,
) -> Swept:
    """Train and evaluate every combination of the values in `overrides`, several at a time. See `sweep`.

    Args:
        workers: members at a time, each with a GPU or a share of the cores; None: as many as the cluster has GPUs.
        cluster: address of a Ray cluster that has the folders, too; None: this host.

    Raises:
        As `sweep`, `choose_crew` and `cluster.connect`.
    """
    members = plan_sweep(file, overrides)
    root = members[0].config.run_folder.parent
    crew = choose_crew(EngineSettings(load=members[0].config.load, workers=workers, cluster=cluster))
    owned = connect(crew.cluster, crew.count, crew.each)
    ray = import_ray()
    if overwrite:  # here, as a task that is tried again must not
        for member in members:
            _empty(RunFolder(member.config.run_folder))
    console.print(f"{len(members)} trainings below {root}, {crew.count} at a time", highlight=False)
    tasks = _Tasks(ray, crew.each.as_options())
    try:
        promised = {_submit(tasks, member.config, root): member for member in members}
        return Swept(root, *_wait(ray, promised, console))
    except KeyboardInterrupt:
        tasks.stop()
        raise Interrupted(
            "stopped: members that were in training have saved a checkpoint",
            hint="give the same command again: it goes on where it stopped",
        ) from None
    except BaseException:
        tasks.stop()
        raise
    finally:
        if owned:
            ray.shutdown()


class _Tasks:
    """Tasks of Ray's, the same ones only once."""

    def __init__(self, ray: Any, resources: dict[str, int]) -> None:
        self._ray = ray
        self._options = {"max_retries": _RETRIES, **resources}
        self._promised: dict[Any, Any] = {}

    def submit(self, work: Callable[..., None], config: Config, *arguments: Any) -> Any:
        """Hand out a task; return its promise. It waits for those among its arguments."""
        key = work, config.run_folder
        if key not in self._promised:
            self._promised[key] = self._ray.remote(**self._options)(work).remote(os.getcwd(), config, *arguments)
        return self._promised[key]

    def stop(self) -> None:
        """End all tasks as Ctrl-C would, and wait for it."""
        promised = list(self._promised.values())
        for promise in promised:
            self._ray.cancel(promise, force=False)
        self._ray.wait(promised, num_returns=len(promised), timeout=_SAVING_SECONDS)


def _submit(tasks: _Tasks, config: Config, root: Path) -> Any:
    """Hand out the tasks of a member; return the promise of its last one."""
    if config.eval.data is None or not config.eval.base:
        return tasks.submit(_finish, config, None, tasks.submit(_train, config))
    base = config.model_copy(update={"output": root / f"base-{_base_key(config)}"})
    scored = tasks.submit(_score_base, base)  # before the first training, to be there when that has ended
    return tasks.submit(_finish, config, base.run_folder, tasks.submit(_train, config), scored)


def _wait(ray: Any, promised: dict[Any, Member], console: Console) -> tuple[list[Path], dict[str, str]]:
    """Wait for all members; return the run folders that are whole, and the errors of the others by name."""
    waiting, failures = list(promised), {}
    while waiting:
        (ready,), waiting = ray.wait(waiting)
        name = promised[ready].name
        done = f"{len(promised) - len(waiting)} of {len(promised)}: {name}"
        try:
            ray.get(ready)
            console.print(done, highlight=False)
        except ray.exceptions.RayError as error:
            if isinstance(cause := cause_of(error), DiskFull):
                raise cause from None
            failures[name] = in_a_line(cause)
            console.print(f"{done} [bold red]failed[/]: {failures[name]}", highlight=False)
    return [each.config.run_folder for each in promised.values() if each.name not in failures], failures


def _train(folder: str, config: Config) -> None:
    _enter(folder)
    train_member(config, _bench(), Console(quiet=True))


def _score_base(folder: str, config: Config) -> None:
    _enter(folder)
    score(config, "base", _bench(), Console(quiet=True))


def _finish(folder: str, config: Config, base: Path | None, *_done: None) -> None:
    """Score a member, when it is trained and the base model scored."""
    _enter(folder)
    if config.eval.data is not None:
        evaluate_member(config, _bench(), Console(quiet=True), [base] if base else [])
    write_report(config.run_folder)


@cache
def _bench() -> BaseModelCache:
    """Return this process's base model; Ray gives a process without a GPU one task after the other."""
    return BaseModelCache()


def _enter(folder: str) -> None:
    """Go to the driver's working folder, to which relative paths belong."""
    with suppress(OSError):
        os.chdir(folder)


def _base_key(config: Config) -> str:
    """Return what tells apart members whose base models are scored differently."""
    parts = [config.model, config.load.outcome, config.quantize, config.eval.model_dump_json(), config.seed]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def _empty(run: RunFolder) -> None:
    if not run.exists:
        return
    with run.held():
        for path in run.path.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
