"""The form that starts a training, with its command line and its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from thinktune.config import Config, dump_config, load_config
from thinktune.errors import ThinktuneError
from thinktune.notices import muted
from thinktune.studio.markdown import plain
from thinktune.studio.model_pool import reason
from thinktune.studio.state import Studio
from thinktune.studio.training_jobs import in_words
from thinktune.studio.translations import label

_NAME = "studio-run"


class TrainingForm:
    """Builds the form; if the studio may not train, a sentence that says why."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Accordion(label("training"), open=False, elem_id="train-form"):
            if studio.may_train:
                self._build()
            else:
                gr.Markdown(label("no_training_here"))

    def _build(self) -> None:
        configs = [str(file) for file in shipped_configs()]
        first = next((file for file in configs if file.endswith("quickstart.yaml")), configs[0])
        filled = _fields(load_config(first))
        with gr.Row():
            self.config = gr.Dropdown(
                [(Path(file).stem, file) for file in configs],
                value=first,
                label=label("config"),
                elem_id="train-config",
            )
            self.name = gr.Textbox(_NAME, label=label("run_name"), max_length=64, elem_id="train-name")
        with gr.Row():
            self.model = gr.Textbox(filled[0], label=label("model"), elem_id="train-model")
            self.source = gr.Textbox(filled[1], label=label("data_source"), elem_id="train-source")
        with gr.Row():
            self.sample = gr.Number(filled[2], precision=0, minimum=0, label=label("sample"), elem_id="train-sample")
            self.steps = gr.Number(filled[3], precision=0, minimum=0, label=label("max_steps"), elem_id="train-steps")
            self.rank = gr.Number(filled[4], precision=0, minimum=1, label="LoRA r", elem_id="train-rank")
            self.rate = gr.Number(filled[5], minimum=0, label=label("learning_rate"), elem_id="train-rate")
        command, config, _ = self.tell(first, _NAME, *filled, "")
        self.overrides = gr.Textbox(label=label("overrides"), lines=3, elem_id="train-overrides")
        self.command = gr.Code(
            command, label=label("command"), language="shell", interactive=False, elem_id="train-command"
        )
        self.yaml = gr.Code(
            config, label=label("yaml"), language="yaml", interactive=False, max_lines=16, elem_id="train-yaml"
        )
        self.problem = gr.Markdown(elem_id="train-problem", latex_delimiters=[])
        with gr.Row():
            self.estimate = gr.Button(label("estimate"), elem_id="train-estimate")
            self.start = gr.Button(label("start"), variant="primary", elem_id="train-start")
        self.memory = gr.Markdown(elem_id="train-memory", latex_delimiters=[])
        self._connect()

    @property
    def inputs(self) -> list[Any]:
        return [
            self.config, self.name, self.model, self.source, self.sample, self.steps, self.rank, self.rate,
            self.overrides,
        ]  # fmt: skip

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        self.config.change(lambda file: _fields(load_config(_shipped(file))), self.config, self.inputs[2:8], **quiet)
        # One event for all fields, and its last word holds: an answer to an earlier state must not come after it.
        changes = [field.change for field in self.inputs]
        told = [self.command, self.yaml, self.problem]
        gr.on(changes, self.tell, self.inputs, told, trigger_mode="always_last", **quiet)
        self.estimate.click(self.plan, self.inputs, self.memory, **{**quiet, "show_progress": "full"})

    def started(self, then: Callable[[str], Any], outputs: list[Any]) -> None:
        """Call `then` with the name of each training that is started."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.start.click(self.begin, self.inputs, self.problem, **quiet).success(then, self.name, outputs, **quiet)

    def tell(self, file: str, name: str, *fields: Any) -> tuple[str, str, str]:
        """Return the command line and the config of the form, or its errors."""
        try:
            config, command = self._studio.trainings.plan(name, _shipped(file), list(_settings(file, *fields)))
        except ThinktuneError as error:
            return "", "", plain(reason(error))
        return in_words(command), dump_config(config), ""

    def plan(self, file: str, name: str, *fields: Any) -> str:
        """Predict memory and time of the training. The model's configuration, no more, may have to be downloaded."""
        from thinktune.planner.plan import plan_config

        try:
            config, _ = self._studio.trainings.plan(name, _shipped(file), list(_settings(file, *fields)))
            with muted():
                return plain(plan_config(config).line())
        except ThinktuneError as error:
            return plain(reason(error))

    def begin(self, file: str, name: str, *fields: Any) -> str:
        try:
            self._studio.trainings.start(name, _shipped(file), list(_settings(file, *fields)))
        except ThinktuneError as error:
            raise gr.Error(escape(reason(error))) from None
        return ""


def shipped_configs() -> list[Path]:
    """Return the configs that come with thinktune."""
    packaged = Path(str(files("thinktune") / "configs"))
    folder = packaged if packaged.is_dir() else Path(__file__).parents[4] / "configs"
    return sorted(folder.glob("*.yaml"))


def _shipped(file: str) -> Path:
    return next(each for each in shipped_configs() if str(each) == file)


def _fields(config: Config) -> list[Any]:
    source = config.data.source if isinstance(config.data.source, str) else ""
    train = config.train
    return [config.model, source, config.data.sample or 0, train.max_steps or 0, config.lora.r, train.learning_rate]


_KEYS = ("model", "data.source", "data.sample", "train.max_steps", "lora.r", "train.learning_rate")


def _settings(file: str, *fields: Any) -> Iterator[str]:
    """Return the form's changes to its config, as they would be written on the command line."""
    *values, further = fields
    before: Sequence[Any] = _fields(load_config(_shipped(file)))
    for key, old, new in zip(_KEYS, before, values, strict=True):
        if new is not None and new != old:
            yield f"{key}={new if new or key not in ('data.sample', 'train.max_steps') else 'null'}"
    yield from (line.strip() for line in (further or "").splitlines() if line.strip())
