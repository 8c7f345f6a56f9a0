"""The tab for runs: curves during and after training, differences between runs, their data and samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from thinktune.errors import ThinktuneError
from thinktune.notices import muted
from thinktune.report.compare import differing_settings, read_scores, read_settings
from thinktune.report.data_preview import first_batch
from thinktune.studio.markdown import plain
from thinktune.studio.model_pool import reason
from thinktune.studio.state import Studio
from thinktune.studio.tabs.training_form import TrainingForm
from thinktune.studio.training_jobs import Run
from thinktune.studio.translations import Words, label

_POINTS = 400  # of one curve
_SAMPLES = 50
_LONGEST = 600  # characters of a sample
_CURVES = ("loss", "eval_loss", "eval_accuracy")
_RUN_COLORS = ("#2563eb", "#f97316", "#16a34a", "#a855f7", "#dc2626", "#0891b2", "#ca8a04", "#db2777")
_COLORS = {"context": "#9ca3af", "trained": "#22c55e", "border": "#a855f7", "padding": "#ef4444"}


class RunsTab:
    """Builds the tab within the running `gr.Blocks`, and answers its events."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._build()

    def _build(self) -> None:
        self.table = gr.Dataframe(interactive=False, show_label=False, elem_id="runs-table", wrap=True)
        self.chosen = gr.Dropdown([], multiselect=True, label=label("choose_runs"), elem_id="runs-chosen")
        self.legend = gr.HighlightedText(show_label=False, show_inline_category=False, elem_id="runs-legend")
        with gr.Row():
            self.loss = self._plot("training_loss", "runs-loss")
            self.held_out = self._plot("held_out_loss", "runs-held-out")
            self.right = self._plot("right_rate", "runs-right")
        with gr.Row():
            self.stop = gr.Button(label("stop"), variant="stop", elem_id="runs-stop")
            self.resume = gr.Button(label("resume"), elem_id="runs-resume")
        self.remark = gr.Markdown(elem_id="runs-remark", latex_delimiters=[])
        self.log = gr.Textbox(
            label=label("log"), lines=6, max_lines=14, interactive=False, elem_id="runs-log", visible=False
        )
        with gr.Accordion(label("differences"), open=False):
            self.differences = gr.Dataframe(interactive=False, show_label=False, elem_id="runs-differences", wrap=True)
        with gr.Accordion(label("data_report"), open=False):
            self.data = gr.Dataframe(interactive=False, show_label=False, elem_id="runs-data", wrap=True)
        with gr.Accordion(label("token_mask"), open=False, elem_id="runs-mask"):
            self.show_mask = gr.Button(label("show_mask"), elem_id="runs-show-mask")
            self.mask_problem = gr.Markdown(elem_id="runs-mask-problem", latex_delimiters=[])
            self.mask = gr.HighlightedText(
                show_label=False, show_legend=True, show_inline_category=False, combine_adjacent=False,
                elem_id="runs-tokens",
            )  # fmt: skip
        with gr.Accordion(label("samples"), open=False):
            self.samples = gr.Dataframe(
                interactive=False, show_label=False, elem_id="runs-samples", wrap=True,
                column_widths=[100, 90, 270, 350, 100],
            )  # fmt: skip
        self.form = TrainingForm(self._studio)
        self.timer = gr.Timer(2.0)
        self._connect()

    def _plot(self, text: str, name: str) -> gr.LinePlot:
        return gr.LinePlot(
            x="step", y="value", color="run", x_title=" ", y_title=" ", label=label(text), height=260, elem_id=name
        )

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        curves = [self.loss, self.held_out, self.right]
        about = [self.legend, *curves, self.differences, self.data, self.samples]
        self.chosen.change(self.tell, self.chosen, about, **quiet)
        self.timer.tick(self.watch, self.chosen, [self.table, self.log, *curves], **quiet)
        self.show_mask.click(
            self.tell_mask, self.chosen, [self.mask, self.mask_problem], **{**quiet, "show_progress": "full"}
        )
        self.stop.click(self.stop_training, self.chosen, self.remark, **quiet)
        self.resume.click(self.resume_training, self.chosen, self.remark, **quiet)
        if self._studio.may_train:
            self.form.started(self.tell_started, [self.chosen, self.remark])

    def show(self, request: gr.Request) -> tuple[Any, ...]:
        """Fill the tab when the page opens. Outputs: table, chosen runs."""
        runs = self._studio.trainings.all()
        names = [run.name for run in runs]
        return _table(runs, Words(request)), gr.update(choices=names, value=names[:2])

    def tell(self, chosen: list[str], request: gr.Request) -> tuple[Any, ...]:
        words = Words(request)
        runs = self._runs(chosen)
        return (
            gr.update(value=[(run.name, run.name) for run in runs], color_map=_colors(runs)),
            *(_curve(runs, key) for key in _CURVES),
            _differences(runs, words),
            _data(runs, words),
            _samples(runs, words),
        )

    def watch(self, chosen: list[str], request: gr.Request) -> tuple[Any, ...]:
        """Update the table and the curves during a training."""
        everything = self._studio.trainings.all()
        table = _table(everything, Words(request))
        runs = [run for run in self._runs(chosen) if run.state == "training"]
        started = [run for run in self._runs(chosen) if run.state != "trained"]
        log = self._studio.trainings.log(started[0].name) if started else ""
        shown = gr.update(value=_last_lines(log), visible=bool(log))
        if not runs:
            return (table, shown, *[gr.skip()] * len(_CURVES))
        return (table, shown, *(_curve(self._runs(chosen), key) for key in _CURVES))

    def tell_mask(self, chosen: list[str], request: gr.Request) -> tuple[Any, str]:
        runs = self._runs(chosen)
        if not runs:
            return None, ""
        try:
            config = runs[0].folder.read_config()
            words = Words(request)
            with muted():
                pieces = [(text, words(kind)) for text, kind in first_batch(config)]
            return gr.update(value=pieces, color_map={words(kind): color for kind, color in _COLORS.items()}), ""
        except ThinktuneError as error:
            return None, plain(reason(error))

    def stop_training(self, chosen: list[str]) -> str:
        for run in self._runs(chosen):
            self._studio.trainings.stop(run.name)
        return ""

    def resume_training(self, chosen: list[str]) -> str:
        if not self._studio.may_train:
            return ""
        try:
            for run in self._runs(chosen):
                if run.state == "unfinished":
                    self._studio.trainings.resume(run.name)
        except ThinktuneError as error:
            return plain(reason(error))
        return ""

    def tell_started(self, name: str) -> tuple[Any, str]:
        names = [run.name for run in self._studio.trainings.all()]
        return gr.update(choices=names, value=[name]), ""

    def _runs(self, chosen: Sequence[str]) -> list[Run]:
        known = {run.name: run for run in self._studio.trainings.all()}
        return [known[name] for name in chosen if name in known]


def _table(runs: Sequence[Run], words: Words) -> dict[str, Any]:
    headers = ["name", "state", "step", "loss", "held_out_loss", "accuracy", "format_rate", "tokens_per_second"]
    return {"headers": [words(header) for header in headers], "data": [list(_row(run, words)) for run in runs]}


def _row(run: Run, words: Words) -> Iterator[str]:
    yield run.name
    yield words(f"state_{run.state}")
    yield str(run.last("step") or "")
    for key in ("loss", "eval_loss"):
        value = run.last(key)
        yield "" if value is None else f"{value:.4f}"
    summary = read_scores(run.folder, "tuned")[0] or {}
    for key, during in (("accuracy", "eval_accuracy"), ("format_rate", "eval_format_rate")):
        value = summary.get(key, run.last(during))
        yield "" if value is None else f"{value:.1%}"
    speed = run.last("tokens_per_second")
    yield "" if speed is None else f"{speed:,.0f}"


def _curve(runs: Sequence[Run], key: str) -> Any:
    import pandas

    scale = 100 if key == "eval_accuracy" else 1
    points = []
    for run in runs:
        lines = [line for line in run.metrics if key in line]
        every = max(1, len(lines) // _POINTS)
        points += [(line["step"], scale * line[key], run.name) for line in lines[::every]]
    frame = pandas.DataFrame(points, columns=["step", "value", "run"])
    # A single point makes no line: the table has its value.
    shown = key == "loss" or len(points) > len({name for *_, name in points})
    return gr.update(value=frame, visible=shown, color_map=_colors(runs), colors_in_legend=[])


def _colors(runs: Sequence[Run]) -> dict[str, str]:
    return {run.name: _RUN_COLORS[number % len(_RUN_COLORS)] for number, run in enumerate(runs)}


def _differences(runs: Sequence[Run], words: Words) -> dict[str, Any]:
    there = [run for run in runs if run.folder.config.exists()]
    found = differing_settings([read_settings(run.folder) for run in there])
    rows = [[key, *(json.dumps(value, ensure_ascii=False) for value in values)] for key, values in found.items()]
    return {"headers": [words("setting"), *(run.name for run in there)], "data": rows}


def _data(runs: Sequence[Run], words: Words) -> dict[str, Any]:
    rows: list[list[str]] = []
    for run in runs:
        if run.folder.data_report.exists():
            report = json.loads(run.folder.data_report.read_text(encoding="utf-8"))
            rows += [[run.name, f"{count:,}", text] for count, text in _report(report, words)]
    return {"headers": [words("name"), words("rows"), words("what")], "data": rows}


def _report(report: dict[str, Any], words: Words) -> Iterator[tuple[int, str]]:
    for source in report["sources"]:
        yield source["read"], words("read", source=Path(source["source"]).name)
    yield report["kept"], words("kept")
    for dropped, count in report["dropped"].items():
        yield count, words("dropped", reason=dropped)
    if report["held_out"]:
        yield report["held_out"], words("held_out")
    if report["lengths"]:
        yield report["lengths"]["total"], words("tokens")
        yield report["lengths"]["trained"], words("trained_tokens")


def _samples(runs: Sequence[Run], words: Words) -> dict[str, Any]:
    headers = [words(key) for key in ("name", "outcome", "prompt", "completion", "reference")]
    rows = []
    for run in runs:
        for line in read_scores(run.folder, "tuned")[1][:_SAMPLES]:
            texts = [str(line[key])[:_LONGEST] for key in ("prompt", "completion", "reference")]
            rows.append([run.name, str(line["outcome"]), *texts])
    return {"headers": headers, "data": rows}


def _last_lines(log: str, most: int = 60) -> str:
    return "\n".join(log.splitlines()[-most:])
