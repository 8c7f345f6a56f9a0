"""Triton's interpreter without what takes half of its time.

For every function that a kernel calls it looks through the whole language for what to patch, and it looks through sums
of integers for overflows, as no GPU does.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@cache
def _builtins(part: Any) -> list[str]:
    return [name for name, member in inspect.getmembers(part) if tl.core.is_builtin(member)]


def _patch_builtin(part: Any, builder: Any, scope: Any) -> None:
    for name in _builtins(part):
        member = getattr(part, name)
        if tl.core.is_builtin(member):  # else it is patched already
            interpreter._patch_attr(part, name, member, builder, scope)


interpreter._patch_builtin = _patch_builtin
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
