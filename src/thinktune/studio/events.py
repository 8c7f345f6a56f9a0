"""What an answer of the server may do to a page on which somebody goes on typing: nothing to what was typed since."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import gradio as gr

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
"""Settings of events that are answered once: each by the answer to its own request, which is there or fails. Gradio's
queue answers over a stream that all events of a page share, and with it lose (`following`)."""
STREAMED: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""Settings of events that are answered bit by bit, for which there is nothing but the queue."""
_FILL = """({sent, values}, ...now) => {
    const written = (value) => JSON.stringify(value ?? "");  // a box is null until the page has drawn it
    return now.map((value, at) =>
        values[at] !== null && written(value) === written(sent[at]) ? values[at] : undefined);
}"""
"""Gives each box its value, unless it holds another one than when the event was sent; what is undefined is left."""


def fill(
    event: Callable[..., Any],
    act: Callable[..., tuple[Any, ...]],
    inputs: Sequence[Any],
    boxes: Sequence[Any],
    outputs: Sequence[Any] = (),
    **settings: Any,
) -> None:
    """Let an event fill boxes; one that was changed while the server was at work keeps what is in it.

    Args:
        act: called with the request and the values of `inputs`; returns a value for each box (None: leave it), and then
            the `outputs`.
    """
    carrier = gr.JSON(visible=False)

    def answer(request: gr.Request, *values: Any) -> Any:
        given, sent = values[: len(inputs)], values[len(inputs) :]
        filled, *rest = act(request, *given)
        told = {"sent": list(sent), "values": list(filled)}
        return (told, *rest) if rest else told

    answered = event(answer, [*inputs, *boxes], [carrier, *outputs], **settings)
    answered.success(None, [carrier, *boxes], list(boxes), js=_FILL, show_progress="hidden", api_visibility="private")


def ending_in_silence(outputs: int) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """Let a generator of answers end with one that says nothing.

    Gradio sends the last answer of a generator a second time when it has ended, over all that has been typed, chosen or
    shown since; and of one without any answer, that every output is empty.
    """

    def decorate(generate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @wraps(generate)
        def answers(*arguments: Any, **named: Any) -> Iterator[Any]:
            yield from generate(*arguments, **named)
            yield tuple(gr.skip() for _ in range(outputs))

        return answers

    return decorate
