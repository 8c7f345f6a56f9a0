"""The adapter and the optimisation: the sections `lora` and `train`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from thinktune.config.explain import LIST, NAME
from thinktune.config.section import Section
from thinktune.config.trainer_fields import OWNED_TRAINER_FIELDS

Logger = Literal["tensorboard", "wandb", "mlflow", "swanlab", "trackio"]


class Lora(Section):
    """The adapter."""

    r: int = Field(16, ge=1, le=2**16, description="rank")
    alpha: float = Field(32, gt=0, description="the adapter is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Annotated[
        Annotated[Literal["auto"], Tag(NAME)] | Annotated[list[str], Field(min_length=1), Tag(LIST)],
        Discriminator(lambda value: NAME if value == "auto" else LIST),
    ] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="names of the linear layers that get an adapter; auto: all of the text decoder, but no routers",
    )
    experts: bool = Field(
        False, description="adapters on the experts too, where a model keeps the weights of all as one tensor"
    )
    init: str | None = Field(
        None, description="run or adapter folder to continue from, with its rank, scale, dropout and targets"
    )
    use_rslora: bool = Field(False, description="scale by alpha / sqrt(r) instead of alpha / r")

    @model_validator(mode="after")
    def _experts_without_dropout(self) -> Lora:
        if self.experts and self.dropout > 0:
            raise ValueError("experts cannot have dropout: their adapters are added to the weights, not to the outputs")
        return self


class Stop(Section):
    """Early stopping, by the held-out examples; the adapter is that of their best evaluation."""

    monitor: Literal["loss", "token_accuracy"] = Field(
        "loss", description="held-out loss, or the share of held-out tokens that are the likeliest"
    )
    patience: int = Field(3, ge=1, description="evaluations without improvement after which training stops")
    min_delta: float = Field(
        0.0, ge=0, description="an improvement is more than this: nats, or a share between 0 and 1"
    )


class Train(Section):
    """The optimisation."""

    _retired: ClassVar[dict[str, str]] = {
        "fold_accumulation": "batches of an accumulation are run as one where that fits; train.memory is their limit"
    }

    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; null: as many as the epochs have")
    batch_size: int = Field(1, ge=1, description="packs per device and forward pass; without packing, examples")
    accumulation: int = Field(1, ge=1, description="gradient accumulation: batches per optimizer step")
    fused: bool = Field(
        True, description="on GPUs, run each decoder layer as one fused operation; false: transformers' layers"
    )
    packing: bool = Field(True, description="fill each pack with whole examples that cannot attend to each other")
    pack_length: int | None = Field(
        None, ge=16, description="max tokens of a pack; never below data.max_length, which null stands for"
    )
    learning_rate: Annotated[
        Annotated[Literal["auto"], Tag(NAME)] | Annotated[float, Field(gt=0), Tag(LIST)],
        Discriminator(lambda value: NAME if value == "auto" else LIST),
    ] = Field(2e-4, description="peak learning rate; auto: by model family, hidden size, rows a step and method")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "cosine"
    warmup_steps: float = Field(0.03, ge=0, description="optimizer steps, or below 1 a fraction of all steps")
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto", description="recompute activations; auto: as many as the memory demands; true: all; false: none"
    )
    offload_checkpoints: bool | Literal["auto"] = Field(
        "auto", description="keep checkpointed activations in main memory; auto: only if nothing else fits"
    )
    shard_base: bool | Literal["auto"] = Field(
        "auto", description="spread the frozen base over the host's GPUs; auto: only if it does not fit otherwise"
    )
    memory: float | None = Field(None, gt=0, description="max GiB of GPU memory to use; null: all that is free")
    on_oom: Literal["error", "retry"] = Field(
        "error", description="retry: resume from the last checkpoint with less memory and the same optimizer steps"
    )
    seed: int | None = Field(None, ge=0, lt=2**32, description="null: the top-level seed")
    log_every: int = Field(1, ge=1, description="optimizer steps between lines of metrics.jsonl")
    save_every: int = Field(100, ge=1, description="optimizer steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="number of checkpoints to keep")
    eval_every: int | None = Field(
        None, ge=1, description="optimizer steps between evaluation losses; null: only at the end"
    )
    stop: Stop | None = Field(
        None,
        description="early stopping (monitor, patience, min_delta); null: train to the end and keep the last weights",
    )
    report_to: list[Logger] = Field([], description="further loggers, through the trainer's own integrations")
    trainer: dict[str, Any] = Field({}, description="any further field of transformers' TrainingArguments")

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
        """The settings that the adapter depends on, unlike those on memory, the split of packs over batches, logging
        and checkpoints."""
        manner = {"gradient_checkpointing", "offload_checkpoints", "shard_base", "memory", "on_oom"}
        manner |= {"log_every", "save_every", "keep_checkpoints", "report_to"}
        packs = {"packs": self.batch_size * self.accumulation}
        return self.model_dump(exclude={*manner, "batch_size", "accumulation"}) | packs
