"""Commands of thinktune as processes of their own, which neither the page nor the server takes along when it ends.

Process id, command and output of each lie in a folder, under its name, so that the next server finds it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import psutil

from thinktune.files import write_json

_LOG_TAIL = 20_000  # bytes


class Processes:
    """The commands that were started from the page, by name; `folder` holds their records."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[subprocess.Popen[bytes]] = []

    def launch(self, name: str, verb: str, arguments: Sequence[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self.file(name, "log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "thinktune", verb, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C for the server is not for the command
            )
        self._children.append(child)
        created = psutil.Process(child.pid).create_time()
        record = {"pid": child.pid, "created": created, "verb": verb, "arguments": list(arguments)}
        write_json(self.file(name, "json"), record)

    def names(self) -> Iterator[str]:
        """Yield the name of every command that was started, ended ones too."""
        return (unquote(file.stem) for file in self._folder.glob("*.json"))

    def running(self, name: str) -> psutil.Process | None:
        """Return the process of a command; not one that was given the same number later."""
        for child in self._children:
            child.poll()  # so that one that has ended does not stay as a zombie
        try:
            record = self.record(name)
            process = psutil.Process(record["pid"])
            same = abs(process.create_time() - record["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except (KeyError, psutil.Error):
            return None
        return process if same else None

    def stop(self, name: str) -> None:
        """Ask a command to save its work and end."""
        if process := self.running(name):
            process.send_signal(signal.SIGTERM)

    def record(self, name: str) -> dict[str, Any]:
        """Return process id, creation time, verb and arguments of a command; nothing if there is none of that name."""
        try:
            found = json.loads(self.file(name, "json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def log(self, name: str) -> str:
        """Return the end of a command's output."""
        file = self.file(name, "log")
        if not file.exists():
            return ""
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _LOG_TAIL))
            return stream.read().decode("utf-8", "replace")

    def file(self, name: str, kind: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.{kind}"
