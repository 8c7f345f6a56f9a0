"""Tries a chat template in a process of its own, before it is used in this one.

A template is a program that came with the model. Jinja's sandbox keeps it from files and from Python, not from looping
for ever or from filling the memory.
"""

from __future__ import annotations

import os
import resource
import select
import signal
from typing import Any

import psutil

from thinktune.errors import ModelError

_SECONDS = 10.0
_MEMORY = 2**30  # bytes, beside what this process has already
_LONGEST = 2**20  # characters for a conversation of a hundred
_CONVERSATIONS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user", "assistant", "user"),
)
_TOO_LONG, _TOO_LARGE = b"l", b"m"


def require_harmless(tokenizer: Any) -> None:
    """Render a few short conversations. Errors that the template raises itself are not judged here.

    Raises:
        ModelError: it did not end in time, took too much memory, or wrote far more than there was to write.
    """
    template = str(tokenizer.chat_template)
    if template not in _PROBLEMS:
        _PROBLEMS[template] = _try_template(tokenizer) if hasattr(os, "fork") else ""
    if problem := _PROBLEMS[template]:
        raise ModelError(f"the chat template of {tokenizer.name_or_path or 'this model'} {problem}")


_PROBLEMS: dict[str, str] = {}
"""What is wrong with each template that this process has tried; "" is nothing."""


def _try_template(tokenizer: Any) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _report_and_exit(tokenizer, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        ended = bool(select.select([pipe], [], [], _SECONDS)[0])
        told = pipe.read() if ended else b""
    if not ended:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not ended:
        return f"does not end within {_SECONDS:g} seconds"
    return {_TOO_LONG: "writes texts without measure", _TOO_LARGE: "takes more memory than there is to write"}.get(
        told, ""
    )


def _report_and_exit(tokenizer: Any, writing: int) -> None:
    told = b""
    try:
        limit = psutil.Process().memory_info().vms + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for roles in _CONVERSATIONS:
            try:
                turns = [{"role": role, "content": f"What is {at} + 1?"} for at, role in enumerate(roles)]
                text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                told = _TOO_LONG if len(text) > _LONGEST else told
            except MemoryError:
                told = _TOO_LARGE
            except Exception:  # noqa: BLE001 - the same is raised, and told, where it is really used
                pass
        os.write(writing, told)
    finally:
        os._exit(0)
