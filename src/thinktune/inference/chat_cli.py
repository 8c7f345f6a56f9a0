"""Ask a model and watch it think: `thinktune ask MODEL "question"`, or without a question a small chat."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from thinktune import tags
from thinktune.config import Sampling
from thinktune.errors import GenerationError, UsageError
from thinktune.inference.engines import EngineSettings, Opened, open_engine
from thinktune.inference.engines.base import Request

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def ask(
    reference: str | Path,
    question: str | None,
    *,
    sampling: Sampling,
    settings: EngineSettings | None = None,
    raw: bool = False,
    console: Console | None = None,
    messages: Console | None = None,
) -> None:
    """Answer one question, or hold a conversation if there is none: `thinktune ask`.

    Args:
        settings: how the model is run; None: by transformers, which starts in seconds: in one conversation vLLM is
            ahead of it late, if ever.
        raw: print completions as generated, tags included.
        console: for answers.
        messages: for notices and warnings.

    Raises:
        GenerationError: the question cannot be answered, for example because it is too long.
        UsageError: the question is blank.
        ModelError, …: see `open_engine`.
    """
    if question is not None and not question.strip():
        raise UsageError("the question is blank", hint="leave it out for a conversation")
    console = console or Console()
    messages = messages or Console(stderr=True)
    settings = settings or EngineSettings(engine="transformers")
    with open_engine(reference, settings) as opened:
        opened.engine.require_supported(sampling)
        opened.engine.start()  # a person who is shown a prompt expects to be answered at once
        if question is not None:
            answer(opened, question, sampling, console, raw, messages=messages)
        else:
            chat_loop(opened, sampling, console, raw, messages=messages)


def answer(
    opened: Opened,
    question: str | Sequence[Mapping[str, str]],
    sampling: Sampling,
    console: Console,
    raw: bool = False,
    *,
    messages: Console | None = None,
) -> str:
    """Stream one answer to the console, warn of missing tags, and return the full text, tags included.

    Args:
        question: a question, or a conversation whose last turn is one.
        messages: for the warning; None: standard error.

    Raises:
        GenerationError: see `Engine.stream`.
    """
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
    request = Request("ask", opened.chat.prompt_ids(turns), sampling)
    text = ""
    for piece in _printed(opened.engine.stream(request), console, raw):
        text += piece
    if not raw and (warning := _warning(text)):
        (messages or Console(stderr=True)).print(warning, style="yellow", markup=False, highlight=False)
    return text


def chat_loop(
    opened: Opened,
    sampling: Sampling,
    console: Console,
    raw: bool = False,
    *,
    messages: Console | None = None,
) -> None:
    """Read questions from standard input and answer them, with the conversation so far as context.

    Earlier answers are passed as the model wrote them, thoughts included: so they stand in multi-turn training rows.
    """
    messages = messages or Console(stderr=True)
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() its line editing and history

        messages.print(_HELP, style="dim", highlight=False)
    history: list[dict[str, str]] = []
    while (question := _read_question(interactive, console)) is not None:
        if question == "/clear":
            history.clear()
        elif question == "/exit":
            return
        elif question.startswith("/") and " " not in question:
            messages.print(f"{question} is no command: {_HELP}", highlight=False, markup=False)
        elif question:
            turn = {"role": "user", "content": question}
            try:
                text = answer(opened, [*history, turn], sampling, console, raw, messages=messages)
            except KeyboardInterrupt:
                console.print()
                messages.print("stopped; the question is forgotten", style="dim")
            except GenerationError as error:
                messages.print(f"{error}\n/clear forgets the conversation", markup=False, highlight=False)
            else:
                history += [turn, {"role": "assistant", "content": text}]


def _read_question(interactive: bool, console: Console) -> str | None:
    """Read the next line, stripped; None at the end of input, and an empty line for Ctrl-C."""
    try:
        return input("> " if interactive else "").strip()
    except EOFError:
        if interactive:
            console.print()
        return None
    except KeyboardInterrupt:
        console.print()
        return ""


def _printed(pieces: Iterator[str], console: Console, raw: bool) -> Iterator[str]:
    """Pass pieces on as they come, printing them: raw, or the thought dimmed, a blank line, and the answer plain."""
    view = None if raw else _View(console)
    for piece in pieces:
        if view is None:
            console.file.write(piece)
            console.file.flush()
        else:
            view.feed(piece)
        yield piece
    if view is not None:
        view.finish()
    elif console.is_terminal:
        console.file.write("\n")


class _View:
    """Shows parts of a completion as they become certain; white space around them is left out."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stream = tags.TagStream()
        self._part: tags.Part | None = None
        self._space = ""  # held back: it is printed only if text of the same part follows

    def feed(self, piece: str) -> None:
        for part, text in self._stream.feed(piece):
            self._show(part, text)

    def finish(self) -> None:
        for part, text in self._stream.flush():
            self._show(part, text)
        if self._part is not None:
            self._console.file.write("\n")
        self._console.file.flush()

    def _show(self, part: tags.Part, text: str) -> None:
        if part == "tag" or (not text.strip() and part != self._part):
            return
        if part != self._part:
            self._console.file.write("" if self._part is None else "\n\n")
            self._part, self._space = part, ""
            text = text.lstrip()
        whole = self._space + text
        shown = whole.rstrip()
        self._space = whole[len(shown) :]
        shown = _CONTROL.sub("\ufffd", shown)  # a completion must not drive the terminal
        style = "dim" if part == "think" else None
        self._console.print(shown, style=style, end="", markup=False, highlight=False, soft_wrap=True, emoji=False)
        self._console.file.flush()


def _warning(text: str) -> str | None:
    missing = [tag for tag in tags.TAGS if tag not in text]
    if missing:
        return f"the answer has no {', '.join(missing)}"
    problem = tags.parse(text).problem
    return f"the answer is not well-formed: {problem}" if problem else None
