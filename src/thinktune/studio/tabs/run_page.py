"""A run's page: how far it has come, what it was trained on and with, its scores beside its base, what changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from thinktune.errors import ThinktuneError, UsageError
from thinktune.notices import muted
from thinktune.records import RunRecord, read_record
from thinktune.studio import run_view
from thinktune.studio.events import QUIET
from thinktune.studio.follower import Follower, Mark, digest
from thinktune.studio.following import Version
from thinktune.studio.markdown import plain
from thinktune.studio.model_pool import base_of
from thinktune.studio.progress import Progress
from thinktune.studio.state import Studio, download
from thinktune.studio.tabs.curves import CURVES, curve, plot
from thinktune.studio.training_jobs import Run
from thinktune.studio.translations import Words, label

_COLORS = {"context": "#9ca3af", "trained": "#22c55e", "border": "#a855f7", "padding": "#ef4444"}
_LOG_LINES = 80
_ADDRESS = """(name) => {
    const here = new URL(location.href);
    if (name) here.searchParams.set("run", name); else here.searchParams.delete("run");
    if (here.href !== location.href) history.pushState(null, "", here);
}"""
"""Script that puts the run into the address of the page."""


class RunPage:
    """Builds the page within the running `gr.Blocks`, and answers its events.

    Args:
        name: the component whose value is the run's name; "" for none.
    """

    def __init__(self, studio: Studio, name: gr.Dropdown) -> None:
        self._studio = studio
        self.name = name
        self._build()
        self._connect()

    def _build(self) -> None:
        self.head = gr.HTML(elem_id="run-head")
        with gr.Row(elem_id="run-actions"):
            self.chat = self._action("chat_with", "speech")
            self.score = self._action("score", "check")
            self.report = self._action("report", "save")
            self.again = self._action("train_again", "again")
            self.resume = self._action("resume", "next")
            self.stop = gr.Button(
                label("stop"), variant="stop", elem_id="run-stop", elem_classes="icon stop", size="sm", scale=0
            )
        self.remark = gr.Markdown(elem_id="run-remark", latex_delimiters=[])
        self.file = gr.File(label=label("report_file"), interactive=False, visible=False, height=90, elem_id="run-file")
        with gr.Row(elem_id="run-top"):
            with gr.Column(min_width=300):
                gr.Markdown(label("scores"), elem_classes="section")
                self.scores = gr.HTML(elem_id="run-scores")
            with gr.Column(min_width=300):
                gr.Markdown(label("trained_with"), elem_classes="section")
                self.facts = gr.HTML(elem_id="run-facts")
        with gr.Row(elem_id="run-curves"):
            self.curves = [plot(text, f"run-{name}") for text, name in CURVES.values()]
        self.rollouts = gr.HTML(elem_id="run-rollouts")
        with gr.Accordion(label("samples"), open=True, elem_id="run-samples-box"):
            self.samples = gr.HTML(elem_id="run-samples")
        with gr.Accordion(label("data_report"), open=False):
            self.data = gr.HTML(elem_id="run-data")
        with gr.Accordion(label("token_mask"), open=False, elem_id="runs-mask"):
            self.show_mask = gr.Button(label("show_mask"), elem_id="runs-show-mask")
            self.mask_problem = gr.Markdown(elem_id="runs-mask-problem", latex_delimiters=[])
            self.mask = gr.HighlightedText(
                show_label=False, show_legend=True, show_inline_category=False, combine_adjacent=False,
                elem_id="runs-tokens",
            )  # fmt: skip
        with gr.Accordion(label("files"), open=False, elem_id="run-files-box"):
            self.files = gr.HTML(elem_id="run-files")
        with gr.Accordion(label("log"), open=False, elem_id="run-log-box"):
            self.log = gr.Textbox(show_label=False, lines=6, max_lines=20, interactive=False, elem_id="run-log",
                                  label=label("log"))  # fmt: skip
        self._progress = Follower("run")
        self._studio.following.add("run", self._version)

    def _action(self, name: str, icon: str) -> gr.Button:
        return gr.Button(
            label(name), elem_id=f"run-{name.replace('_', '-')}", elem_classes=f"icon {icon}", size="sm", scale=0
        )

    @property
    def shown(self) -> list[Any]:
        return [
            self.head, self.log, *self.curves, self.rollouts, self.scores, self.facts, self.samples, self.data,
            self.files, self._progress.mark,
        ]  # fmt: skip

    def _connect(self) -> None:
        self.name.change(self.tell, self.name, [self.remark, self.file, self.mask, *self.shown], **QUIET)
        self.name.change(None, self.name, None, js=_ADDRESS, api_visibility="private")
        self._progress.choose(self.name)
        self._progress.follow(self.watch, [self.name], self.shown[:-1])
        self.show_mask.click(
            self.tell_mask, self.name, [self.mask, self.mask_problem], **{**QUIET, "show_progress": "full"}
        )
        self.report.click(self.write, self.name, [self.file, self.remark], **{**QUIET, "show_progress": "full"})
        for button, act in ((self.stop, "stop"), (self.score, "score"), (self.resume, "resume")):
            button.click(self._act(act), self.name, self.remark, **QUIET).then(
                self.watch, [self.name, self._progress.mark], self.shown, **QUIET
            )

    def tell(self, name: str, request: gr.Request) -> tuple[Any, ...]:
        """Fill the page with a run. Outputs: remark, file, mask, and all that is shown."""
        return "", gr.update(value=None, visible=False), None, *self.fill(name, Words(request))

    def watch(self, name: str, shown: str, request: gr.Request) -> tuple[Any, ...]:
        """Update what changes while a run works; everything when its phase has changed."""
        nothing = tuple(gr.skip() for _ in self.shown)
        if not name:
            return nothing
        words = Words(request)
        try:
            run, progress, version = self._state(name)
        except UsageError:  # its folder was taken away
            return nothing
        before = Mark.read(shown)
        if run.sweeps or before.of != name or before.version.split()[:1] != version.name.split()[:1]:
            return self.fill(name, words, shown)
        log = _last_lines(self._studio.trainings.log(name))
        rest = [gr.skip()] * (len(self.shown) - 4 - len(self.curves))
        head = run_view.head(run, progress, words)
        values = [head, log, *(curve([run], key) for key in CURVES), run_view.rollouts(run.folder, words), *rest]
        return self._progress.told(values, name, version.name, shown)

    def _version(self, name: str) -> Version | None:
        return self._state(name)[2] if name else None

    def _state(self, name: str) -> tuple[Run, Progress, Version]:
        trainings = self._studio.trainings
        run = trainings.get(name)
        progress = trainings.progress(run)
        state = digest([progress.done, round(progress.seconds_left or 0), progress.error, trainings.log(name)])
        return run, progress, Version(f"{progress.phase} {state}", run_view.works(progress))

    def fill(self, name: str, words: Words, shown: str = "") -> tuple[Any, ...]:
        """Return the values of all that is `shown`; those of a page that shows the run already where they differ."""
        if not name:
            return ("", "", *[gr.skip()] * len(self.curves), "", "", "", "", "", "", "")
        try:
            run, progress, version = self._state(name)
            folder = run.folder
            members = self._studio.trainings.members(name) if run.sweeps else []
            record = read_record(folder.record, RunRecord) if folder.is_trained else {}
            report = json.loads(folder.data_report.read_text("utf-8")) if folder.data_report.exists() else None
            values = [
                run_view.head(run, progress, words),
                _last_lines(self._studio.trainings.log(name)),
                *(curve([run], each) for each in CURVES),
                run_view.rollouts(folder, words),
                run_view.members(members, words) if members else run_view.scores(folder, words),
                run_view.facts(run, record, words),
                run_view.changed(folder, words),
                run_view.data_account(report, words) if report else "",
                run_view.files_of(folder, words),
            ]
            return self._progress.told(values, name, version.name, shown)
        except (ThinktuneError, OSError, ValueError, KeyError) as error:  # a record that somebody has damaged
            text = words.problem(error if isinstance(error, ThinktuneError) else f"{type(error).__name__}: {error}")
            values = [plain(text, "error"), "", *[gr.skip()] * len(self.curves), "", "", "", "", "", ""]
            return self._progress.told(values, name, "damaged", shown)

    def _act(self, what: str) -> Any:
        def act(name: str, request: gr.Request) -> str:
            words = Words(request)
            if not name or not self._studio.may_train:
                return plain(words("no_training_here")) if name and what != "stop" else ""
            try:
                getattr(self._studio.trainings, what)(name)
            except ThinktuneError as error:
                return plain(words.problem(error))
            return ""

        return act

    def write(self, name: str, request: gr.Request) -> tuple[Any, str]:
        """Write the run's report, for download."""
        if not name:
            return gr.skip(), ""
        from thinktune.report.html import write_report

        try:
            with muted():
                report = write_report(self._studio.trainings.get(name).folder.path)
        except ThinktuneError as error:
            return gr.skip(), plain(Words(request).problem(error))
        file = download(f"{Path(name).name}-report.html")
        shutil.copyfile(report, file)
        return gr.update(value=str(file), visible=True), ""

    def tell_mask(self, name: str, request: gr.Request) -> tuple[Any, str]:
        if not name:
            return None, ""
        words = Words(request)
        try:
            config = self._studio.trainings.get(name).folder.read_config()
            with muted(), self._studio.pool.resting():
                from thinktune.report.data_preview import first_batch

                pieces = [
                    (words.own(text) if kind == "border" else text, words(kind)) for text, kind in first_batch(config)
                ]
            return gr.update(value=pieces, color_map={words(kind): color for kind, color in _COLORS.items()}), ""
        except ThinktuneError as error:
            return None, plain(words.problem(error))

    def chat_models(self, name: str) -> tuple[Any, ...]:
        """Return the tab, and the models, of a chat with a run and its base."""
        run = str(self._studio.trainings.get(name).folder.path) if name else ""
        if run not in self._studio.pool.names():
            return gr.skip(), gr.skip(), gr.skip()
        return gr.Tabs(selected="chat"), gr.update(value=run), gr.update(value=base_of(run) or "")


def _last_lines(log: str) -> str:
    return "\n".join(log.splitlines()[-_LOG_LINES:])
