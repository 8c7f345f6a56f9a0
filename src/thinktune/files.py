"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text(file: Path, text: str) -> None:
    """Replace `file` atomically; a crash or a full disk leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def write_json(file: Path, values: Any) -> None:
    """Replace `file` atomically with indented, not ASCII-escaped JSON."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling path to write a file or folder to; it takes the target's place only on success."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
