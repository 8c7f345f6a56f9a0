"""The tab for runs: all of them in a table, some over each other, and each on a page of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from thinktune.report.candidates import differing_settings, read_settings, read_summary
from thinktune.studio.events import QUIET
from thinktune.studio.follower import Follower, digest
from thinktune.studio.following import Version
from thinktune.studio.state import Studio
from thinktune.studio.tabs.curves import CURVES, colors, curve, plot
from thinktune.studio.tabs.run_page import RunPage
from thinktune.studio.training_jobs import Run
from thinktune.studio.translations import Words, label


class RunsTab:
    """Builds the tab within the running `gr.Blocks`, and answers its events."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._build()

    def _build(self) -> None:
        names = [run.name for run in self._studio.trainings.all()]
        self.run = gr.Dropdown(
            [(label("all_runs"), ""), *names], value="", label=label("which_run"), elem_id="runs-which"
        )
        with gr.Column(elem_id="runs-all") as self.listing:
            self.table = gr.Dataframe(interactive=False, show_label=False, elem_id="runs-table", wrap=True, buttons=[])
            self.chosen = gr.Dropdown([], multiselect=True, label=label("choose_runs"), elem_id="runs-chosen")
            self.legend = gr.HighlightedText(show_label=False, show_inline_category=False, elem_id="runs-legend")
            with gr.Row(elem_id="runs-curves"):
                self.curves = [plot(text, f"runs-{name}") for text, name in CURVES.values()]
            with gr.Accordion(label("differences"), open=False):
                self.differences = gr.Dataframe(
                    interactive=False, show_label=False, elem_id="runs-differences", wrap=True
                )
            self._progress = Follower("runs", alone=True)
        with gr.Column(visible=False, elem_id="run-page") as self.page_column:
            self.page = RunPage(self._studio, self.run)
        self._studio.following.add("runs", lambda _: self._version())
        self._connect()

    def _connect(self) -> None:
        self.run.change(
            lambda name: (gr.update(visible=not name), gr.update(visible=bool(name))), self.run,
            [self.listing, self.page_column], **QUIET,
        )  # fmt: skip
        self.table.select(self.choose, None, self.run, **QUIET)
        self.chosen.change(self.tell, self.chosen, [self.legend, *self.curves, self.differences], **QUIET)
        self._progress.follow(self.watch, [self.chosen], [self.table, *self.curves])

    def show(self, request: gr.Request) -> tuple[Any, ...]:
        """Fill the tab when the page opens, with the run that its address names. Outputs: table, chosen runs, the run,
        and the tabs of the page."""
        words = Words(request)
        runs = self._studio.trainings.all()
        names = [run.name for run in runs]
        wanted = dict(request.query_params).get("run", "") if request.query_params else ""
        choices = [(words("all_runs"), ""), *names]
        one = gr.update(choices=choices, value=wanted) if wanted in names else gr.update(choices=choices)
        tabs = gr.Tabs(selected="runs") if wanted in names else gr.skip()
        return _table(runs, words), gr.update(choices=names, value=names[:2]), one, tabs

    @property
    def opened(self) -> list[Any]:
        """The components that `open` fills."""
        return [self.run, self.listing, self.page_column, *self.page.shown]

    def open(self, name: str, words: Words) -> tuple[Any, ...]:
        """Show a run that has just been started: all in one answer, as each further one waits for a machine that is
        busy by now."""
        names = [run.name for run in self._studio.trainings.all()]
        run = gr.update(choices=[(words("all_runs"), ""), *names], value=name)
        return run, gr.update(visible=False), gr.update(visible=True), *self.page.fill(name, words)

    def choose(self, chosen: gr.SelectData) -> Any:
        """Open the run of the row that was clicked."""
        name = str(chosen.row_value[0]) if chosen.row_value else ""
        return name if name in {run.name for run in self._studio.trainings.all()} else gr.skip()

    def tell(self, chosen: list[str], request: gr.Request) -> tuple[Any, ...]:
        runs = self._runs(chosen)
        return (
            gr.update(value=[(run.name, run.name) for run in runs], color_map=colors(runs), visible=len(runs) > 1),
            *(curve(runs, key) for key in CURVES),
            _differences(runs, Words(request)),
        )

    def _version(self) -> Version:
        runs = self._studio.trainings.all()
        state = digest(_table(runs, Words(None))["data"])
        return Version(state, any(run.state == "training" for run in runs))

    def watch(self, chosen: list[str], request: gr.Request, shown: str) -> tuple[Any, ...]:
        """Update the table and the curves."""
        version, runs = self._version(), self._runs(chosen)
        table = _table(self._studio.trainings.all(), Words(request))
        return self._progress.told([table, *(curve(runs, key) for key in CURVES)], "", version.name, shown)

    def _runs(self, chosen: Sequence[str]) -> list[Run]:
        known = {run.name: run for run in self._studio.trainings.all()}
        return [known[name] for name in chosen if name in known]


def _table(runs: Sequence[Run], words: Words) -> dict[str, Any]:
    headers = ["name", "state", "step", "loss", "held_out_loss", "accuracy", "format_rate", "tokens_per_second"]
    return {"headers": [words(header).lower() for header in headers], "data": [list(_row(run, words)) for run in runs]}


def _row(run: Run, words: Words) -> Iterator[str]:
    yield run.name
    yield words(f"state_{run.state}")
    yield str(run.last("step") or "")
    for key in ("loss", "eval_loss"):
        value = run.last(key)
        yield "" if value is None else f"{value:.4f}"
    summary = read_summary(run.folder, "tuned") or {}
    for key, during in (("accuracy", "eval_accuracy"), ("format_rate", "eval_format_rate")):
        value = summary.get(key, run.last(during))
        yield "" if value is None else f"{value:.1%}"
    speed = run.last("tokens_per_second")
    yield "" if speed is None else f"{speed:,.0f}"


def _differences(runs: Sequence[Run], words: Words) -> dict[str, Any]:
    there = [run for run in runs if run.folder.config.exists()]
    found = differing_settings([read_settings(run.folder) for run in there])
    rows = [[key, *(json.dumps(value, ensure_ascii=False) for value in values)] for key, values in found.items()]
    return {"headers": [words("setting"), *(run.name for run in there)], "data": rows}
