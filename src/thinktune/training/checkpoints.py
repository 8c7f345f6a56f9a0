"""Checkpoints that say of themselves whether they are whole: sizes and digests of their files, written last.

A power cut may keep a file's name and lose its bytes. So everything is brought onto the disk before the marker is
written, and on resume the marker is not believed but checked.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

from thinktune.errors import ModelError, RunFolderError
from thinktune.files import sync, sync_entry, write_json
from thinktune.models.folder import ADAPTER_WEIGHTS, read_safetensors_header, sha256

logger = logging.getLogger(__name__)

MARKER = "whole.json"
"""Written last into a checkpoint, with the meter's state: a checkpoint without it is not whole."""


def mark_whole(folder: Path, step: int, meter: dict[str, float]) -> None:
    """Write the marker of a checkpoint, once all that lies in it is on the disk."""
    sync(folder)
    files = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MARKER
    }
    write_json(folder / MARKER, {"step": step, "meter": meter, "files": files})
    sync_entry(folder.parent)


def read_marker(folder: Path) -> dict[str, Any]:
    """Read the marker of a checkpoint.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if not (isinstance(marker["step"], int) and isinstance(marker["meter"], dict)):
            raise ValueError("it has no step")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{folder / MARKER} cannot be read: {error}") from None
    return dict(marker)


def damage(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint that has a marker, naming the file; None: it is whole.

    Markers of earlier versions have no digests: there, only files that are cut off or of another kind are seen.
    """
    try:
        marker = read_marker(folder)
    except RunFolderError as error:
        return error.message
    files = marker.get("files")
    for name, expected in (files or {}).items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != expected["size"]:
            return f"{file} has {file.stat().st_size:,} bytes, and should have {expected['size']:,}"
        if sha256(file) != expected["sha256"]:
            return f"{file} differs from the marker"
    return _unreadable(folder) if files is None else None


def _unreadable(folder: Path) -> str | None:
    try:
        if (folder / ADAPTER_WEIGHTS).exists():
            read_safetensors_header(folder / ADAPTER_WEIGHTS)
    except ModelError as error:
        return error.message
    if not any(folder.glob("*.safetensors")):
        return f"{folder / ADAPTER_WEIGHTS} is missing"
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json"):
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if file.suffix == ".pt" and not zipfile.is_zipfile(file):
            return f"{file} is cut off, or no file of PyTorch"
    return None


def whole_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """List step and folder of every checkpoint with a readable marker, oldest first; their files are not read."""
    found = []
    for marker in folder.glob(f"checkpoint-*/{MARKER}"):
        try:
            found.append((int(read_marker(marker.parent)["step"]), marker.parent))
        except RunFolderError:
            continue
    return sorted(found)


def newest_whole(folder: Path) -> tuple[int, Path] | None:
    """Find step and folder of the newest checkpoint whose files match its marker; None: none was ever whole.

    Those cut off while they were written are removed. Damaged ones are put aside as damaged-STEP, and that is said.

    Raises:
        RunFolderError: there are checkpoints, and all of them are damaged.
    """
    for unmarked in folder.glob("checkpoint-*"):
        if not (unmarked / MARKER).exists():
            shutil.rmtree(unmarked)
    marked = sorted(folder.glob("checkpoint-*"), key=_step_by_name, reverse=True)
    damaged: list[tuple[Path, str]] = []
    for checkpoint in marked:
        problem = damage(checkpoint)
        if problem is None:
            for other, what in damaged:
                logger.warning(
                    f"{other.name} is damaged: {what}; it is put aside, and {checkpoint.name} is used instead"
                )
                _put_aside(other)
            return int(read_marker(checkpoint)["step"]), checkpoint
        damaged.append((checkpoint, problem))
    if damaged:
        raise RunFolderError(
            f"no checkpoint in {folder} is whole: " + "; ".join(what for _, what in damaged),
            hint="bring the files back, or start anew with --overwrite",
        )
    return None


def _step_by_name(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _put_aside(checkpoint: Path) -> None:
    place = checkpoint.with_name(f"damaged-{_step_by_name(checkpoint)}")
    if place.exists():
        shutil.rmtree(place)
    checkpoint.rename(place)
