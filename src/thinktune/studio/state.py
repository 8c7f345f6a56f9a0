"""What the tabs share: the models, where things are kept, and who is waiting for what."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from thinktune.inference.engines.request_handle import Ticket
from thinktune.studio.batch_jobs import Jobs
from thinktune.studio.model_pool import Pool
from thinktune.studio.training_jobs import Trainings


class Sessions:
    """The tickets of each open page, so that its stop button stops what it asked for and nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets: dict[str, list[Ticket]] = defaultdict(list)

    def open(self, session: str) -> Ticket:
        ticket = Ticket()
        with self._lock:
            self._tickets[session].append(ticket)
        return ticket

    def close(self, session: str, ticket: Ticket) -> None:
        with self._lock:
            held = self._tickets.get(session, [])
            if ticket in held:
                held.remove(ticket)
            if not held:
                self._tickets.pop(session, None)

    def stop(self, session: str) -> None:
        with self._lock:
            for ticket in self._tickets.get(session, ()):
                ticket.stop()

    def drop(self, session: str) -> None:
        """Stop all of a page, whose answers nobody wants to see any more."""
        with self._lock:
            for ticket in self._tickets.pop(session, ()):
                ticket.stop()

    def stop_all(self) -> None:
        """Stop what every page asked for: the server ends."""
        with self._lock:
            for tickets in self._tickets.values():
                for ticket in tickets:
                    ticket.stop()

    def holds(self, session: str, ticket: Ticket) -> bool:
        """Whether the page still wants what belongs to this ticket."""
        with self._lock:
            return ticket in self._tickets.get(session, ())

    @property
    def active(self) -> int:
        """How many answers are being written or waited for."""
        with self._lock:
            return sum(map(len, self._tickets.values()))


class Studio:
    """
    Attributes:
        runs: the folder of run folders; the studio keeps its own files in its `studio/`.
        may_train: whether the page may start trainings, of `data` besides what comes from hubs.
        opened: set when a page has come up in a browser.
    """

    def __init__(self, pool: Pool, runs: Path, *, may_train: bool, data: Sequence[str] = ()) -> None:
        self.pool = pool
        self.runs = runs
        self.folder = runs / "studio"
        self.may_train = may_train
        self.opened = threading.Event()
        self.sessions = Sessions()
        self.jobs = Jobs(self.folder / "batch", pool)
        self.trainings = Trainings(runs, self.folder / "trainings", models=pool.names, data=data)


def download(name: str) -> Path:
    """Where a file of that name lies that the page serves; a newer one takes its place, and it goes when the server
    does."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"]) / "downloads"
    folder.mkdir(exist_ok=True)
    return folder / name
