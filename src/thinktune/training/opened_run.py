"""The run folder of a training: checked before anything is loaded, held and opened before the first step."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from thinktune.config import Config, dump_config
from thinktune.data import Prepared
from thinktune.errors import RunFolderError
from thinktune.files import write_json, write_text
from thinktune.run_folder import RunFolder
from thinktune.training.checkpoints import newest_whole
from thinktune.training.ranks import by_first


def check_run(run: RunFolder, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Check that the run folder may be used, before any time is spent on loading."""
    if file := next((place for place in (run.path, *run.path.parents) if place.exists() and not place.is_dir()), None):
        raise RunFolderError(
            f"{run.path} cannot be a run folder: {file} is a file", hint="output=FOLDER goes elsewhere"
        )
    if not run.exists:
        return
    if not run.config.exists():
        raise RunFolderError(f"{run.path} exists and is not a run folder", hint="output=FOLDER goes elsewhere")
    if resume:
        run.require_same_config(config)
        if run.is_trained:
            raise RunFolderError(f"{run.path} is trained to its end", hint="--overwrite trains it anew")
    elif not overwrite:
        hint = "--overwrite starts anew, output=FOLDER goes elsewhere"
        if run.is_trained:
            raise RunFolderError(f"{run.path} holds a finished run", hint)
        raise RunFolderError(f"{run.path} holds an unfinished run", f"--resume goes on, {hint}")


def open_run(run: RunFolder, config: Config, prepared: Prepared, date: dict[str, str], *, overwrite: bool) -> None:
    """Begin the run folder, or go on with the one that is there."""
    for path in run.path.iterdir() if overwrite else ():  # the folder itself is held
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_text(run.config, dump_config(config))
    write_json(run.data_report, {**prepared.report.to_dict(), **date})


def newest_step(run: RunFolder) -> int:
    """Return the step of the newest whole checkpoint; 0: there is none. Damaged ones are named in a notice."""
    newest = newest_whole(run.checkpoints)
    return newest[0] if newest else 0


@contextmanager
def held_run(run: RunFolder) -> Iterator[None]:
    """Hold the run folder within the block, as one training of however many ranks."""
    with ExitStack() as stack:
        by_first(lambda: stack.enter_context(run.held()))
        yield
