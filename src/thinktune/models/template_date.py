"""One date for all calls that belong together, if a chat template reads the clock (Llama 3 writes the date).

A run's is recorded in its data report when training begins, and in thinktune.json for the verbs after it. A model that
is no run is asked with the date on which its journal was begun, so that an inference which goes on tomorrow asks the
same.
"""

from __future__ import annotations

import os
import uuid
from datetime import datetime
from pathlib import Path

from thinktune.files import write_json
from thinktune.models import Chat
from thinktune.models.chat import date_settings, recorded_date
from thinktune.models.folder import read_json


def date_of(file: Path) -> datetime | None:
    """Return the moment recorded in a data report, or beside a journal.

    Raises:
        ModelError: the file cannot be read.
    """
    return recorded_date(read_json(file)) if file.is_file() else None


def hold_date(chat: Chat, journal: Path, *, overwrite: bool, shared: bool = False) -> None:
    """Give a chat the date of a journal, or let a new journal have the chat's.

    Args:
        overwrite: the journal is begun anew.
        shared: it has shards, which all have one date.

    Raises:
        ModelError: the date cannot be read.
    """
    if not chat.dates or chat.is_dated:
        return
    file = journal.with_name(f"{journal.name}.date")
    if overwrite or not (shared or journal.exists()):
        write_json(file, date_settings(chat))
        return
    if not file.exists():
        _write_once(file, date_settings(chat))
    if (begun := date_of(file)) is not None:
        chat.set_date(begun)


def _write_once(file: Path, settings: dict[str, str]) -> None:
    """Write a file unless it is there: of shards that begin together, the first one's counts."""
    own = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    write_json(own, settings)
    try:
        os.link(own, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        own.replace(file)
    own.unlink(missing_ok=True)
