"""The typed configuration: one YAML file, `key=value` overrides, every default written once, here.

Unknown keys are refused with the nearest valid one. `configs/*.yaml` are the shipped ones; `thinktune config FILE`
prints what a file resolves to, and `thinktune config --schema` the JSON schema for editors.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from thinktune import tags
from thinktune.errors import ConfigError
from thinktune.files import read_text

Quantize = Literal["none", "int8", "nf4", "fp8"]
Logger = Literal["tensorboard", "wandb", "mlflow", "swanlab", "trackio"]
ItemType = Literal["math", "choice", "code-generate", "generic-generate"]
ITEM_TYPES: tuple[str, ...] = get_args(ItemType)
Profile = Literal["default", "article"]
_LONGEST = 4 * 2**20
"""Bytes of a config file."""
_MOST_VALUES = 10**6
SEED = 3407
"""Where no other is given; the command line's too."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_empty_sections(cls, values: Any) -> Any:
        """In YAML, `lora:` with nothing below it is null; a person means the section with its defaults."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or not cls._is_section(key)}

    @classmethod
    def _is_section(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, _Section)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1; nobody who writes `r: true` means that."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("should not be true or false")
        return value


class Load(_Section):
    """How a model gets into memory."""

    attempts: int = Field(3, ge=1, description="tries for a download that may succeed later")
    wait: float = Field(5.0, ge=0, description="seconds before the second try; doubles after each")
    max_memory: float = Field(0.7, gt=0, le=1, description="share of each GPU's memory for quantised weights")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the hardware multiplies it fast, else float32"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    @property
    def outcome(self) -> dict[str, Any]:
        """What decides how the model computes."""
        return self.model_dump(exclude={"attempts", "wait", "max_memory"})


class Source(_Section):
    """One of several data sources."""

    source: str
    weight: float = Field(1.0, gt=0, description="share of the sample, relative to the other sources")
    split: str | None = Field(None, description="overrides data.split")


_NAME, _LIST = "(name)", "(list)"
"""The two ways to write data.source, told apart before checking, so that a mistake is reported for one of them."""


class Data(_Section):
    """Rows: where from, how many, and what makes one unusable."""

    source: Annotated[
        Annotated[str, Tag(_NAME)] | Annotated[list[Source], Tag(_LIST)],
        Discriminator(lambda value: _NAME if isinstance(value, str) else _LIST),
    ] = Field("builtin:arithmetic", description="file, folder, hub id, ms: id or builtin:")
    split: str = "train"
    sample: int | None = Field(None, ge=1, description="usable examples to keep, drawn by seed; null: all")
    seed: int | None = Field(None, description="null: the top-level seed")
    max_length: int = Field(2048, ge=16, description="tokens of one example, prompt and end-of-turn included")
    overlong: Literal["drop", "error", "cut"] = "drop"
    system: str = Field("drop", description="drop or keep the row's own system text, or a text to use instead")
    shape: str | None = Field(None, description="'module:function' that turns a row into an example")
    eval_fraction: float = Field(0.0, ge=0, lt=1, description="share of the examples held out for evaluation loss")
    cache: Path = Field(Path("data/reasoning"), description="where hub data sets are kept")

    @property
    def sources(self) -> list[Source]:
        return [Source(source=self.source)] if isinstance(self.source, str) else self.source

    @property
    def outcome(self) -> dict[str, Any]:
        """What decides which examples there are."""
        return self.model_dump(exclude={"cache"})

    @property
    def chat_settings(self) -> dict[str, str]:
        """What `system` says to models.make_chat: a text of its own replaces the one the model has."""
        return {} if self.system in ("drop", "keep") else {"system": self.system}


class Format(_Section):
    """How an example becomes the assistant's text."""

    template: str = tags.TEMPLATE
    answer: Literal["boxed", "solution"] = Field("boxed", description="last balanced box of the solution, or all of it")
    clean_prompt: bool = Field(True, description=r"remove 'Return your final response within \boxed{}.' from prompts")

    @field_validator("template")
    @classmethod
    def _well_formed(cls, template: str) -> str:
        if template.count("{think}") != 1 or template.count("{answer}") != 1:
            raise ValueError("needs {think} and {answer} once each")
        if problem := tags.parse(tags.render("a", "b", template)).problem:
            raise ValueError(f"does not render to a well-formed completion: {problem}")
        return template


class Lora(_Section):
    """The adapter."""

    r: int = Field(16, ge=1, le=2**16)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    init: str | None = Field(
        None, description="a run or adapter folder to continue from; its own rank, scale, dropout and targets hold"
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead of alpha / r")


OWNED_TRAINER_FIELDS = {
    "output_dir": "output",
    "max_length": "data.max_length",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "learning_rate": "train.learning_rate",
    "lr_scheduler_type": "train.scheduler",
    "warmup_steps": "train.warmup_steps",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.max_grad_norm",
    "optim": "train.optimizer",
    "seed": "train.seed",
    "data_seed": "train.seed",
    "logging_steps": "train.log_every",
    "save_steps": "train.save_every",
    "save_strategy": "train.save_every",
    "save_total_limit": "train.keep_checkpoints",
    "eval_steps": "train.eval_every",
    "eval_strategy": "train.eval_every",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "",
    "packing": "train.packing",
    "padding_free": "train.packing",
    "report_to": "train.report_to",
    "run_name": "output",
    "bf16": "load.dtype",
    "fp16": "load.dtype",
    "use_cpu": "load.device",
    "remove_unused_columns": "",
    "disable_tqdm": "",
    "logging_nan_inf_filter": "",
    "dataset_kwargs": "",
    "assistant_only_loss": "",
    "completion_only_loss": "",
    "loss_type": "",
    "label_smoothing_factor": "",
    "use_liger_kernel": "",
}
"""SFTConfig fields that thinktune sets itself, and the setting to use instead ("" where there is none)."""


class Train(_Section):
    """The optimisation."""

    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; null: as many as the epochs hold")
    batch_size: int = Field(1, ge=1, description="rows a device takes at once; with packing, packs of pack_length")
    accumulation: int = Field(1, ge=1, description="batches an optimizer step adds up")
    fused: bool = Field(True, description="on GPUs, each decoder layer as one node; false: transformers' own layers")
    packing: bool = Field(True, description="fill each row with whole examples that cannot see each other")
    pack_length: int | None = Field(None, ge=16, description="tokens of a pack; null: data.max_length")
    learning_rate: float = Field(2e-4, gt=0)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "cosine"
    warmup_steps: float = Field(0.03, ge=0, description="optimizer steps, or below 1 a share of all of them")
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    max_grad_norm: float = Field(1.0, gt=0)
    fold_accumulation: bool = Field(
        True, description="run the batches of an accumulation as one where that fits: same steps, same gradients"
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="recompute activations: auto, what the memory demands; true, all of them; false, none"
    )
    offload_checkpoints: bool | Literal["auto"] = Field(
        "auto", description="keep what layers are recomputed from in main memory; auto: where nothing else makes it fit"
    )
    memory: float | None = Field(None, gt=0, description="GiB of GPU memory to use at most; null: what is free")
    on_oom: Literal["error", "retry"] = Field(
        "error", description="retry: go on from the last checkpoint with less memory and the same optimizer steps"
    )
    seed: int | None = Field(None, ge=0, lt=2**32, description="null: the top-level seed")
    log_every: int = Field(1, ge=1, description="optimizer steps between two lines of metrics.jsonl")
    save_every: int = Field(100, ge=1, description="optimizer steps between two checkpoints")
    keep_checkpoints: int = Field(2, ge=1)
    eval_every: int | None = Field(None, ge=1, description="steps between evaluation losses; null: at the end")
    report_to: list[Logger] = Field([], description="where to log as well, through the trainer's own integrations")
    trainer: dict[str, Any] = Field({}, description="any further field of TRL's SFTConfig, checked by it")

    @field_validator("trainer")
    @classmethod
    def _not_owned(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for name in fields:
            if name in OWNED_TRAINER_FIELDS:
                ours = OWNED_TRAINER_FIELDS[name]
                raise ValueError(f"{name} is set by thinktune" + (f"; use {ours}" if ours else ""))
        return fields

    @property
    def outcome(self) -> dict[str, Any]:
        """What decides which adapter comes out: not how memory is made to suffice, how rows are spread over batches, or
        what is told and kept on the way."""
        manner = {"fold_accumulation", "gradient_checkpointing", "offload_checkpoints", "memory", "on_oom"}
        manner |= {"log_every", "save_every", "keep_checkpoints", "report_to"}
        rows = {"rows": self.batch_size * self.accumulation}
        return self.model_dump(exclude={*manner, "batch_size", "accumulation"}) | rows


class Sampling(_Section):
    """How tokens are drawn. Temperature 0 is greedy."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: all")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="off the score of each token written already")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="the same, once for each time it was written")
    no_repeat_ngram_size: int = Field(0, ge=0)
    max_tokens: int = Field(1024, ge=1)
    think_budget: int | None = Field(
        None, ge=1, description="of max_tokens, so many for the thought, the rest for the answer; null: as it comes"
    )
    stop: tuple[str, ...] = Field((tags.STOP,), description="generation ends after any of these; it is kept")
    seed: int | None = Field(None, description="null: the top-level seed")
    n: int = Field(1, ge=1, le=10_000, description="completions a prompt")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, stop: Any) -> Any:
        return (stop,) if isinstance(stop, str) else stop

    @model_validator(mode="after")
    def _room_for_an_answer(self) -> Sampling:
        if self.think_budget is not None and self.think_budget >= self.max_tokens:
            raise ValueError(
                f"think_budget {self.think_budget} leaves no tokens for the answer: max_tokens is {self.max_tokens}"
            )
        return self

    def changed(self, **values: Any) -> Sampling:
        """This with other values, checked again.

        Raises:
            ConfigError: an unknown field, a wrong value, or values that contradict each other.
        """
        try:
            return Sampling.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(item, Sampling) for item in error.errors())) from None


QUESTIONS = (
    "How many r's are in the word strawberry?",
    "A train travels 60 miles in 45 minutes. What is its average speed in miles per hour?",
    "If 3x + 7 = 25, what is x?",
    "Which is larger, 9.11 or 9.9?",
)


class Ask(_Section):
    """What the model answers when training ends."""

    questions: list[str] = list(QUESTIONS)
    sampling: Sampling = Sampling(temperature=0.1, max_tokens=2048)


class Vllm(_Section):
    """vLLM's own settings."""

    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of the GPU's memory for weights, cache and graphs together"
    )
    max_model_len: int | None = Field(
        None, ge=16, description="tokens of prompt and answer; null: the model's, or what the memory has room for"
    )
    max_num_seqs: int = Field(512, ge=1, description="completions that are written at the same time")
    max_num_batched_tokens: int | None = Field(None, ge=16, description="tokens of one step; null: vLLM's choice")
    enforce_eager: bool | None = Field(
        None, description="no compilation, no CUDA graphs: starts sooner, runs slower; null: on a CPU only"
    )
    item_noise: bool = Field(
        True,
        description="noise by seed, id and sample, whatever shares the batch; false: one generator for all, faster",
    )


class Infer(_Section):
    """Batch items to a result file."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="auto: vLLM where it is installed and there is a GPU, else transformers"
    )
    merge: bool = Field(True, description="false: run an adapter beside its base, unmerged, which is slower")
    vllm: Vllm = Vllm()
    file: str | None = Field(None, description="batch file, or builtin:questions; null: no inference in run")
    out: Path | None = Field(None, description="result file; null: RUN/infer/results.json")
    profile: Profile = Field("default", description="sampling of all types: default, or article (the guide's values)")
    profiles: dict[ItemType, Sampling] = Field({}, description="sampling by item type, over the profile's")
    think_budget: int | None = Field(None, ge=1, description="think_budget of all types that set none themselves")
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens the transformers engine holds at once; null: from free memory"
    )


class Eval(_Section):
    """Scores on held-out problems."""

    data: str | None = Field(None, description="rows with references; null: no evaluation in run")
    split: str = "test"
    sample: int | None = Field(None, ge=1, description="problems to score, drawn by seed; null: all")
    sampling: Sampling = Sampling()
    every: int | None = Field(50, ge=1, description="optimizer steps between small evaluations during training")
    every_sample: int = Field(16, ge=1, description="problems of such an evaluation, always the same")
    every_tokens: int = Field(512, ge=1, description="most tokens of an answer there, greedy")
    every_share: float = Field(0.1, gt=0, le=1, description="most of the training time they may take; 1: all of it")
    base: bool = Field(True, description="score the untuned model too, told the format in its prompt")


class Config(_Section):
    """Everything a run needs."""

    model: str = "builtin:smollm2"
    seed: int = Field(SEED, ge=0, lt=2**32)
    quantize: Quantize = "none"
    load: Load = Load()
    data: Data = Data()
    format: Format = Format()
    lora: Lora = Lora()
    train: Train = Train()
    ask: Ask = Ask()
    infer: Infer = Infer()
    eval: Eval = Eval()
    output: Path | None = Field(None, description="the run folder; null: runs/CONFIG-STEM")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.train.pack_length is not None and self.train.pack_length < self.data.max_length:
            raise ValueError("train.pack_length must not be below data.max_length: an example has to fit into a pack")
        return self

    @property
    def data_seed(self) -> int:
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def train_seed(self) -> int:
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def run_folder(self) -> Path:
        return self.output or Path("runs/run")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=value` overrides (values are YAML).

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value does not fit.
    """
    path = Path(path)
    values = read_values(path)
    for override in overrides:
        _apply_override(values, override)
    config = parse_config(values, where=str(path))
    if config.output is None:
        config = config.model_copy(update={"output": Path("runs") / path.stem})
    return config


def parse_config(values: dict[str, Any], where: str = "config") -> Config:
    """Check plain values (from YAML, JSON or a form) and return the typed config.

    Raises:
        ConfigError: all problems at once, a line each.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_explain(item) for item in error.errors()]
        hint = "thinktune config --schema lists every key"
        raise ConfigError(f"{where}: " + "\n".join(problems), hint) from None


def parse_load(settings: Sequence[str] | None, base: Load | None = None) -> Load:
    """`load.*` settings as `device=cpu`, over those of `base`.

    Raises:
        ConfigError: as `load_config`.
    """
    values = {"load": (base or Load()).model_dump()}
    for setting in settings or ():
        _apply_override(values, f"load.{setting}")
    return parse_config(values, where="--load").load


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False, allow_unicode=True)


def read_values(path: Path) -> dict[str, Any]:
    """The values of a config file, unchecked.

    Raises:
        ConfigError: the file is missing, not YAML, or no mapping.
    """
    try:
        text = read_text(path, _LONGEST)
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}", hint="shipped ones are in configs/") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    values = _parse_yaml(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: is empty", hint="at least `model:` and `data:` belong in it")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, not a {type(values).__name__}")
    return values


def _parse_yaml(text: str, where: str) -> Any:
    try:
        values = yaml.load(text, Loader=_Loader)
        written_out = _size(values, {})
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {error}") from None
    except UnicodeEncodeError:
        raise ConfigError(f"{where} holds half of a surrogate pair, which is no text") from None
    except RecursionError:
        raise ConfigError(f"{where} is nested too deep") from None
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # as YAML's types fail: a 32nd of May, `!!bool 5`
        raise ConfigError(f"{where} holds a value that cannot be read: {error}") from None
    if written_out > _MOST_VALUES:
        raise ConfigError(f"{where} has aliases (*name) that stand for {written_out:,} values")
    return values


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are once aliases are written out; `known` has those of lists and mappings by identity.

    Raises:
        UnicodeEncodeError: a text is none.
        RecursionError: an alias stands for what it is part of.
    """
    if isinstance(value, str):
        value.encode()
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(value)]


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number (YAML 1.1 reads a text), and a key set twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is set twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {key: list(pairs) for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not key=value", hint="for example lora.r=16")
    value = _parse_yaml(text, f"override {override!r}: the value")
    *path, last = key.split(".")
    section = values
    for name in path:
        inner = section.get(name)
        if inner is None:
            inner = section[name] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {name} is not a section")
        section = inner
    section[last] = value


def _explain(problem: Any, root: type[BaseModel] = Config) -> str:
    where = ".".join(str(part) for part in problem["loc"] if part not in (_NAME, _LIST))
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    known = list(_keys_beside(problem["loc"], root))
    near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
    return f"{where}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}")


def _keys_beside(location: tuple[Any, ...], root: type[BaseModel]) -> Iterator[str]:
    model: Any = root
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            continue
        model = next((kind for kind in _models_in(field.annotation)), model)
    yield from model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def config_schema() -> str:
    """The JSON schema of config files, for editors (configs/schema.json is this text)."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False)
