"""The requests of one call of a fleet: those to be handed out, and those that come back when a worker is gone.

A request is suspected when the second worker has gone with it aboard. Suspects go to a worker without others, and are
halved until the one that ends its worker is alone: that one becomes an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field

from thinktune.inference.engines.base import Completion, Request, polling


@dataclass
class Task:
    """A request, the samples of it that are still to come, and how many workers have gone with it aboard."""

    request: Request
    missing: set[int]
    losses: int = 0


@dataclass
class Cargo:
    """The tasks aboard one worker, by the request's id.

    Attributes:
        samples: those that are to come.
        suspected: they are alone because one of them may have ended a worker.
    """

    tasks: dict[str, Task] = field(default_factory=dict)
    samples: int = 0
    suspected: bool = False

    def add(self, task: Task) -> None:
        self.tasks[task.request.id] = task
        self.samples += len(task.missing)

    def take(self, completion: Completion) -> bool:
        """Take in a completion; return False if it is none that is awaited."""
        task = self.tasks.get(completion.request_id)
        if task is None or completion.index not in task.missing:
            return False
        task.missing.discard(completion.index)
        self.samples -= 1
        if not task.missing:
            del self.tasks[completion.request_id]
        return True


class Work:
    """Hands out the tasks of a call.

    Args:
        requests: more may become ready later, if they are a `RequestSource`.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        self._poll: Callable[[], Request | None] = polling(requests)
        self._samples = sum(each.sampling.n for each in requests) if isinstance(requests, Sized) else None
        self._returned: deque[Task] = deque()
        self._suspects: deque[list[Task]] = deque()

    @property
    def left(self) -> bool:
        """Whether there is something to hand out."""
        if not self._returned and not self._suspects and (task := self._take()) is not None:
            self._returned.append(task)
        return bool(self._returned or self._suspects)

    def load(self, cargo: Cargo, slots: int, workers: int) -> list[Request]:
        """Put as many tasks aboard as a worker may have; return their requests.

        It has some more than it writes at once, so that it never waits for us; and no more than its share of all that
        is left, so that all workers end at the same time.
        """
        if self._suspects and not cargo.tasks:
            return self._put(cargo, self._suspects.popleft(), suspected=True)
        most = slots + -(-slots // 4)
        if self._samples is not None:
            most = min(most, max(1, -(-self._samples // workers)))
        return self._put(cargo, self._next(cargo, most), suspected=False) if self._may_take(cargo) else []

    def finish(self, cargo: Cargo, completion: Completion) -> bool:
        """Take in a completion; return False for one that has come before, from a worker that was given up."""
        if not cargo.take(completion):
            return False
        if self._samples is not None:
            self._samples -= 1
        return True

    def give_back(self, cargo: Cargo, reason: str) -> Iterator[Completion]:
        """Take back what was aboard a worker that is gone; yield error completions for the task that ended it."""
        tasks = list(cargo.tasks.values())
        for task in tasks:
            task.losses += 1
        if cargo.suspected:
            if len(tasks) == 1:
                yield from _failures(tasks[0], reason)
                self._samples = None if self._samples is None else self._samples - len(tasks[0].missing)
            else:
                half = (len(tasks) + 1) // 2
                self._suspects.extend(filter(None, (tasks[:half], tasks[half:])))
            return
        self._returned.extend(task for task in tasks if task.losses == 1)
        if suspects := [task for task in tasks if task.losses > 1]:
            self._suspects.append(suspects)

    def _may_take(self, cargo: Cargo) -> bool:
        return not cargo.suspected or not cargo.tasks

    def _next(self, cargo: Cargo, most: int) -> Iterator[Task]:
        while cargo.samples < most and (task := self._take()) is not None:
            yield task

    def _take(self) -> Task | None:
        if self._returned:
            return self._returned.popleft()
        request = self._poll()
        return None if request is None else Task(request, set(range(request.sampling.n)))

    def _put(self, cargo: Cargo, tasks: Iterable[Task], *, suspected: bool) -> list[Request]:
        cargo.suspected = suspected
        requests = []
        for task in tasks:
            cargo.add(task)
            requests.append(task.request)
        return requests


def _failures(task: Task, reason: str) -> Iterator[Completion]:
    for index in sorted(task.missing):
        yield Completion(task.request.id, index, "", (), "error", f"a worker ended at this request: {reason}")
