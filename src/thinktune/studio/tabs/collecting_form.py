"""The form that collects rows from a model's own right answers."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from thinktune.errors import ThinktuneError
from thinktune.studio.collecting_jobs import Collecting, Order
from thinktune.studio.events import QUIET
from thinktune.studio.follower import Follower, digest
from thinktune.studio.following import Version
from thinktune.studio.markdown import plain
from thinktune.studio.state import Studio
from thinktune.studio.training_jobs import in_words
from thinktune.studio.translations import Words, label

_CHIPS = {"running": "warn", "done": "good", "stopped": "warn", "failed": "bad"}


class CollectingForm:
    """Builds the form, and shows how far the newest collection has come.

    Args:
        refresh: gives the update of `sources`, the component that offers data, when there are new rows.
    """

    def __init__(self, studio: Studio, refresh: Callable[[str | None, Words], Any], sources: gr.Dropdown) -> None:
        self._studio = studio
        self._refresh = refresh
        with gr.Accordion(label("collect"), open=False, elem_id="collect-box"):
            self._build()
        self._connect(sources)

    def _build(self) -> None:
        names = self._studio.pool.choices()
        gr.Markdown(label("collect_about"))
        with gr.Row():
            self.model = gr.Dropdown(names, value=names[0][1], label=label("model"), elem_id="collect-model")
            self.data = gr.Dropdown(
                self._data(), value="builtin:arithmetic", allow_custom_value=True, label=label("problems_source"),
                elem_id="collect-data",
            )  # fmt: skip
            self.rows = gr.Textbox("collected", label=label("rows_name"), max_length=64, elem_id="collect-name")
        with gr.Row():
            self.count = gr.Number(500, precision=0, minimum=0, label=label("problems_count"), elem_id="collect-count")
            self.each = gr.Number(8, precision=0, minimum=1, label=label("completions"), elem_id="collect-each")
            self.longest = gr.Number(
                512, precision=0, minimum=1, label=label("completion_tokens"), elem_id="collect-tokens"
            )
        self.pairs = gr.Checkbox(label=label("with_pairs"), elem_id="collect-pairs")
        self.command = gr.HTML(elem_id="collect-command")
        with gr.Row(elem_id="collect-actions"):
            self.start = gr.Button(label("collect_start"), variant="primary", elem_id="collect-start")
            self.stop = gr.Button(label("stop"), elem_id="collect-stop")
        self.remark = gr.Markdown(elem_id="collect-remark", latex_delimiters=[])
        self.state = gr.HTML(elem_id="collect-state")
        self._progress = Follower("collect", alone=True)
        self._studio.following.add("collect", lambda _: self._version())

    def _data(self) -> list[str]:
        return ["builtin:arithmetic", *self._studio.trainings.data()]

    @property
    def _inputs(self) -> list[Any]:
        return [self.rows, self.model, self.data, self.count, self.each, self.longest, self.pairs]

    def _connect(self, sources: gr.Dropdown) -> None:
        fields = [field.change for field in self._inputs]
        gr.on(fields, self.tell, self._inputs, [self.command, self.remark], trigger_mode="always_last", **QUIET)
        self.start.click(self.begin, self._inputs, self.remark, **QUIET)
        self.stop.click(self.end, None, self.remark, **QUIET)
        self._progress.follow(self.watch, [sources], [self.state, self.model, self.data, sources])

    def tell(self, request: gr.Request, *fields: Any) -> tuple[str, str]:
        """Return the command line of the form, or its errors."""
        try:
            command = self._studio.collections.command(_order(*fields))
        except ThinktuneError as error:
            return "", plain(Words(request).problem(error), "error")
        return f'<pre class="code" tabindex="0">{escape(in_words(command))}</pre>', ""

    def begin(self, request: gr.Request, *fields: Any) -> str:
        try:
            self._studio.collections.start(_order(*fields))
        except ThinktuneError as error:
            return plain(Words(request).problem(error), "error")
        return ""

    def end(self) -> str:
        if newest := self._studio.collections.newest():
            self._studio.collections.stop(newest.name)
        return ""

    def _version(self) -> Version:
        newest = self._studio.collections.newest()
        return Version(digest(str(newest or "")), newest is not None and newest.state == "running")

    def watch(self, source: str | None, request: gr.Request, shown: str) -> tuple[Any, ...]:
        """Show the newest collection. Outputs: state, models, data, `sources`, and the mark."""
        version, newest = self._version(), self._studio.collections.newest()
        models, data = gr.update(choices=self._studio.pool.choices()), gr.update(choices=self._data())
        words = Words(request)
        values = [_state(newest, words), models, data, self._refresh(source, words)]
        return self._progress.told(values, "", version.name, shown)


def _state(newest: Collecting | None, words: Words) -> str:
    if newest is None:
        return ""
    parts = [newest.name, words(f"collect_{newest.state}")]
    if newest.total:
        parts.append(words("n_of_n", done=newest.done, total=newest.total))
    error = f'<p class="error" role="alert">{escape(words.problem(newest.error))}</p>' if newest.error else ""
    return f'<span class="chip {_CHIPS[newest.state]}" role="status">{escape(" · ".join(parts))}</span>{error}'


def _order(name: str, model: str, data: str, problems: Any, completions: Any, tokens: Any, pairs: bool) -> Order:
    return Order(
        (name or "").strip(), model or "", (data or "").strip(), int(problems or 0), int(completions or 1),
        int(tokens or 1), bool(pairs),
    )  # fmt: skip
