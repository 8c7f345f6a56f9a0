"""The tab for batch files: drop one, see its check, run it, take the result."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr

from thinktune.errors import ThinktuneError
from thinktune.inference.profiles import PROFILES
from thinktune.studio.batch_jobs import Job, check, types_of
from thinktune.studio.markdown import plain
from thinktune.studio.model_pool import reason
from thinktune.studio.state import Studio, download
from thinktune.studio.translations import Words, label

_SHOWN = 20  # items of the check
_LONGEST = 300  # characters of a prompt there


class BatchTab:
    """Builds the tab within the running `gr.Blocks`, and answers its events."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._build()

    def _build(self) -> None:
        names = self._studio.pool.names()
        with gr.Row():
            with gr.Column():
                self.file = gr.File(
                    label=label("batch_file"), file_types=[".jsonl", ".json", ".txt"], height=140, elem_id="batch-file"
                )
            with gr.Column():
                self.model = gr.Dropdown(names, value=names[0], label=label("model"), elem_id="batch-model")
                with gr.Row():
                    self.profile = gr.Dropdown(list(PROFILES), value="default", label=label("profile"))
                    self.budget = gr.Number(0, precision=0, minimum=0, label=label("think_budget"))
        self.checked = gr.Markdown(elem_id="batch-check", latex_delimiters=[])
        self.items = gr.Dataframe(interactive=False, show_label=False, visible=False, wrap=True, elem_id="batch-items")
        self.run = gr.Button(label("run_batch"), variant="primary", elem_id="batch-run")
        with gr.Row():
            self.job = gr.Dropdown([], label=label("job"), elem_id="batch-job")
            self.stop = gr.Button(label("stop"), variant="stop", elem_id="batch-stop")
            self.go_on = gr.Button(label("go_on"), elem_id="batch-go-on")
        self.state = gr.Markdown(elem_id="batch-state", latex_delimiters=[])
        self.result = gr.File(label=label("result_file"), interactive=False, height=90, elem_id="batch-result")
        self.known = gr.State("")
        self.timer = gr.Timer(1.0)
        self._connect()

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        settings: list[Any] = [self.file, self.profile, self.budget]
        for changed in settings:
            changed.change(self.check, settings, [self.checked, self.items], **quiet)
        told = [self.state, self.result, self.known]
        added = [self.checked, self.job]
        self.run.click(self.add, [*settings, self.model], added, **quiet)
        self.job.change(self.tell, [self.job], told, **quiet)
        self.stop.click(self.stop_job, self.job, None, **quiet)
        self.go_on.click(self.go_on_with, self.job, None, **quiet)
        self.timer.tick(self.watch, [self.job, self.known], told, **quiet)

    def show(self) -> tuple[Any, ...]:
        """Fill the tab when the page opens. Outputs: jobs, models."""
        found = [job.name for job in self._studio.jobs.all()]
        return gr.update(choices=found, value=found[0] if found else None), gr.update(choices=self._studio.pool.names())

    def check(self, file: str | None, profile: Any, budget: float | None, request: gr.Request) -> tuple[Any, ...]:
        words = Words(request)
        if file is None:
            return "", gr.update(visible=False)
        try:
            items = check(Path(file), profile, int(budget or 0) or None)
        except ThinktuneError as error:
            return plain(reason(error)), gr.update(visible=False)
        rows = [[str(item.id), item.type, item.messages[-1]["content"][:_LONGEST]] for item in items[:_SHOWN]]
        headers = [words("item_id"), words("item_type"), words("prompt")]
        text = words("checked", items=len(items), types=", ".join(types_of(items)))
        return text, gr.update(visible=True, value={"headers": headers, "data": rows})

    def add(
        self, file: str | None, profile: Any, budget: float | None, model: str, request: gr.Request
    ) -> tuple[Any, ...]:
        if file is None:
            return Words(request)("file_first"), gr.skip()
        try:
            job = self._studio.jobs.add(Path(file), model, profile, int(budget or 0) or None)
        except ThinktuneError as error:
            return plain(reason(error)), gr.skip()
        return gr.skip(), gr.update(choices=[each.name for each in self._studio.jobs.all()], value=job.name)

    def tell(self, name: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Report the progress of a job, and its result when there is one."""
        if not name:
            return "", None, ""
        job = self._studio.jobs.get(name)
        result = self._studio.jobs.result(name) if job.state == "done" else None
        return _line(job, self._studio.jobs.done(name), Words(request)), result and _download(name, result), _key(job)

    def watch(self, name: str | None, known: str, request: gr.Request) -> tuple[Any, ...]:
        """Do as `tell`, but return the file only when something has changed."""
        if not name:
            return gr.skip(), gr.skip(), gr.skip()
        job = self._studio.jobs.get(name)
        if known == _key(job) and job.state != "running":
            return gr.skip(), gr.skip(), gr.skip()
        if job.state == "running":
            return _line(job, self._studio.jobs.done(name), Words(request)), gr.skip(), _key(job)
        return self.tell(name, request)

    def stop_job(self, name: str | None) -> None:
        if name:
            self._studio.jobs.stop(name)

    def go_on_with(self, name: str | None) -> None:
        if name:
            self._studio.jobs.go_on(name)


def _line(job: Job, done: int, words: Words) -> str:
    state = words(f"state_{job.state}", error=job.error)
    return plain(f"{job.model} · {words('job_state', state=state, done=min(done, job.total), total=job.total)}")


def _key(job: Job) -> str:
    return f"{job.name} {job.state}"


def _download(name: str, result: Path) -> str:
    file = download(f"{name}.json")
    shutil.copyfile(result, file)
    return str(file)
