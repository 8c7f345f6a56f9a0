"""The form that starts a training, with its command line, its config, its plan, and a look at its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from thinktune.config import Config, Dpo, Method, dump_config, load_config
from thinktune.config.shipped import shipped_configs
from thinktune.errors import ThinktuneError, UsageError
from thinktune.notices import muted
from thinktune.studio import run_view
from thinktune.studio.events import QUIET, fill
from thinktune.studio.markdown import plain
from thinktune.studio.page_script import in_browser
from thinktune.studio.state import Studio
from thinktune.studio.tabs.collecting_form import CollectingForm
from thinktune.studio.training_jobs import ROW_FILES, in_words
from thinktune.studio.translations import Words, label

_NAME = "studio-run"
_EXAMPLES = 5  # of the preview
_LONGEST = 600  # characters of each of their parts


class TrainingForm:
    """Builds the form; if the studio may not train, a sentence that says why."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        if studio.may_train:
            self._build()
        else:
            gr.Markdown(label("no_training_here"))

    def _build(self) -> None:
        configs = self._configs(Words(None))
        first = next((file for _, file in configs if file.endswith("quickstart.yaml")), configs[0][1])
        filled = _fields(load_config(first))
        self._first_source = filled[2]
        with gr.Row(elem_id="train-form"):
            with gr.Column(min_width=320):
                self._build_fields(first, filled)
                self._build_methods(filled)
            with gr.Column(min_width=320):
                gr.Markdown(label("plan_beside"), elem_classes="section")
                self.memory = gr.HTML(elem_id="train-memory")
                self.problem = gr.Markdown(elem_id="train-problem", latex_delimiters=[])
                with gr.Row():
                    self.start_scored = gr.Button(
                        label("start_scored"), variant="primary", elem_id="train-start-scored"
                    )
                    self.start = gr.Button(label("start"), elem_id="train-start")
                command, config, _ = self.tell(None, first, _NAME, *filled, "", "")
                gr.Markdown(label("command"), elem_classes="section")
                self.command = gr.HTML(command, elem_id="train-command")
                gr.Markdown(label("yaml"), elem_classes="section")
                self.yaml = gr.HTML(config, elem_id="train-yaml")
        self.preview = gr.HTML(elem_id="train-preview")
        self._connect()
        CollectingForm(self._studio, self.refresh_sources, self.source)

    def _build_fields(self, first: str, filled: list[Any]) -> None:
        with gr.Row():
            self.config = gr.Dropdown(
                self._configs(Words(None)), value=first, label=label("config"), elem_id="train-config"
            )
            self.name = gr.Textbox(_NAME, label=label("run_name"), max_length=64, elem_id="train-name")
        self.method = gr.Radio(
            [(label(f"method_{name}"), name) for name in get_args(Method)], value=filled[0], label=label("method"),
            elem_id="train-method",
        )  # fmt: skip
        self.model = gr.Textbox(filled[1], label=label("model"), elem_id="train-model")
        self.file = gr.File(
            label=label("upload_rows"), file_types=list(ROW_FILES), height=170, elem_id="train-file"
        )  # fmt: skip
        self.refusal = gr.Markdown(elem_id="train-refusal", latex_delimiters=[])
        self.source = gr.Dropdown(
            self._sources(filled[2], Words(None)), value=filled[2], allow_custom_value=True, label=label("data_source"),
            elem_id="train-source",
        )  # fmt: skip
        with gr.Row():
            self.sample = gr.Number(filled[3], precision=0, minimum=0, label=label("sample"), elem_id="train-sample")
            self.steps = gr.Number(filled[4], precision=0, minimum=0, label=label("max_steps"), elem_id="train-steps")
        with gr.Row():
            self.rank = gr.Number(filled[5], precision=0, minimum=1, label="LoRA r", elem_id="train-rank")
            self.rate = gr.Textbox(filled[6], label=label("learning_rate"), max_length=20, elem_id="train-rate")

    def _build_methods(self, filled: list[Any]) -> None:
        """Build the fields of the other methods, which show when theirs is chosen, and those of all."""
        prompts, completions, longest, rewards, loss, beta = filled[7:]
        with gr.Column(visible=filled[0] == "grpo", elem_id="train-grpo") as self.grpo:
            with gr.Row():
                self.prompts = gr.Number(prompts, precision=0, minimum=1, label=label("prompts"))
                self.completions = gr.Number(completions, precision=0, minimum=2, label=label("completions"))
                self.longest = gr.Number(longest, precision=0, minimum=1, label=label("completion_tokens"))
            self.rewards = gr.Textbox(rewards, label=label("rewards"), elem_id="train-rewards")
        with gr.Row(visible=filled[0] == "dpo", elem_id="train-dpo") as self.dpo:
            losses = get_args(Dpo.model_fields["loss_type"].annotation)
            self.loss = gr.Dropdown(list(losses), value=loss, label=label("dpo_loss"), elem_id="train-loss")
            self.beta = gr.Number(beta, minimum=0, label="beta")
        self.grid = gr.Textbox(
            label=label("sweep"), lines=1, max_lines=6, placeholder="lora.r=4,8,16", elem_id="train-sweep"
        )
        self.overrides = gr.Textbox(label=label("overrides"), lines=3, elem_id="train-overrides")
        with gr.Row():
            self.look = gr.Button(label("preview"), elem_id="train-look", size="md")
            self.estimate = gr.Button(label("estimate"), elem_id="train-estimate", size="md")

    def _configs(self, words: Words) -> list[tuple[str, str]]:
        """List shipped configs, then those of runs: the name and purpose that people see, and the file."""
        shipped = [(f"{file.stem} · {words.purpose(file)}", str(file)) for file in shipped_configs()]
        return [*shipped, *self._studio.trainings.configs()]

    def _sources(self, value: str, words: Words) -> list[tuple[str, str]]:
        """List the data on offer; with "" for `value`, the several sources of the config are the first of them."""
        found = dict.fromkeys(["builtin:arithmetic", *self._studio.trainings.data(), *filter(None, [value])])
        named = [(Path(each).name if Path(each).exists() else each, each) for each in found]
        return named if value else [(words("sources_of_config"), ""), *named]

    def refresh_sources(self, source: str | None, words: Words) -> Any:
        """Offer rows that have been collected, too."""
        return gr.update(choices=self._sources(source or "", words))

    def _config_of(self, file: str) -> Path:
        """Return a config that is offered."""
        if file not in {each for _, each in self._configs(Words(None))}:
            raise UsageError(f"there is no config {Path(file).name}")
        return Path(file)

    @property
    def inputs(self) -> list[Any]:
        return [
            self.config, self.name, self.method, self.model, self.source, self.sample, self.steps, self.rank, self.rate,
            self.prompts, self.completions, self.longest, self.rewards, self.loss, self.beta, self.grid, self.overrides,
        ]  # fmt: skip

    @property
    def filled(self) -> list[Any]:
        """The boxes that a config fills: the name of the run, and those of `_fields`."""
        return [self.name, *self.inputs[2:-2]]

    def _connect(self) -> None:
        fill(self.config.input, self.fill, [self.config], self.filled[1:], [self.source], **QUIET)
        self.method.change(
            lambda method: (gr.update(visible=method == "grpo"), gr.update(visible=method == "dpo")), self.method,
            [self.grpo, self.dpo], **QUIET,
        )  # fmt: skip
        self.file.upload(None, None, self.refusal, js=in_browser("reading_rows"), api_visibility="private")
        fill(
            self.file.upload, self.take_file, [self.file, self.model], self.filled,
            [self.source, self.config, self.refusal], **QUIET,
        )  # fmt: skip
        self.file.clear(lambda: "", None, self.refusal, **QUIET)
        # One event for all fields, and its last word holds: an answer to an earlier state must not come after it.
        changes = [field.change for field in self.inputs]
        told = [self.command, self.yaml, self.problem]
        gr.on(changes, self.tell, self.inputs, told, trigger_mode="always_last", **QUIET)
        gr.on(
            [
                self.config.change, self.method.change, self.model.blur, self.steps.change, self.rank.change,
                self.source.change,
            ],
            self.plan_nearby, self.inputs, self.memory, trigger_mode="always_last", **QUIET,
        )  # fmt: skip
        self.estimate.click(self.plan, self.inputs, self.memory, **{**QUIET, "show_progress": "full"})
        self.look.click(self.show_data, self.inputs, self.preview, **{**QUIET, "show_progress": "full"})

    def started(self, show: Callable[[str, Words], tuple[Any, ...]], tabs: gr.Tabs, outputs: list[Any]) -> None:
        """Show each training that is started, on the tab of runs: `show` fills `outputs` with it."""

        def begin(*, score: bool) -> Callable[..., Any]:
            def act(request: gr.Request, *form: Any) -> tuple[Any, ...]:
                if problem := self.begin(Words(request), *form, score=score):
                    return problem, gr.skip(), *(gr.skip() for _ in outputs)
                return "", gr.Tabs(selected="runs"), *show(form[1].strip(), Words(request))

            return act

        for button, score in ((self.start, False), (self.start_scored, True)):
            button.click(begin(score=score), self.inputs, [self.problem, tabs, *outputs], **QUIET)

    def show(self, request: gr.Request) -> tuple[Any, ...]:
        """Fill the form when the page opens. Boxes: a name that is free; outputs: configs, data sources."""
        words = Words(request)
        sources = gr.update(choices=self._sources(self._first_source, words))
        return [self._free_name(_NAME)], gr.update(choices=self._configs(words)), sources

    def begin_with(self, request: gr.Request, run: str) -> tuple[Any, ...]:
        """Begin a training like a run's. Boxes: `filled`; outputs: data sources, config, the page's tabs."""
        config = next((file for name, file in self._studio.trainings.configs() if name == f"runs/{run}"), None)
        if config is None:
            return [None] * len(self.filled), gr.skip(), gr.skip(), gr.skip()
        fields, sources = self.fill(request, config)
        named = [self._free_name(Path(run).name), *fields]
        return named, sources, gr.update(choices=self._configs(Words(request)), value=config), gr.Tabs(selected="train")

    def _free_name(self, name: str) -> str:
        taken = {run.name for run in self._studio.trainings.all()}
        return next(each for each in (name, *(f"{name}-{n}" for n in range(2, 10_000))) if each not in taken)

    def fill(self, request: gr.Request, file: str) -> tuple[Any, ...]:
        """Read a config into the form. Boxes: those of `_fields`; output: data sources."""
        try:
            fields = _fields(load_config(self._config_of(file)))
        except ThinktuneError as error:
            raise gr.Error(escape(Words(request).problem(error))) from None
        return fields, gr.update(choices=self._sources(fields[2], Words(request)))

    def take_file(self, request: gr.Request, file: str | None, model: str) -> tuple[Any, ...]:
        """Keep uploaded rows, and choose a config that is fitted to them, as `thinktune init` writes it; where none can
        be, say why. Boxes: `filled`; outputs: data sources, config, refusal."""
        boxes: list[Any] = [None] * len(self.filled)
        words = Words(request)
        if file is None:
            return boxes, gr.skip(), gr.skip(), ""
        trainings = self._studio.trainings
        try:
            kept = trainings.take_data(Path(file))
        except ThinktuneError as error:
            return boxes, gr.skip(), gr.skip(), plain(words.problem(error), "error")
        try:
            with muted(), self._studio.pool.resting():
                fitted = trainings.fit_config(kept, model)
        except ThinktuneError as error:
            boxes[self.filled.index(self.source)] = kept
            sources = gr.update(choices=self._sources(kept, words))
            return boxes, sources, gr.skip(), plain(words.problem(error), "error")
        fields, sources = self.fill(request, fitted)
        named = [self._free_name(Path(fitted).stem), *fields]
        return named, sources, gr.update(choices=self._configs(words), value=fitted), ""

    def tell(self, request: gr.Request | None, file: str, name: str, *fields: Any) -> tuple[str, str, str]:
        """Return the command line and the config of the form, or its errors."""
        try:
            config, command = self._plan(file, name, *fields, score=True)
        except ThinktuneError as error:
            return "", "", plain(Words(request).problem(error), "error")
        return _code(in_words(command)), _code(dump_config(config)), ""

    def _plan(self, file: str, name: str, *fields: Any, score: bool = False) -> tuple[Config, list[str]]:
        base = self._config_of(file)
        settings, grid = _settings(base, *fields)
        return self._studio.trainings.plan(name, base, settings, score=score, grid=grid)

    def plan(self, request: gr.Request, file: str, name: str, *fields: Any) -> str:
        """Predict memory and time of the training. The model's configuration, no more, may have to be downloaded."""
        words = Words(request)
        try:
            config, _ = self._plan(file, name, *fields)
            with muted(), self._studio.pool.resting():  # the import, too: a model's loading has the same ones
                from thinktune.planner.plan_config import plan_config

                planned = plan_config(config)
            return run_view.plan(planned, words)
        except ThinktuneError as error:
            return plain(words.problem(error), "error")

    def plan_nearby(self, request: gr.Request, file: str, name: str, method: str, model: str, *fields: Any) -> Any:
        """Predict memory and time of a training whose model is on this machine, for which nothing is downloaded."""
        near = model.startswith("builtin:") or Path(model).is_dir()
        return self.plan(request, file, name, method, model, *fields) if near else ""

    def show_data(self, request: gr.Request, file: str, name: str, *fields: Any) -> str:
        """Read the data as the training would, and render how many rows are kept, why others are dropped, and a few
        examples. The model's tokenizer, no more, may have to be downloaded."""
        words = Words(request)
        try:
            config, _ = self._plan(file, name, *fields)
            with muted(), self._studio.pool.resting():
                from thinktune.report.data_preview import prepared_data

                data = prepared_data(config)
        except ThinktuneError as error:
            return plain(words.problem(error), "error")
        rows = [
            [example.messages[-1]["content"], example.think, example.answer]
            for example in (tokens.example for tokens in data.train[:_EXAMPLES])
        ]
        heads = [words(key) for key in ("prompt", "thought_column", "answer_column")]
        shown = [[str(text or "")[:_LONGEST] for text in row] for row in rows]
        return run_view.data_account(data.report.to_dict(), words) + run_view.table(heads, shown)

    def begin(self, words: Words, file: str, name: str, *fields: Any, score: bool) -> str:
        """Start the training, and return the problem that keeps it from starting."""
        try:
            base = self._config_of(file)
            settings, grid = _settings(base, *fields)
            self._studio.trainings.start(name, base, settings, score=score, grid=grid)
        except ThinktuneError as error:
            return plain(words.problem(error), "error")
        return ""


def _code(text: str) -> str:
    return f'<pre class="code" tabindex="0">{escape(text)}</pre>'


_KEYS = (
    "method", "model", "data.source", "data.sample", "train.max_steps", "lora.r", "train.learning_rate", "rl.prompts",
    "rl.num_generations", "rl.max_completion_length", "rl.rewards", "dpo.loss_type", "dpo.beta",
)  # fmt: skip
"""Settings with a field of their own, in the order of the fields."""
_OF_METHOD = {"rl": "grpo", "dpo": "dpo"}


def _fields(config: Config) -> list[Any]:
    """Return the values of the fields; "" for several sources, which the config keeps."""
    source = config.data.source if isinstance(config.data.source, str) else ""
    train, rl, dpo = config.train, config.rl, config.dpo
    rank = config.lora.r if config.lora else 0
    rewards = ", ".join(f"{name}: {weight:g}" for name, weight in rl.rewards.items())
    return [
        config.method, config.model, source, config.data.sample or 0, train.max_steps or 0, rank,
        str(train.learning_rate), rl.prompts, rl.num_generations, rl.max_completion_length, rewards, dpo.loss_type,
        dpo.beta,
    ]  # fmt: skip


def _settings(config: Path, *fields: Any) -> tuple[list[str], list[str]]:
    """Return the form's changes to its config, as on the command line, and those to sweep over."""
    *values, grid, further = fields
    method = values[0]
    base = load_config(config)
    before: Sequence[Any] = _fields(base)
    changes = []
    for key, old, new in zip(_KEYS, before, values, strict=True):
        if new is None or new == old or _OF_METHOD.get(key.partition(".")[0], method) != method:
            continue
        value = f"{{{new}}}" if key == "rl.rewards" else new
        changes.append(f"{key}={value if value or key not in ('data.sample', 'train.max_steps') else 'null'}")
    if method == "grpo" != base.method:  # which has neither a held-out loss nor batches beside those of rl.*
        needed = {"data.eval_fraction": 0, "train.batch_size": 1, "train.accumulation": 1}
        values_now = {"data": base.data, "train": base.train}
        for key, value in needed.items():
            section, name = key.split(".")
            if getattr(values_now[section], name) != value:
                changes.append(f"{key}={value}")
    return [*changes, *_lines(further)], _lines(grid)


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]
