"""State shared by the tabs: the models, the folders, and the answers in progress."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.studio.batch_jobs import Jobs
from thinktune.studio.collecting_jobs import Collections
from thinktune.studio.following import Following
from thinktune.studio.known_answers import KnownAnswers
from thinktune.studio.model_pool import Pool
from thinktune.studio.training_jobs import Trainings


class Sessions:
    """The requests of each open page, so that its stop button stops its own and no others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: dict[str, list[RequestHandle]] = defaultdict(list)

    def open(self, session: str) -> RequestHandle:
        handle = RequestHandle()
        with self._lock:
            self._handles[session].append(handle)
        return handle

    def close(self, session: str, handle: RequestHandle) -> None:
        with self._lock:
            held = self._handles.get(session, [])
            if handle in held:
                held.remove(handle)
            if not held:
                self._handles.pop(session, None)

    def stop(self, session: str) -> None:
        with self._lock:
            for handle in self._handles.get(session, ()):
                handle.stop()

    def drop(self, session: str) -> None:
        """Stop all requests of a page whose answers nobody wants to see any more."""
        with self._lock:
            for handle in self._handles.pop(session, ()):
                handle.stop()

    def stop_all(self) -> None:
        """Stop the requests of every page: the server ends."""
        with self._lock:
            for handles in self._handles.values():
                for handle in handles:
                    handle.stop()

    def holds(self, session: str, handle: RequestHandle) -> bool:
        """Return whether the page still wants the answer of this handle."""
        with self._lock:
            return handle in self._handles.get(session, ())

    @property
    def active(self) -> int:
        """Number of answers being written or waited for."""
        with self._lock:
            return sum(map(len, self._handles.values()))


class Studio:
    """
    Attributes:
        runs: the folder of run folders; the studio keeps its own files in its `studio/`.
        may_train: whether the page may start trainings, of `data` besides that of hubs.
        opened: set when a page has come up in a browser.
        known: the questions whose answer is known.
    """

    def __init__(self, pool: Pool, runs: Path, *, may_train: bool, data: Sequence[str] = ()) -> None:
        self.pool = pool
        self.runs = runs
        self.folder = runs / "studio"
        self.may_train = may_train
        self.opened = threading.Event()
        self.sessions = Sessions()
        self.following = Following()
        self.known = KnownAnswers(runs)
        self.jobs = Jobs(self.folder / "batch", pool)
        self.trainings = Trainings(runs, self.folder / "trainings", models=pool.names, data=data)
        self.collections = Collections(
            self.folder / "collecting", self.trainings.uploads, models=pool.names, data=self.trainings.data
        )


def download(name: str) -> Path:
    """Return the path of a downloadable file of that name; a newer one replaces it, and it goes when the server
    ends."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"]) / "downloads"
    folder.mkdir(exist_ok=True)
    return folder / name
