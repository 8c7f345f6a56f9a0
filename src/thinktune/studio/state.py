"""State shared by the tabs: the models, the folders, and the answers in progress."""

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
    """The requests of each open page, so that its stop button stops its own and no others."""

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
        """Stop all requests of a page whose answers nobody wants to see any more."""
        with self._lock:
            for ticket in self._tickets.pop(session, ()):
                ticket.stop()

    def stop_all(self) -> None:
        """Stop the requests of every page: the server ends."""
        with self._lock:
            for tickets in self._tickets.values():
                for ticket in tickets:
                    ticket.stop()

    def holds(self, session: str, ticket: Ticket) -> bool:
        """Return whether the page still wants the answer of this ticket."""
        with self._lock:
            return ticket in self._tickets.get(session, ())

    @property
    def active(self) -> int:
        """Number of answers being written or waited for."""
        with self._lock:
            return sum(map(len, self._tickets.values()))


class Studio:
    """
    Attributes:
        runs: the folder of run folders; the studio keeps its own files in its `studio/`.
        may_train: whether the page may start trainings, of `data` besides that of hubs.
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
    """Return the path of a downloadable file of that name; a newer one replaces it, and it goes when the server
    ends."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"]) / "downloads"
    folder.mkdir(exist_ok=True)
    return folder / name
