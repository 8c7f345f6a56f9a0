"""The last lines of a verb: the commands that come next, on stderr, ready to be copied."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

Step = tuple[str, str]
"""A command and its effect."""


def command(*words: object) -> str:
    """Write a command as a shell reads it."""
    return shlex.join(["thinktune", *map(str, words)])


def suggest(*steps: Step) -> None:
    """Print what can be done next. Commands are not broken into lines: they are there to be copied."""
    for number, (line, effect) in enumerate(steps):
        print(f"{'      ' if number else 'next: '}{line}\n          {effect}", file=sys.stderr)


def after_training(run: Path, questions: Sequence[str]) -> Iterator[Step]:
    """Suggest how to try the model of a run."""
    yield command("ask", run, *questions[:1]), "ask it; without a question, hold a conversation"
    yield command("demo", run), "the studio: tuned beside base on a web page (pip install 'thinktune[demo]')"
