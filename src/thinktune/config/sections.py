"""The typed configuration, section by section; every default is written once, here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from thinktune import tags
from thinktune.config.data_section import Data
from thinktune.config.explain import explain
from thinktune.config.section import FUNCTION, Section
from thinktune.config.train_section import Lora, Stop, Train
from thinktune.errors import ConfigError

Quantize = Literal["none", "int8", "nf4", "fp8"]
ItemType = Literal["math", "choice", "code-generate", "generic-generate"]
ENGINES = ("auto", "transformers", "vllm")
Profile = Literal["default", "article"]
Method = Literal["sft", "grpo", "dpo"]
SEED = 3407
"""The default seed, also of the command line."""


class Load(Section):
    """Loading of models: download, device, dtype."""

    attempts: int = Field(3, ge=1, description="download attempts")
    wait: float = Field(5.0, ge=0, description="seconds before the second attempt; doubles after each")
    max_memory: float = Field(0.7, gt=0, le=1, description="fraction of each GPU's memory for quantized weights")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 if the hardware is fast with it, else float32"
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    @property
    def outcome(self) -> dict[str, Any]:
        """The settings that the model's results depend on."""
        return self.model_dump(exclude={"attempts", "wait", "max_memory"})


class Format(Section):
    """Rendering of an example as the assistant's text."""

    template: str = Field(tags.TEMPLATE, description="completion text, with {think} and {answer} once each")
    answer: Literal["boxed", "solution"] = Field(
        "boxed", description="boxed: the last box of the solution; solution: all of it"
    )
    clean_prompt: bool = Field(True, description=r"remove 'Return your final response within \boxed{}.' from prompts")

    @field_validator("template")
    @classmethod
    def _well_formed(cls, template: str) -> str:
        if template.count("{think}") != 1 or template.count("{answer}") != 1:
            raise ValueError("needs {think} and {answer} once each")
        if problem := tags.parse(tags.render("a", "b", template)).problem:
            raise ValueError(f"does not render to a well-formed completion: {problem}")
        return template


class Sampling(Section):
    """Sampling of tokens. Temperature 0 is greedy."""

    temperature: float = Field(0.0, ge=0, description="0: greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: all tokens")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="subtracted from the logit of each token that the completion already has"
    )
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="the same, once per occurrence")
    no_repeat_ngram_size: int = Field(0, ge=0)
    max_tokens: int = Field(1024, ge=1, description="max new tokens")
    think_budget: int | None = Field(
        None, ge=1, description="max thinking tokens, the rest of max_tokens is for the answer; null: no limit"
    )
    stop: tuple[str, ...] = Field((tags.STOP,), description="stop strings; kept in the completion")
    seed: int | None = Field(None, description="null: the top-level seed")
    n: int = Field(1, ge=1, le=10_000, description="completions per prompt")

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
        """Return a copy with other values, checked again.

        Raises:
            ConfigError: an unknown field, a wrong value, or values that contradict each other.
        """
        try:
            return Sampling.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            raise ConfigError("; ".join(explain(item, Sampling) for item in error.errors())) from None


REWARDS = ("answer", "format", "length")


class Rl(Section):
    """Reinforcement (`method: grpo`): completions are drawn, rewarded and trained on.

    Names are those of TRL's GRPOConfig where the thing is the same.
    """

    prompts: int = Field(32, ge=1, description="prompts an optimizer step")
    num_generations: int = Field(8, ge=2, description="completions per prompt: a group, whose rewards are compared")
    max_completion_length: int = Field(512, ge=1, description="max tokens of a completion")
    temperature: float = Field(1.0, gt=0, description="of the completions drawn, and of the policy that is trained")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0: all tokens")
    min_p: float = Field(0.0, ge=0, le=1)
    stop: tuple[str, ...] = Field(
        (), description="stop strings, kept in the completion; the end of turn always ends it"
    )
    rewards: dict[str, float] = Field(
        {"answer": 1.0},
        min_length=1,
        description="rewards with their weights: answer (the task's scorer), format, length, module:function",
    )
    length_buffer: int = Field(
        0, ge=0, description="last tokens before max_completion_length, over which the reward `length` falls to -1"
    )
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo"] = Field(
        "dapo", description="normalisation: by the tokens of the step, of each completion (grpo), or by a constant"
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group", description="divide advantages by the standard deviation of the rewards of the group or of the step"
    )
    importance_sampling_level: Literal["token", "sequence"] = Field(
        "token", description="ratio of policies that is clipped: of each token, or of whole completions (GSPO)"
    )
    epsilon: float = Field(0.2, gt=0, description="ratios are clipped below 1 - epsilon")
    epsilon_high: float | None = Field(None, gt=0, description="and above 1 + epsilon_high; null: epsilon")
    beta: float = Field(
        0.0, ge=0, description="coefficient of the KL divergence from the adapter that training began with"
    )
    num_iterations: int = Field(1, ge=1, description="optimizer steps on each batch of completions")
    mask_truncated_completions: bool = Field(
        False, description="completions cut off at max_completion_length have no part in the loss"
    )
    oversampling: float = Field(
        4.0,
        ge=1,
        description="draw up to so many times the prompts, to replace groups of equal rewards; 1: train without them",
    )
    max_staleness: int = Field(
        0,
        ge=0,
        description="optimizer steps that a group with signal, drawn beyond those needed, may wait to be trained",
    )
    importance_sampling_clip_max: float = Field(
        2.0, ge=1, description="truncates the weights that correct the engine's probabilities to the trainer's"
    )

    @field_validator("rewards")
    @classmethod
    def _known_rewards(cls, rewards: dict[str, float]) -> dict[str, float]:
        for name in rewards:
            if name not in REWARDS and not re.match(FUNCTION, name):
                raise ValueError(f"{name!r} should be {', '.join(REWARDS)} or module:function")
        return rewards

    @property
    def sampling(self) -> Sampling:
        """The sampling of a group."""
        own = ("temperature", "top_p", "top_k", "min_p", "stop")
        settings = {name: getattr(self, name) for name in own}
        return Sampling(n=self.num_generations, max_tokens=self.max_completion_length, **settings)


class Dpo(Section):
    """Preferences (`method: dpo`): the better of two replies is made likelier than the worse one.

    Names are those of TRL's DPOConfig and CPOConfig.
    """

    loss_type: Literal["sigmoid", "ipo", "simpo"] = Field(
        "sigmoid", description="sigmoid: DPO; ipo; simpo: by mean log-probabilities, without a reference"
    )
    beta: float = Field(
        0.1, gt=0, description="how closely the reference is kept to; scale of simpo's rewards, which wants about 2"
    )
    simpo_gamma: float = Field(0.5, ge=0, description="margin of rewards that simpo asks for")


QUESTIONS = (
    "How many r's are in the word strawberry?",
    "A train travels 60 miles in 45 minutes. What is its average speed in miles per hour?",
    "If 3x + 7 = 25, what is x?",
    "Which is larger, 9.11 or 9.9?",
)


class Ask(Section):
    """Questions that the model answers when training ends."""

    questions: list[str] = Field(list(QUESTIONS))
    sampling: Sampling = Sampling(temperature=0.1, max_tokens=2048)


class Vllm(Section):
    """vLLM's own settings."""

    _renamed: ClassVar[dict[str, str]] = {"item_noise": "per_request_seed"}

    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="fraction of GPU memory for weights, KV cache and CUDA graphs"
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="max tokens of prompt and completion; null: the model's context, as far as memory allows",
    )
    max_num_seqs: int = Field(512, ge=1, description="max concurrent sequences")
    max_num_batched_tokens: int | None = Field(None, ge=16, description="max tokens per step; null: vLLM's choice")
    enforce_eager: bool | None = Field(
        None, description="no compilation or CUDA graphs: faster start, slower generation; null: on a CPU only"
    )
    per_request_seed: bool = Field(
        True,
        description="noise by seed, id and sample, whatever shares the batch; false: one generator for all, faster",
    )


class Endpoint(Section):
    """How a model behind a server (openai:MODEL@URL) is asked."""

    concurrency: int = Field(16, ge=1, description="max requests at once")
    attempts: int = Field(8, ge=1, description="requests for a completion before it counts as failed")
    timeout: float = Field(1800.0, gt=0, description="max seconds of a completion, repeated requests included")


class Infer(Section):
    """Batch items to a result file."""

    engine: str = Field(
        "auto",
        description="auto (vLLM where it is installed and there is a GPU), vllm, transformers, or module:function",
        json_schema_extra={"anyOf": [{"enum": list(ENGINES)}, {"pattern": FUNCTION}]},
    )
    merge: bool = Field(True, description="false: run the adapter beside its base, unmerged, which is slower")
    workers: int | None = Field(
        None, ge=1, description="engines, a GPU each; null: 1, or with --cluster as many as it has GPUs"
    )
    vllm: Vllm = Vllm()
    endpoint: Endpoint = Endpoint()
    file: str | None = Field(None, description="batch file, or builtin:questions; null: `run` skips inference")
    out: Path | None = Field(None, description="result file; null: RUN/infer/results.json")
    profile: Profile = Field("default", description="sampling of all types: default, or article (the guide's values)")
    profiles: dict[ItemType, Sampling] = Field({}, description="sampling by item type, over the profile's")
    think_budget: int | None = Field(None, ge=1, description="max thinking tokens of item types that set none")
    batch_tokens: int | None = Field(
        None, ge=1, description="max tokens in the transformers engine's KV cache; null: from free memory"
    )

    @field_validator("engine")
    @classmethod
    def _known(cls, engine: str) -> str:
        if engine not in ENGINES and not re.match(FUNCTION, engine):
            raise ValueError(f"should be {', '.join(ENGINES)} or module:function, not {engine!r}")
        return engine


class Eval(Section):
    """Scores on held-out problems."""

    data: str | None = Field(None, description="rows with references; null: `run` skips evaluation")
    split: str = "test"
    sample: int | None = Field(None, ge=1, description="number of problems, drawn by seed; null: all")
    sampling: Sampling = Sampling()
    every: int | None = Field(50, ge=1, description="optimizer steps between small evaluations during training")
    every_sample: int = Field(16, ge=1, description="problems of a small evaluation, always the same ones")
    every_tokens: int = Field(512, ge=1, description="max new tokens in a small evaluation, which is greedy")
    every_share: float = Field(
        0.1, gt=0, le=1, description="max fraction of the training time for small evaluations; 1: no limit"
    )
    base: bool = Field(True, description="also score the base model, with the format explained in its prompt")


class Config(Section):
    """All settings of a run."""

    method: Method = Field(
        "sft", description="sft: from examples; grpo: from rewards of the model's own answers; dpo: from pairs"
    )
    model: str = Field("builtin:smollm2", description="base model: folder, hub id, ms: id or builtin:")
    seed: int = Field(SEED, ge=0, lt=2**32, description="random seed")
    quantize: Quantize = Field("none", description="quantize the base weights")
    load: Load = Load()
    data: Data = Data()
    format: Format = Format()
    lora: Lora | None = Field(Lora(), description="the adapter; null: full fine-tuning, of all weights")
    train: Train = Train()
    rl: Rl = Rl()
    dpo: Dpo = Dpo()
    ask: Ask = Ask()
    infer: Infer = Infer()
    eval: Eval = Eval()
    output: Path | None = Field(None, description="run folder; null: runs/CONFIG-STEM")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.lora is None:
            self._check_whole()
        if self.method == "grpo":
            self._check_reinforcement()
        if self.method == "dpo":
            self._check_pairs()
        if self.train.stop is not None:
            self._check_stop(self.train.stop)
        return self

    def _check_stop(self, stop: Stop) -> None:
        if self.method == "grpo":
            raise ValueError("train.stop goes by held-out examples, which method: grpo has not")
        if self.method == "dpo" and stop.monitor == "token_accuracy":
            raise ValueError("train.stop.monitor: token_accuracy is not known of pairs; loss is")
        if not self.data.eval_fraction:
            raise ValueError("train.stop goes by held-out examples, and data.eval_fraction holds none out: 0.05, say")
        if self.train.eval_every is None:
            raise ValueError("train.stop goes by evaluations, and train.eval_every has none before the end: 20, say")

    def _check_whole(self) -> None:
        if self.method != "sft":
            raise ValueError(f"method: {self.method} needs an adapter (lora): its reference is the model without it")
        if self.quantize != "none":
            raise ValueError(
                f"lora: null trains all weights, and quantize: {self.quantize} freezes them; quantize: none"
            )

    def _check_reinforcement(self) -> None:
        if self.data.eval_fraction:
            raise ValueError("data.eval_fraction holds examples out for a loss that method: grpo has not")
        if self.data.overlong == "cut":
            raise ValueError("data.overlong: cut is for examples; a problem's prompt is never cut")
        if (self.train.batch_size, self.train.accumulation) != (1, 1):
            raise ValueError("with method: grpo, rl.prompts times rl.num_generations is the batch of a step")
        if self.rl.loss_type == "cispo" and self.rl.epsilon_high is None:
            raise ValueError("rl.loss_type: cispo needs rl.epsilon_high, the most that a weight may be: 5, say")

    def _check_pairs(self) -> None:
        if self.data.overlong == "cut":
            raise ValueError("data.overlong: cut would train halves of replies that were preferred as a whole")
        for name in ("filter", "deduplicate", "decontaminate", "format"):
            if getattr(self.data, name) != getattr(Data(), name):
                raise ValueError(f"data.{name} has no meaning for the pairs of method: dpo")
        if any(source.filter for source in self.data.sources):
            raise ValueError("data.source[].filter has no meaning for the pairs of method: dpo")

    @property
    def documents(self) -> int:
        """The documents that an example of the data is trained as: one, or the two replies of a pair."""
        return 2 if self.method == "dpo" else 1

    @property
    def pack_length(self) -> int:
        """Max tokens of a pack, never below those of an example or pair: it has to fit into a pack."""
        return max(self.train.pack_length or 0, self.data.max_length * self.documents)

    @property
    def load_to_train(self) -> Load:
        """How the model is loaded to be trained. All of its weights are trained in float32: in bfloat16, small updates
        would round to nothing."""
        return self.load if self.lora is not None else self.load.model_copy(update={"dtype": "float32"})

    @property
    def data_seed(self) -> int:
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def train_seed(self) -> int:
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def run_folder(self) -> Path:
        return self.output or Path("runs/run")
