"""The user's cache folder, and checks for free disk space."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinktune.errors import DiskFull
from thinktune.files import telling_full_disk


def cache_folder() -> Path:
    """Return `$THINKTUNE_CACHE`, else the user's cache folder of the system."""
    if own := os.environ.get("THINKTUNE_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "thinktune"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "thinktune" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thinktune"


@contextmanager
def space_required(folder: Path, size: int, what: str) -> Iterator[None]:
    """Check before a block that `size` bytes fit on the disk of `folder`, and explain it if they then do not.

    Raises:
        DiskFull: no space left.
    """
    require_space(folder, size, what)
    with telling_full_disk(folder, f"writing {what} to", hint="free some, or choose another place"):
        yield


def require_space(folder: Path, size: int, what: str) -> None:
    """Make sure that `size` bytes fit on the disk of `folder` (which need not exist yet).

    Raises:
        DiskFull: they do not.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < size:
        raise DiskFull(
            f"{what} needs {size / 2**30:.1f} GiB on the disk of {place}, which has {free / 2**30:.1f} GiB free",
            hint="free some space, or choose another place",
        )
