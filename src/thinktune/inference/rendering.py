"""Prompts of batch items to token ids: many of them by several processes, as one renders some 5,000 a second.

The processes read pickled conversations from their standard input and end with it, so that none outlives its driver.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from queue import SimpleQueue
from typing import Any, BinaryIO

from thinktune.errors import ThinktuneError
from thinktune.inference.batch_file import Messages
from thinktune.models import Chat

PLENTY = 20_000
"""Conversations from which on starting processes, a few seconds, is worth it."""

_MOST_PROCESSES = 8
_PIECE = 2000  # conversations sent together
_RUN = "from thinktune.inference.rendering import serve; serve()"

Rendered = Sequence[int] | str
"""Token ids, or the reason why there are none."""


def render(chat: Chat, conversations: Sequence[Messages]) -> Iterator[Rendered]:
    """Yield the prompt of each conversation, in order."""
    count = min(_MOST_PROCESSES, len(os.sched_getaffinity(0)))
    if len(conversations) < PLENTY or count == 1 or not chat.can_be_sent:
        return (_render(chat, each) for each in conversations)
    return _render_by_processes(chat, conversations, count)


def serve() -> None:
    """Render what comes on standard input, until it ends."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    chat = pickle.load(source)
    while True:
        try:
            piece = pickle.load(source)
        except EOFError:
            return
        _send([_render(chat, each) for each in piece], target)


def _render(chat: Chat, messages: Messages) -> Rendered:
    try:
        return array("i", chat.prompt_ids(messages))
    except (ThinktuneError, ValueError, TypeError) as error:  # from tokenizers, at text they do not like
        return f"the prompt cannot be rendered: {error}"


def _render_by_processes(chat: Chat, conversations: Sequence[Messages], count: int) -> Iterator[Rendered]:
    pieces = [conversations[at : at + _PIECE] for at in range(0, len(conversations), _PIECE)]
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _RUN],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the driver
            )
            stack.enter_context(process)  # closes its input, and waits for its end
            with suppress(OSError):  # it has died already
                _send(chat, process.stdin)
            idle.put(process)

        def render_piece(piece: Sequence[Messages]) -> list[Rendered]:
            process = idle.get()
            try:
                _send(piece, process.stdin)
                rendered: list[Rendered] = pickle.load(process.stdout)  # type: ignore[arg-type]
                return rendered
            except (OSError, EOFError, pickle.UnpicklingError):  # it has died, or could not read the chat
                return [_render(chat, each) for each in piece]
            finally:
                idle.put(process)

        threads = stack.enter_context(ThreadPoolExecutor(count))
        yield from chain.from_iterable(threads.map(render_piece, pieces))


def _send(value: Any, target: BinaryIO | Any) -> None:
    pickle.dump(value, target, protocol=pickle.HIGHEST_PROTOCOL)
    target.flush()
