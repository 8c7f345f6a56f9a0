"""Files that thinktune left on disk and can make again: `thinktune clean` lists them, `thinktune clean --delete`
removes them.

Adapters, configs, results and records of runs are never touched. The caches of the hubs' own clients are left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from thinktune.errors import UsageError
from thinktune.imports import BYTECODE
from thinktune.inference.engines.vllm.process import LOGS
from thinktune.models import read_settings
from thinktune.models.builtin import MANIFEST
from thinktune.models.cache import cache_folder
from thinktune.models.folder import is_adapter

Kind = Literal["left-over", "merged", "cache"]
KINDS: dict[Kind, str] = {
    "left-over": "unfinished work of a process that ended early",
    "merged": "merged models of runs whose adapter is there: thinktune merge makes them again",
    "cache": "converted models, and compiled bytecode of libraries: made again at their next use",
}
# As files.replacing names them, export, and the logs of vLLM; with the number of the process.
_TEMPORARY = re.compile(rf"\..+\.(\d+)\.tmp(?:\.gguf)?|{LOGS}(\d+)-.+\.log")


@dataclass(frozen=True)
class Waste:
    """Something that can go, and its size in bytes."""

    path: str
    kind: Kind
    size: int


def find_waste(runs: Path, kinds: Collection[str]) -> list[Waste]:
    """Find everything that can be removed.

    Args:
        runs: a folder of run folders; one that does not exist has none.
        kinds: a selection of `KINDS`.

    Raises:
        UsageError: `runs` is no folder, or an unknown kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise UsageError(f"there is no kind {', '.join(sorted(unknown))}", hint=f"known are {', '.join(KINDS)}")
    if runs.exists() and not runs.is_dir():
        raise UsageError(f"{runs} is no folder", hint="name the folder that your run folders are in")
    cache = cache_folder()
    places: dict[Kind, Iterator[Path]] = {
        "left-over": _left_over(runs, cache),
        "merged": _merged(runs),
        "cache": _cached(cache),
    }
    return [Waste(str(path), kind, _size(path)) for kind in places if kind in kinds for path in places[kind]]


def delete(waste: Waste) -> None:
    """Remove one thing; a model's folder first gets a name under which it is not taken for whole."""
    path = Path(waste.path)
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path if waste.kind == "left-over" else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if doomed != path:
        path.rename(doomed)
    shutil.rmtree(doomed)


def clean(runs: Path, kinds: Collection[str], *, really: bool = False) -> dict[str, Any]:
    """List the findings of `thinktune clean`, and remove them if `really`.

    Returns:
        `{"found": [{"path", "kind", "size"}, …], "bytes": all their sizes, "deleted": whether they are gone}`
    """
    found = find_waste(runs, kinds)
    if really:
        for waste in found:
            delete(waste)
    return {"found": [asdict(each) for each in found], "bytes": sum(each.size for each in found), "deleted": really}


def _left_over(runs: Path, cache: Path) -> Iterator[Path]:
    found = [path for top in (runs, cache) if top.is_dir() for path in sorted(top.rglob(".*.tmp*"))]
    logs = sorted(Path(tempfile.gettempdir()).glob(f"{LOGS}*"))
    for path in [*found, *(log for log in logs if log.lstat().st_uid == os.getuid())]:
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match.group(1) or match.group(2))):
            yield path


def _is_running(process: int) -> bool:
    import psutil

    return psutil.pid_exists(process)


def _merged(runs: Path) -> Iterator[Path]:
    """Find merged models beside their adapter, if everything to make them again is there."""
    for folder in sorted(runs.rglob("merged")) if runs.is_dir() else ():
        if (
            folder.is_dir()
            and not folder.is_symlink()
            and "merge" in read_settings(folder)
            and is_adapter(folder.parent / "adapter")
        ):
            yield folder


def _cached(cache: Path) -> Iterator[Path]:
    """Find converted models and bytecode. All else in a folder that the person chose for a cache is not ours."""
    for manifest in sorted(cache.glob(f"models/*/{MANIFEST}")):
        yield manifest.parent
    if (cache / BYTECODE).is_dir():
        yield cache / BYTECODE


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())
