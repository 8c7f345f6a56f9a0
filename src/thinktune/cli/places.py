"""Where results go that nobody named a place for: into the run they belong to, else below `runs/`."""

from __future__ import annotations

from pathlib import Path

from thinktune.files import name_of

__all__ = ["RUNS", "find_run", "home_of", "is_run", "name_of"]

RUNS = Path("runs")
_MADE_BY_TRAINING = ("run.json", "data_report.json", "adapter")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder, finished or not; one that only has a config of its user is none."""
    return (folder / "config.yaml").is_file() and any((folder / name).exists() for name in _MADE_BY_TRAINING)


def find_run(reference: str) -> str:
    """Take `quickstart` for runs/quickstart, where that is a run and nothing here has the plain name."""
    if "/" in reference or Path(reference).exists() or not is_run(RUNS / reference):
        return reference
    return str(RUNS / reference)


def home_of(reference: str | Path) -> Path:
    """Return the folder for results of a model or of a file: the run that it is or lies in, else one below `runs/`."""
    path = Path(reference)
    for folder in (path, *path.parents):
        if is_run(folder):
            return folder
    return RUNS / name_of(str(reference))
