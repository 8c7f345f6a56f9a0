"""The tab for question files: models answer one file, in one table, with what is right, and where they differ."""

from __future__ import annotations

import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from thinktune.errors import ThinktuneError
from thinktune.files import write_text
from thinktune.inference.profiles import PROFILES
from thinktune.studio.answer_table import OUTCOMES, PAGE, AnswerTable, Row, counts, filtered, read_texts, render
from thinktune.studio.batch_jobs import Job, check, faults, types_of
from thinktune.studio.events import QUIET
from thinktune.studio.follower import Follower
from thinktune.studio.following import Version
from thinktune.studio.known_answers import golds_of
from thinktune.studio.markdown import plain
from thinktune.studio.run_view import duration, table
from thinktune.studio.state import Studio, download
from thinktune.studio.study import names, study_of_rows
from thinktune.studio.translations import Words, label

_SHOWN = 5  # items of the check
_LONGEST = 300  # characters of a prompt there
_FAULTS = 200  # faulty lines that are listed


class BatchTab:
    """Builds the tab within the running `gr.Blocks`, and answers its events."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._table = AnswerTable()
        self._build()

    def _build(self) -> None:
        pair = [model for model in self._studio.pool.pair() if model]
        with gr.Row(elem_id="batch-new"):
            with gr.Column(min_width=280):
                self.file = gr.File(
                    label=label("batch_file"), file_types=[".jsonl", ".json", ".txt"], height=170, elem_id="batch-file"
                )
            with gr.Column(min_width=280):
                self.models = gr.Dropdown(
                    self._studio.pool.choices(), value=pair, multiselect=True, label=label("models"),
                    elem_id="batch-models",
                )  # fmt: skip
                with gr.Row():
                    self.profile = gr.Dropdown(list(PROFILES), value="default", label=label("profile"))
                    self.budget = gr.Number(0, precision=0, minimum=0, label=label("think_budget"))
                self.run = gr.Button(label("run_batch"), variant="primary", elem_id="batch-run")
        self.checked = gr.HTML(elem_id="batch-check")
        with gr.Row(elem_id="batch-job-row"):
            self.job = gr.Dropdown([], label=label("job"), elem_id="batch-job", scale=3)
            self.stop = gr.Button(
                label("stop"), variant="stop", elem_id="batch-stop", elem_classes="icon stop", size="md", scale=0
            )
            self.go_on = gr.Button(
                label("go_on"), elem_id="batch-go-on", elem_classes="icon next", size="md", scale=0
            )  # fmt: skip
        self.state = gr.HTML(elem_id="batch-state")
        with gr.Row(elem_id="batch-filters"):
            self.kind = gr.Dropdown([(label("any_type"), "")], value="", label=label("item_type"), elem_id="batch-kind")
            self.outcome = gr.Dropdown(
                [(label(f"outcome_{each}"), each) for each in OUTCOMES], value="all", label=label("show_rows"),
                elem_id="batch-outcome",
            )  # fmt: skip
            self.search = gr.Textbox(label=label("search"), elem_id="batch-search", max_length=200)
            self.page = gr.Number(1, precision=0, minimum=1, label=label("page"), elem_id="batch-page", min_width=80)
        self.answers = gr.HTML(elem_id="batch-answers")
        with gr.Row(elem_id="batch-after"):
            self.rate = gr.Button(label("rate_these"), elem_id="batch-rate", elem_classes="icon check", size="md")
            self.save = gr.Button(label("save_table"), elem_id="batch-save", elem_classes="icon save", size="md")
        self.remark = gr.HTML(elem_id="batch-remark")
        self.result = gr.File(
            label=label("result_file"), interactive=False, visible=False, height=110, elem_id="batch-result",
            file_count="multiple",
        )  # fmt: skip
        self._progress = Follower("batch")
        self._studio.following.add("batch", self._version)
        self._connect()

    def _connect(self) -> None:
        settings: list[Any] = [self.file, self.profile, self.budget]
        for changed in settings:
            changed.change(self.check, settings, self.checked, **QUIET)
        self.view = [self.job, self.kind, self.outcome, self.search, self.page]
        told = [self.state, self.answers, self.result]
        self.run.click(self.add, [*settings, self.models], [self.checked, self.job], **QUIET)
        self.job.change(self.types, self.job, self.kind, **QUIET).then(
            self.tell, self.view, [*told, self._progress.mark], **QUIET
        )
        self._progress.choose(self.job)
        self._progress.follow(self.tell, self.view, told)
        for changed in (self.kind, self.outcome, self.search, self.page):
            changed.change(self.show_rows, self.view, self.answers, trigger_mode="always_last", **QUIET)
        self.stop.click(self.stop_job, self.job, None, **QUIET)
        self.go_on.click(self.go_on_with, self.job, None, **QUIET)
        self.save.click(self.save_rows, self.view, [self.result, self.remark], **QUIET)

    def show(self) -> tuple[Any, ...]:
        """Fill the tab when the page opens. Outputs: jobs, models."""
        found = self._jobs()
        return (
            gr.update(choices=found, value=found[0][1] if found else None),
            gr.update(choices=self._studio.pool.choices()),
        )

    def check(self, file: str | None, profile: Any, budget: float | None, request: gr.Request) -> str:
        words = Words(request)
        if file is None:
            return ""
        try:
            items = check(Path(file), profile, int(budget or 0) or None)
        except ThinktuneError as error:
            return _fault_list(faults(Path(file)), words) or plain(words.problem(error), "error")
        golds = golds_of(file)
        text = words("checked", items=len(items), types=", ".join(types_of(items)), golds=len(golds))
        heads = [words("item_id"), words("item_type").lower(), words("prompt"), words("reference")]
        rows = [
            [
                str(item.id),
                item.type,
                item.messages[-1]["content"][:_LONGEST],
                str(golds.get(str(item.id), {}).get("reference", ""))[:_LONGEST],
            ]
            for item in items[:_SHOWN]
        ]
        return f"<p>{escape(text)}</p>{table(heads, rows)}"

    def add(
        self, file: str | None, profile: Any, budget: float | None, models: list[str], request: gr.Request
    ) -> tuple[Any, ...]:
        if file is None or not models:
            return plain(Words(request)("file_first"), "error"), gr.skip()
        try:
            job = self._studio.jobs.add(Path(file), models, profile, int(budget or 0) or None)
        except ThinktuneError as error:
            words = Words(request)
            return _fault_list(faults(Path(file)), words) or plain(words.problem(error), "error"), gr.skip()
        return gr.skip(), gr.update(choices=self._jobs(), value=job.name)

    def types(self, name: str | None, request: gr.Request) -> Any:
        """Return the types of a job's items, to choose from."""
        kinds = sorted({item.type for item in self._studio.jobs.items(name)}) if name else []
        return gr.update(choices=[(Words(request)("any_type"), ""), *kinds], value="")

    def tell(
        self, name: str | None, kind: str, outcome: Any, search: str, page: float, request: gr.Request, shown: str = ""
    ) -> tuple[Any, ...]:
        """Report the progress of a job, its answers so far, and its result files when they are there."""
        if not name:
            return "", "", gr.update(value=None, visible=False), ""
        words = Words(request)
        jobs = self._studio.jobs
        job, version = jobs.get(name), self._version(name)  # the older one of the two: what changes now is asked for
        rows = self._rows(job)
        table_of = render(filtered(rows, kind, outcome, search), self._short(job), int(page or 1) - 1, words)
        results = [_copy(result, f"{name}{'' if not at else f'-{at}'}.json") for at, result in jobs.results(name)]
        told = _line(job, jobs.done(name), jobs.seconds_left(name), words) + counts(rows, self._short(job), words)
        files = gr.update(value=results or None, visible=bool(results))
        return self._progress.told([told, table_of, files], name, version.name, shown)

    def _version(self, name: str) -> Version:
        job = self._studio.jobs.get(name)
        return Version(f"{job.state} {self._studio.jobs.done(name)}", job.state == "running")

    def show_rows(
        self, name: str | None, kind: str, outcome: Any, search: str, page: float, request: gr.Request
    ) -> str:
        if not name:
            return ""
        job = self._studio.jobs.get(name)
        rows = filtered(self._rows(job), kind, outcome, search)
        words = Words(request)
        pages = max(1, -(-len(rows) // PAGE))
        at = min(int(page or 1), pages)
        found = words("rows_found", count=len(rows), page=at, pages=pages)
        return f"<p>{escape(found)}</p>{render(rows, self._short(job), at - 1, words)}"

    def save_rows(
        self, name: str | None, kind: str, outcome: Any, search: str, page: float, request: gr.Request
    ) -> tuple[Any, ...]:
        """Offer the rows that are shown as JSON lines."""
        if not name:
            return gr.skip(), ""
        job = self._studio.jobs.get(name)
        file = download(f"{name}-table.jsonl")
        lines = (
            {
                "id": row.id, "type": row.type, "prompt": row.prompt, "reference": row.reference or None,
                "answers": dict(zip(job.models, row.answers, strict=True)),
                "right": dict(zip(job.models, row.right, strict=True)),
            }
            for row in filtered(self._rows(job), kind, outcome, search)
        )  # fmt: skip
        write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return gr.update(value=[str(file)], visible=True), ""

    def rate_rows(
        self, name: str | None, kind: str, outcome: Any, search: str, page: float, request: gr.Request
    ) -> tuple[Any, ...]:
        """Make a study of the rows that are shown. Outputs: remark, the studies, their explanation, the page's tabs."""
        if not name:
            return "", gr.skip(), gr.skip(), gr.skip()
        folder = self._studio.folder / "studies"
        job = self._studio.jobs.get(name)
        try:
            made = study_of_rows(folder, job.models, filtered(self._rows(job), kind, outcome, search), _stem(name))
        except ThinktuneError as error:
            return plain(Words(request).problem(error), "error"), gr.skip(), gr.skip(), gr.skip()
        studies = gr.update(choices=names(folder), value=made.folder.name)
        return "", studies, gr.update(visible=False), gr.Tabs(selected="rate")

    def stop_job(self, name: str | None) -> None:
        if name:
            self._studio.jobs.stop(name)

    def go_on_with(self, name: str | None) -> None:
        if name:
            self._studio.jobs.go_on(name)

    def _jobs(self) -> list[tuple[str, str]]:
        """List the jobs: file and time as people read them, and the name."""
        return [(f"{_stem(job.name)} · {_time(job.name)}", job.name) for job in self._studio.jobs.all()]

    def _rows(self, job: Job) -> list[Row]:
        jobs = self._studio.jobs
        texts = [read_texts(file) for file in jobs.files(job)]
        return list(self._table.rows(job.name, jobs.items(job.name), jobs.golds(job.name), texts))

    def _short(self, job: Job) -> list[str]:
        return [self._studio.pool.shown(model) for model in job.models]


def _stem(job: str) -> str:
    """Return the name of the file that a job was made of: jobs are called DATE-TIME-FILE."""
    return job.split("-", 2)[-1]


def _time(job: str) -> str:
    found = re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)", job)
    return "{}-{}-{} {}:{}".format(*found.groups()) if found else job


def _line(job: Job, done: int, left: float | None, words: Words) -> str:
    done = min(done, job.total)
    state = words(
        "job_state", state=words(f"state_{job.state}", error=words.problem(job.error)), done=done, total=job.total
    )
    time = f" · {words('left_over', time=duration(left, words))}" if left is not None and job.state == "running" else ""
    bar = f'<progress aria-label="{escape(state)}" value="{done}" max="{job.total}"></progress>'
    kind = "resumable" if job.state in ("stopped", "failed") else job.state
    return f'<p role="status" class="job-{kind}">{escape(state + time)}</p><div class="run-bar">{bar}</div>'


def _fault_list(problems: list[str], words: Words) -> str:
    items = "".join(f"<li>{escape(words.own(each))}</li>" for each in problems[:_FAULTS])
    title = words("faulty_lines", count=len(problems))
    return f'<div class="error" role="alert"><b>{escape(title)}</b><ul>{items}</ul></div>' if problems else ""


def _copy(result: Path, name: str) -> str:
    file = download(name)
    shutil.copyfile(result, file)
    return str(file)
