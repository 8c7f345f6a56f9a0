"""The processes of one training, a GPU each: which of them this is, and how they come to one mind.

torchrun, or launch.py in its place, starts them and sets RANK, WORLD_SIZE and LOCAL_RANK. A process alone is rank 0 of
1: everything here then does nothing, and imports nothing.

A rank that fails says so and ends. The others have no need to be told: what they wait for breaks, or `_watch` sees that
the process is gone, and they end too, silently, with a status of their own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from thinktune.errors import DeviceError, LostRank

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Of the all-reduce of a step. Ranks reach it within a second of one another, or one of them is no more."""
_TALK_TIMEOUT = timedelta(days=1)
"""Of everything else: ranks wait for the first while it saves, or loads data from a slow disk."""
_GRACE = 5.0
"""Seconds in which a rank may end by an error of its own after another one has gone."""

_SIGNS_OF_LOSS = ("connection", "broken pipe", "socket", "peer", "remote process", "aborted")
"""In the messages of gloo, NCCL and the store about a process that is gone."""

_talk: Any = None  # the group on CPUs over which ranks agree
_leave: Callable[[], None] | None = None


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of a training: its number over all hosts, and on its own."""

    rank: int
    size: int
    local: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def here() -> Ranks:
    """Read this process's place from the environment that torchrun sets."""
    rank, size, local = (int(os.environ.get(name, when_alone)) for name, when_alone in _VARIABLES.items())
    return Ranks(rank, size, local)


_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def on_one_host() -> bool:
    """Tell whether all processes of the training are on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == here().size


def was_restarted() -> bool:
    """Tell whether torchrun has started the processes again, after one of them had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def joined(device_name: str) -> Iterator[None]:
    """Hold this process in the group of its training within the block, or until `leave`.

    Args:
        device_name: as `models.device.choose_device` takes it.

    Raises:
        DeviceError: that is one GPU for all of them.
        LostRank: another process has ended.
    """
    global _talk, _leave
    if here().size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    from thinktune.models.device import choose_device

    if ":" in device_name:
        raise DeviceError(f"load.device is {device_name}, and there are several processes", hint="set load.device=auto")
    device = choose_device(device_name)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    _die_with_the_launcher()
    with _losing_others():
        backend, own = ("nccl", device) if on_gpu else ("gloo", None)
        dist.init_process_group(backend, timeout=_COLLECTIVE_TIMEOUT, device_id=own)
        _talk = dist.new_group(backend="gloo", timeout=_TALK_TIMEOUT)
    add_up(torch.zeros(1, device=device))  # NCCL takes its memory now, before anybody looks how much is free
    left = threading.Event()
    threading.Thread(target=_watch, args=(_others_on_this_host(), left), daemon=True).start()

    def leave_group() -> None:
        gathered(None)  # nobody goes while another one still waits for it
        left.set()
        dist.destroy_process_group()

    _leave = leave_group
    yield  # after an error the group is left as it is: the process ends (see cli.main), and the others with it
    leave()


def leave() -> None:
    """Leave the group when all others do, so that the first rank may go on alone."""
    global _talk, _leave
    if _leave is not None:
        _leave()
        _leave = _talk = None


def by_first(work: Callable[[], T]) -> T:
    """Let the first rank do some work, and return its result on all of them."""
    ranks = here()
    if ranks.size == 1:
        return work()
    import torch.distributed as dist

    box: list[Any] = [work() if ranks.is_first else None]
    with _losing_others():
        dist.broadcast_object_list(box, src=0, group=_talk)
    result: T = box[0]
    return result


def host_first(work: Callable[[], T]) -> T:
    """Do some work on all ranks, the first of each host before its others, for which it leaves files in a cache."""
    ranks = here()
    if ranks.local == 0:
        result = work()
        gathered(None)
        return result
    gathered(None)
    return work()


def gathered(value: T) -> list[T]:
    """Return the values of all ranks, the first rank's first."""
    ranks = here()
    if ranks.size == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * ranks.size
    with _losing_others():
        dist.all_gather_object(values, value, group=_talk)
    return values


def agree(value: T, choose: Callable[[list[T]], T]) -> T:
    """Return one choice, such as `max`, of the values of all ranks."""
    return choose(gathered(value))


class Gathering:
    """A tensor that other ranks' parts are on their way to."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self) -> None:
        """Have what is computed from now on wait for them; on a CPU, wait."""
        with _losing_others():
            self._work.wait()


def gather(whole: torch.Tensor, own: torch.Tensor) -> Gathering:
    """Begin to fill `whole` with the `own` of all ranks, one behind another."""
    import torch.distributed as dist

    # By its name of today, or that before torch 2.13.
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    with _losing_others():
        return Gathering(collect(whole, own, async_op=True))


def add_up(tensor: torch.Tensor) -> None:
    """Replace a tensor by its sum over all ranks."""
    import torch.distributed as dist

    with _losing_others():
        dist.all_reduce(tensor)


def may_speak() -> bool:
    """Tell whether this process is the one to print its error: of a group, the first that has one."""
    ranks = here()
    if ranks.size == 1:
        return True
    if _talk is None:  # before they have joined, all processes of a host would say the same
        return ranks.local == 0
    import torch.distributed as dist

    try:
        return bool(dist.distributed_c10d._get_default_store().add("thinktune has failed", 1) == 1)
    except RuntimeError:  # the store went with another rank
        return True


def end(status: int) -> None:
    """End this process; one of several at once, whatever its threads and its group still wait for."""
    if here().size == 1:
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def _losing_others() -> Iterator[None]:
    """Turn the many errors of a broken connection into one; others are this rank's own."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS):
            raise
        raise LostRank(f"another process of this training has ended: {error}") from None


def _others_on_this_host() -> list[int]:
    own = socket.gethostname(), os.getpid()
    others = [pid for host, pid in gathered(own) if host == own[0] and pid != own[1]]
    return [pid for pid in others if _runs(pid)]  # of a container of its own, no other would ever be seen


def _watch(others: list[int], left: threading.Event) -> None:
    """End this process soon after another one on this host: in a collective on a GPU it would wait for minutes, deaf to
    the launcher's SIGTERM, which Python handles between two calls only."""
    while not left.wait(1.0):
        if not all(map(_runs, others)):
            if not left.wait(_GRACE):
                end(LostRank.exit_code)
            return


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _die_with_the_launcher() -> None:
    """Have the system kill this process when the one that started it dies, as nobody else would: it leads a session of
    its own. (Linux)"""
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
