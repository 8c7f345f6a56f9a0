"""A function run by several processes, as torchrun would start them: forked from one that has imported everything."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any, NamedTuple

from thinktune.errors import ThinktuneError

_TIMEOUT = 100


class Outcome(NamedTuple):
    """What a process returned or raised, with what it printed on stderr."""

    value: Any
    error: ThinktuneError | None
    said: str


def in_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Outcome]:
    """Run `work(*arguments)` in so many processes of one group, and return the outcome of each, rank 0 first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["thinktune.training.train"])
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_work, args=(rank, count, port, pipe, work, arguments), daemon=True)
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    try:
        return [_received(end, rank) for rank, (end, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(10)
            process.kill()


def _received(end: Any, rank: int) -> Outcome:
    assert end.poll(_TIMEOUT), f"rank {rank} does not end"
    outcome: Outcome = end.recv()
    return outcome


def _work(rank: int, count: int, port: int, pipe: Any, work: Callable[..., Any], arguments: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in place.items()} if count > 1 else {})
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), HF_HUB_OFFLINE="1")
    value = error = None
    with redirect_stderr(io.StringIO()) as said:
        try:
            value = work(*arguments)
        except ThinktuneError as raised:
            error = raised
    pipe.send(Outcome(value, error, said.getvalue()))
