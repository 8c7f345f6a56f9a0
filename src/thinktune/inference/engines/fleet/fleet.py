"""The driver's side of a fleet: hands requests to workers, takes their completions, and replaces workers that die.

Nothing is kept here but what is aboard the workers: what the driver's journal has not got was not answered. So neither
the death of a worker, a machine or the driver loses a completion, and the first completion of a sample is the only one
that counts.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from thinktune.cluster import Resources, cause_of, connect, import_ray
from thinktune.errors import GenerationError, ThinktuneError, UsageError
from thinktune.inference.engines.base import Completion, Engine, Likelihood, Pair, Request
from thinktune.inference.engines.fleet.work import Cargo, Work
from thinktune.inference.engines.fleet.worker import Description, Opening, Worker
from thinktune.version import __version__

logger = logging.getLogger(__name__)

_MOST_LOSSES = 12  # workers in a row without a completion: enough to halve what is aboard down to one request
_MOST_FAILED_STARTS = 3  # in a row
_LOOK = 1.0  # seconds after which to see whether there is something to hand out
_EXPECTED_SECONDS = 120.0  # in which an engine starts
_TELL_SECONDS = 60.0  # between two notices that there is no worker
_CLOSING_SECONDS = 30.0
_SILENT_SECONDS = 20.0  # until a worker is given up; it answers each second, and Ray waits over a minute for a machine
_PIECE = 512  # pairs of likelihoods sent together


@dataclass(frozen=True)
class Crew:
    """How many workers there are to be, and where.

    Attributes:
        cluster: address of a Ray cluster; None: this host.
        each: resources of each.
    """

    count: int
    each: Resources
    cluster: str | None = None


@dataclass
class _Member:
    """A worker.

    Attributes:
        start: the promise of its description, until that is there.
        answer: the promise of its next completions, while it has requests.
        silent: seconds that it has been waited for.
    """

    actor: Any
    start: Any
    born: float = field(default_factory=time.monotonic)
    place: str = "that was starting"
    slots: int = 0
    answer: Any = None
    silent: float = 0.0
    cargo: Cargo = field(default_factory=Cargo)

    @property
    def is_ready(self) -> bool:
        return self.start is None


class Fleet(Engine):
    """Generates with several workers, each of which holds an engine with its think budgets.

    Args:
        opening: what each worker opens.
        fingerprint: of the model, as it was found on this machine.
        unsupported: of the workers' engine.

    Raises:
        UsageError: there is no such cluster, or it runs other versions; a worker cannot run the model, or has another.
        ThinktuneError: no worker starts.
    """

    def __init__(self, opening: Opening, crew: Crew, fingerprint: str, unsupported: frozenset[str]) -> None:
        self._ray = import_ray()
        self.unsupported = unsupported
        self._opening = opening
        self._crew = crew
        self._fingerprint = fingerprint
        self._failed_starts = self._losses = 0
        self._looked = time.monotonic()
        self._owns_cluster = connect(crew.cluster, crew.count, crew.each)
        self._kind = self._ray.remote(max_restarts=0, max_concurrency=4, **crew.each.as_options())(Worker)
        self._members = [self._hire() for _ in range(crew.count)]
        try:
            self._wait_for_one()
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        """See `Engine.generate`. A worker that dies costs the time of what it had begun, and a restart.

        Raises:
            GenerationError: workers die or fail again and again.
            UsageError: a worker cannot run the model, or has another one.
        """
        work = Work(requests)
        self._losses = 0
        try:
            while True:
                for member in self._members:
                    self._load(member, work)
                if not any(member.cargo.tasks for member in self._members) and not work.left:
                    return
                yield from self._collect(work)
        finally:
            self._drop()

    def stream(self, request: Request) -> Iterator[str]:
        """See `Engine.stream`. The pieces come together, when the last one is written."""
        yield from self._ask("stream", request)

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        """See `Engine.logprobs`."""
        found: list[float] = self._ask("logprobs", prompt_ids, continuation_ids)
        return found

    def likelihoods(self, pairs: Sequence[Pair]) -> Iterator[Likelihood]:
        """See `Engine.likelihoods`. Pieces of the pairs are spread over the workers."""
        size = max(1, min(_PIECE, -(-len(pairs) // (4 * self._crew.count))))
        waiting = deque(range(0, len(pairs), size))
        promised: dict[Any, tuple[_Member, int]] = {}
        found: dict[int, list[Likelihood]] = {}
        at = 0
        while at < len(pairs):
            busy = [member for member, _ in promised.values()]
            for member in self._members:
                if member.is_ready and member not in busy and waiting:
                    start = waiting.popleft()
                    promised[member.actor.likelihoods.remote(pairs[start : start + size])] = member, start
            self._greet()
            ready, _ = self._ray.wait(list(promised), timeout=_LOOK) if promised else ([], [])
            for promise in ready:
                member, start = promised.pop(promise)
                try:
                    found[start] = self._ray.get(promise)
                except self._ray.exceptions.RayError as error:
                    waiting.appendleft(start)
                    self._lose(member, error)
                else:
                    self._losses = 0
            while at in found:
                yield from found.pop(at)
                at += size

    def close(self) -> None:
        ready = [member.actor.close.remote() for member in self._members if member.is_ready]
        if ready:
            self._ray.wait(ready, num_returns=len(ready), timeout=_CLOSING_SECONDS)
        for member in self._members:
            self._ray.kill(member.actor)
        self._members = []
        if self._owns_cluster:
            self._owns_cluster = False
            self._ray.shutdown()

    def _hire(self) -> _Member:
        actor = self._kind.remote()
        return _Member(actor, actor.open.remote(self._opening))

    def _expected(self) -> int:
        """Count the workers that share the work: those that are ready or most likely soon will be."""
        born = time.monotonic() - _EXPECTED_SECONDS
        return sum(member.is_ready or member.born > born for member in self._members)

    def _load(self, member: _Member, work: Work) -> None:
        if not member.is_ready:
            return
        if requests := work.load(member.cargo, member.slots, self._expected()):
            member.actor.put.remote(requests)
        if member.cargo.tasks and member.answer is None:
            member.answer, member.silent = member.actor.take.remote(), 0.0

    def _drop(self) -> None:
        """Let the workers forget what they have aboard."""
        busy = {member.actor.drop.remote(): member for member in self._members if member.cargo.tasks}
        if not busy:
            return
        # To be waited for: the calls of an actor with threads may overtake each other.
        _, late = self._ray.wait(list(busy), num_returns=len(busy), timeout=_CLOSING_SECONDS)
        for promise, member in busy.items():
            member.cargo, member.answer = Cargo(), None
            if promise in late:
                self._replace(member)

    def _collect(self, work: Work) -> Iterator[Completion]:
        """Wait for completions and for new workers, and take what is there."""
        self._greet()
        promised = {member.answer: member for member in self._members if member.answer is not None}
        if not promised:
            time.sleep(_LOOK / 10)
            return
        ready, late = self._ray.wait(list(promised), timeout=_LOOK)
        if len(promised) > 1:
            ready, late = self._ray.wait(list(promised), num_returns=len(promised), timeout=0)
        waited = min(time.monotonic() - self._looked, 2 * _LOOK)  # less than passed, where we were held up ourselves
        self._looked = time.monotonic()
        for promise in late:
            member = promised[promise]
            member.silent += waited
            if member.silent > _SILENT_SECONDS:
                silence = ThinktuneError(f"nothing has been heard from it for {member.silent:.0f} seconds")
                yield from self._lose_cargo(member, silence, work)
        for promise in ready:
            member = promised[promise]
            try:
                completions = self._ray.get(promise)
            except self._ray.exceptions.RayError as error:
                yield from self._lose_cargo(member, error, work)
                continue
            member.answer = None
            for completion in completions:
                if work.finish(member.cargo, completion):
                    self._losses = 0
                    yield completion

    def _greet(self) -> None:
        """Take in the workers whose engines have started."""
        starting = {member.start: member for member in self._members if not member.is_ready}
        if not starting:
            return
        ready, _ = self._ray.wait(list(starting), num_returns=len(starting), timeout=0)
        for promise in ready:
            member = starting[promise]
            try:
                description = self._ray.get(promise)
            except self._ray.exceptions.RayError as error:
                self._refuse_start(member, error)
            else:
                self._admit(member, description)

    def _admit(self, member: _Member, description: Description) -> None:
        """Make a worker one of those that get requests.

        Raises:
            UsageError: it runs another model or another thinktune.
        """
        place = description.place
        if description.version != __version__:
            raise UsageError(
                f"thinktune is {description.version} on {place}, and {__version__} here",
                hint="install the same on all machines, such as by one image",
            )
        if description.fingerprint != self._fingerprint:
            raise UsageError(
                f"{self._opening.reference} is another model on {place} than here, or has another dtype: "
                f"{description.fingerprint} there, {self._fingerprint} here",
                hint="use the same files everywhere, and name the dtype: --load dtype=bfloat16 (or float32)",
            )
        first = next((each for each in self._members if each.is_ready), None)
        if first is None:
            self.context_length, self.slots = description.context_length, description.slots
        elif description.context_length < self.context_length:
            raise UsageError(
                f"{place} has memory for a context of {description.context_length} tokens only, others for "
                f"{self.context_length}",
                hint=f"infer.vllm.max_model_len={description.context_length} makes them equal",
            )
        member.start, member.place, member.slots = None, place, description.slots
        self._failed_starts = 0

    def _refuse_start(self, member: _Member, error: Exception) -> None:
        """Replace a worker that did not start; raise what is wrong if no other would either."""
        if not isinstance(error, self._ray.exceptions.RayTaskError):  # its machine was lost: nothing is wrong with it
            self._lose(member, error)
            return
        cause = cause_of(error)
        self._failed_starts += 1
        if isinstance(cause, UsageError) or self._failed_starts >= _MOST_FAILED_STARTS:
            raise cause
        logger.warning(f"a worker did not start: {cause.message}")
        self._replace(member)

    def _lose_cargo(self, member: _Member, error: Exception, work: Work) -> Iterator[Completion]:
        """Replace a worker that has requests aboard; yield error completions for the request that ended it."""
        reason = self._lose(member, error, f": its {len(member.cargo.tasks)} requests go to others")
        yield from work.give_back(member.cargo, reason)

    def _lose(self, member: _Member, error: Exception, remark: str = "") -> str:
        """Replace a worker that is gone, or whose engine is; return the reason.

        Raises:
            GenerationError: that has happened too often.
        """
        reason = cause_of(error).message
        logger.warning(f"worker {member.place} is gone{remark} ({reason})")
        self._replace(member)
        self._losses += 1
        if self._losses > _MOST_LOSSES:
            raise GenerationError(f"{self._losses} workers ended in a row, without an answer between: {reason}")
        return reason

    def _replace(self, member: _Member) -> None:
        # One that has only been cut off would go on, and keep its GPU.
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(member.actor)
        self._members[self._members.index(member)] = self._hire()

    def _wait_for_one(self) -> None:
        told = time.monotonic()
        while not any(member.is_ready for member in self._members):
            self._ray.wait([member.start for member in self._members], timeout=_LOOK)
            self._greet()
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                logger.info(f"waiting for the first of {self._crew.count} workers, each with {self._crew.each}")

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Let one worker do something; another if it is lost."""
        while True:
            self._wait_for_one()
            member = next(member for member in self._members if member.is_ready)
            try:
                result = self._ray.get(getattr(member.actor, method).remote(*arguments))
            except self._ray.exceptions.RayTaskError as error:
                raise cause_of(error) from None
            except self._ray.exceptions.RayError as error:
                self._lose(member, error)
            else:
                self._losses = 0
                return result
