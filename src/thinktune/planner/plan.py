"""`thinktune plan CONFIG`: the memory, the speed and the hours of a training, before anything is loaded.

Only the model's configuration is read, and the lengths of the data's examples where that is quick. `train` begins with
the same plan for the card at hand and takes from it what to recompute; `--fit` looks for the settings that are fastest
among those that fit, at the same number of rows an optimizer step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from thinktune.config import Config, Quantize
from thinktune.errors import ThinktuneError
from thinktune.notices import muted
from thinktune.planner.cost_model import FRAGMENTS, Batch, CostModel, cost_model_of
from thinktune.planner.hardware import GIB, Hardware, find_gpu, hardware_here
from thinktune.planner.known_models import known_config
from thinktune.planner.model_shape import ModelShape, shape_of
from thinktune.planner.pack_lengths import Rows, longest_rows, read_rows
from thinktune.planner.recompute_policy import Level, RecomputePolicy

__all__ = ["Batch", "Plan", "RecomputePolicy", "Rows", "choose", "fit", "lighter", "plan_config", "plan_rows"]

logger = logging.getLogger(__name__)

Checkpointing = bool | Literal["auto"]
_SMALLEST_CHUNK = 512
"""Tokens of an MLP chunk; below, products lose their speed."""
_MOST_CHUNKS = 8
_EXTREMES: tuple[Level, Level] = ("none", "full")
_MORE_PRECISE: tuple[Quantize, ...] = ("none", "fp8", "int8", "nf4")
_WORTH = 1.1
"""So many times faster a less precise base has to be to be preferred."""


@dataclass(frozen=True)
class Plan:
    """What a training will take, and how it is made to fit.

    Attributes:
        rows, accumulation: packs a forward pass takes, and passes an optimizer step adds up.
        fused: whether fused/ runs the decoder layers.
        parts: bytes by part; "peak" is their peak, "logits" and "workspace" are never there together.
        limit: bytes that may be used.
        longest: tokens of the longest batch, which the peak is for.
        tokens_per_second, hours: None where no rate, or no length of the data, is known.
    """

    model: str
    hardware: str
    quantize: Quantize
    fused: bool
    memory: RecomputePolicy
    rows: int
    accumulation: int
    parts: dict[str, int]
    limit: int
    fits: bool
    longest: int
    step_tokens: float
    tokens_per_second: float | None
    steps: int | None
    hours: float | None
    data: str

    def describe(self) -> str:
        """Say how the rows of an optimizer step go through the model."""
        spread = f"{self.rows} row{'s' * (self.rows > 1)} at once"
        return f"{spread} x {self.accumulation}, {describe_memory(self.memory)}"

    def line(self) -> str:
        """The plan in a line."""
        speed = f", about {self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        hours = f", {duration(self.hours)}" if self.hours else ""
        return (
            f"plan: {self.parts['peak'] / GIB:.1f} of {self.limit / GIB:.1f} GiB"
            f"{'' if self.fits else ' (does not fit)'}{speed}{hours}; {self.describe()}"
        )

    def overrides(self, config: Config) -> list[str]:
        """The settings that differ from `config`'s."""
        settings: dict[str, Any] = {"quantize": self.quantize}
        settings |= {"train.batch_size": self.rows, "train.accumulation": self.accumulation}
        if self.fused:
            offload: bool | str = self.memory.offload
            if not offload and config.train.offload_checkpoints == "auto":
                offload = "auto"  # says the same
            settings |= {"train.gradient_checkpointing": "auto", "train.offload_checkpoints": offload}
        else:
            settings["train.gradient_checkpointing"] = self.memory.levels[0] == "full"
        before = {"quantize": config.quantize} | {f"train.{name}": value for name, value in config.train}
        return [f"{key}={str(value).lower()}" for key, value in settings.items() if value != before[key]]


def describe_memory(memory: RecomputePolicy) -> str:
    """Such as `recomputing 12 of 36 MLPs and 4 of 36 layers, MLP in 2 chunks`."""
    full, mlp, total = memory.levels.count("full"), memory.levels.count("mlp"), len(memory.levels)
    some = [f"{mlp} of {total} MLPs"] * bool(mlp) + [f"{full} of {total} layers"] * bool(full)
    parts = ["recomputing " + " and ".join(some) if some else "recomputing nothing"]
    parts += [f"MLP in {memory.mlp_chunks} chunks"] * (memory.mlp_chunks > 1)
    parts += ["checkpoints in main memory"] * memory.offload
    return ", ".join(parts)


def lighter(plan: Plan) -> Plan | None:
    """The same plan with less memory for the same optimizer step: more recomputation, then smaller pieces of the MLP,
    then checkpoints in main memory, then fewer rows at once. None where nothing is left. What it predicts stays."""
    memory = plan.memory
    ladder: tuple[Level, ...] = ("mlp", "full") if plan.fused else ("full",)
    for level in ladder:
        heavier = ("none",) if level == "mlp" else ("none", "mlp")
        if any(each in heavier for each in memory.levels):
            levels = tuple(level if each in heavier else each for each in memory.levels)
            return replace(plan, memory=replace(memory, levels=levels))
    if plan.fused and memory.mlp_chunks < _MOST_CHUNKS:
        return replace(plan, memory=replace(memory, mlp_chunks=memory.mlp_chunks * 2))
    if plan.fused and not memory.offload:
        return replace(plan, memory=replace(memory, offload=True))
    if plan.rows > 1:
        factor = smallest_factor(plan.rows)
        return replace(plan, rows=plan.rows // factor, accumulation=plan.accumulation * factor)
    return None


def plan_rows(
    config: Config,
    shape: ModelShape,
    rows: Rows,
    hardware: Hardware,
    *,
    width: int,
    may_fuse: bool = True,
) -> Plan:
    """The plan for `config` as it stands: its base, its rows; what is recomputed where that is left to us.

    Args:
        width: bytes of a number in the model's dtype.
        may_fuse: False where fused/ has said that it cannot run this model's layers.
    """
    choices = [config.train.batch_size * factor for factor in _divisors(config.train.accumulation)]
    cost = _cost_model(config, shape, hardware, width)
    cost = replace(cost, may_fuse=may_fuse and cost.may_fuse)
    wanted = config.train.offload_checkpoints

    def best(*, offload: bool) -> Plan:
        return _best(_plans(config, cost, rows, hardware, choices, config.train.gradient_checkpointing, (offload,)))

    plan = best(offload=wanted is True)
    return best(offload=True) if wanted == "auto" and cost.fused and not plan.fits else plan


def fit(config: Config, shape: ModelShape, rows: Rows, hardware: Hardware, *, width: int) -> Plan:
    """The fastest plan that fits, over all ways to hold the base and to spread the rows of an optimizer step.

    A less precise base is taken only where it is clearly faster than every more precise one that fits.
    """
    choices = _divisors(config.train.batch_size * config.train.accumulation)
    bases = _MORE_PRECISE if hardware.kind == "cuda" else (config.quantize,)
    best: Plan | None = None
    for base in bases:
        cost = _cost_model(config.model_copy(update={"quantize": base}), shape, hardware, width)
        if base == "fp8" and not cost.in_fp8:
            continue  # int8 is as small, and faster then
        offloads = (False, True) if cost.fused else (False,)
        plan = _best(_plans(config, cost, rows, hardware, choices, "auto", offloads))
        if best is None or _preferred(plan, best):
            best = plan
    assert best is not None
    return best


def _cost_model(config: Config, shape: ModelShape, hardware: Hardware, width: int) -> CostModel:
    return cost_model_of(_continued(config), shape, width=width, kind=hardware.kind, fp8_products=hardware.fp8 > 0)


def _continued(config: Config) -> Config:
    """With the rank, dropout and targets of the adapter of `lora.init`, which hold instead of the config's."""
    from thinktune.models import resolve
    from thinktune.models.folder import ADAPTER_CONFIG, read_json

    if config.lora.init is None:
        return config
    with muted():
        adapter = resolve(config.lora.init, config.load, weights=False, prefer_merged=False).adapter
    if adapter is None:
        return config  # training will say so
    told = read_json(adapter / ADAPTER_CONFIG)
    ranks = [told.get("r", config.lora.r), *(told.get("rank_pattern") or {}).values()]
    own = {"r": max(ranks), "dropout": told.get("lora_dropout", 0.0)}
    if isinstance(told.get("target_modules"), list):  # PEFT knows patterns too
        own["targets"] = told["target_modules"]
    return config.model_copy(update={"lora": config.lora.model_copy(update=own)})


def _preferred(plan: Plan, best: Plan) -> bool:
    if plan.fits != best.fits:
        return plan.fits
    if not plan.fits:
        return plan.parts["peak"] < best.parts["peak"]
    return (plan.tokens_per_second or 0) > _WORTH * (best.tokens_per_second or 0)


def _plans(
    config: Config,
    cost: CostModel,
    rows: Rows,
    hardware: Hardware,
    choices: Sequence[int],
    checkpointing: Checkpointing,
    offloads: Sequence[bool],
) -> Iterator[Plan]:
    for at_once in choices:
        for offload in offloads:
            longest = rows.longest(at_once)
            memory = choose(cost, longest, hardware, checkpointing=checkpointing, offload=offload)
            accumulation = config.train.batch_size * config.train.accumulation // at_once
            yield _plan(config, cost, rows, hardware, memory, at_once, accumulation)


def _plan(
    config: Config,
    cost: CostModel,
    rows: Rows,
    hardware: Hardware,
    memory: RecomputePolicy,
    at_once: int,
    accumulation: int,
) -> Plan:
    longest, mean = rows.longest(at_once), rows.mean(at_once)
    parts = cost.memory(longest, memory)
    seconds = accumulation * cost.seconds(mean, memory, hardware) + cost.optimizer_seconds(hardware)
    step_tokens = mean.tokens * accumulation
    steps = config.train.max_steps
    if steps is None and rows.count is not None:
        steps = math.ceil(math.ceil(rows.count / (at_once * accumulation)) * config.train.epochs)
    return Plan(
        model=config.model,
        hardware=hardware.name,
        quantize=cost.quantize,
        fused=cost.fused,
        memory=memory,
        rows=at_once,
        accumulation=accumulation,
        parts=parts,
        limit=hardware.memory,
        fits=_fits(parts, hardware),
        longest=int(longest.tokens),
        step_tokens=step_tokens,
        tokens_per_second=step_tokens / seconds,
        steps=steps,
        hours=steps * seconds / 3600 if steps is not None else None,
        data=rows.source,
    )


def _best(plans: Iterator[Plan]) -> Plan:
    """The fastest that fits, else the smallest; the first of equals."""
    found = list(plans)
    fitting = [plan for plan in found if plan.fits]
    if fitting:
        return max(fitting, key=lambda plan: plan.tokens_per_second or 0)
    return min(found, key=lambda plan: plan.parts["peak"])


def choose(
    cost: CostModel, batch: Batch, hardware: Hardware, *, checkpointing: Checkpointing, offload: bool = False
) -> RecomputePolicy:
    """What to recompute for a batch: the fastest that fits, else what takes least memory.

    The layers of level "full" come first and those of "none" last: the backward pass begins with the last layer, while
    everything is still held, and a layer that is recomputed needs room for that.
    """
    layers = cost.shape.layers
    most, least = (RecomputePolicy(_levels({level: layers})) for level in _EXTREMES)
    if not cost.fused:
        if checkpointing == "auto":
            checkpointing = cost.kind == "cuda" and not _fits(cost.memory(batch, most), hardware)
        return least if checkpointing else most
    if checkpointing is False:
        return most
    chunks = [count for count in (1, 2, 4, _MOST_CHUNKS) if count == 1 or batch.tokens / count >= _SMALLEST_CHUNK]
    if checkpointing == "auto":
        found = [each for count in chunks for each in _fewest_mlps(cost, batch, hardware, count, offload)]
    else:
        every = [replace(least, mlp_chunks=count, offload=offload) for count in chunks]
        found = [memory for memory in every if _fits(cost.memory(batch, memory), hardware)]
    smallest = replace(least, mlp_chunks=chunks[-1], offload=offload)
    return min(found, key=lambda memory: cost.seconds(batch, memory, hardware), default=smallest)


def _fewest_mlps(
    cost: CostModel, batch: Batch, hardware: Hardware, chunks: int, offload: bool
) -> Iterator[RecomputePolicy]:
    """For each number of layers recomputed as a whole, the fewest MLPs beside them with which the batch fits.

    An MLP that takes its tokens in chunks is always recomputed: gate and up are never there as a whole.
    """
    layers = cost.shape.layers

    def make(full: int, mlp: int) -> RecomputePolicy:
        counts: dict[Level, int] = {"full": full, "mlp": mlp, "none": layers - full - mlp}
        return RecomputePolicy(_levels(counts), chunks, offload and full > 0)

    for full in range(layers + 1):
        low, high = 0 if chunks == 1 else layers - full, layers - full
        if not _fits(cost.memory(batch, make(full, high)), hardware):
            continue
        while low < high:
            middle = (low + high) // 2
            if _fits(cost.memory(batch, make(full, middle)), hardware):
                high = middle
            else:
                low = middle + 1
        yield make(full, high)
        if high == 0:
            return


def _levels(counts: dict[Level, int]) -> tuple[Level, ...]:
    return tuple(level for level, count in counts.items() for _ in range(count))


def _fits(parts: dict[str, int], hardware: Hardware) -> bool:
    return parts["peak"] * (1 + FRAGMENTS) <= hardware.memory


def plan_config(config: Config, *, gpu: str | None = None, fitted: bool = False) -> Plan:
    """What `thinktune plan` prints: from the model's configuration, without its weights.

    Args:
        gpu: a name or a size to plan for; None: what is here.
        fitted: look for better settings (`--fit`).

    Raises:
        ThinktuneError: the model's configuration cannot be had, or `gpu` is not known.
    """
    from thinktune.models.device import choose_device, choose_dtype

    if gpu is None:
        device = choose_device(config.load.device)
        dtype = choose_dtype(device, config.load.dtype)
        hardware, width = hardware_here(device, dtype, config.train.memory), dtype.itemsize
    else:
        hardware, width = find_gpu(gpu), 4 if config.load.dtype == "float32" else 2
        if config.train.memory is not None:
            hardware = replace(hardware, memory=min(hardware.memory, int(config.train.memory * GIB)))
    shape, rows = _read_model_and_data(config)
    plan = (fit if fitted else plan_rows)(config, shape, rows, hardware, width=width)
    return plan if hardware.rated else replace(plan, tokens_per_second=None, hours=None)


def _read_model_and_data(config: Config) -> tuple[ModelShape, Rows]:
    """Return the shape of the model and the lengths of the data.

    Of a common model whose files cannot be had: its published shape, and the longest packs that the config allows.
    """
    known = known_config(config.model)
    if known is None:
        return read_shape(config), read_rows(config)
    once = config.load.model_copy(update={"attempts": 1})
    try:
        return read_shape(config.model_copy(update={"load": once})), read_rows(config)
    except ThinktuneError as error:
        logger.info(f"{error.message}; its shape is the published one, from the built-in table of common models")
        return shape_of(known), longest_rows(config)


def read_shape(config: Config) -> ModelShape:
    """The shape of a config's model, for which at most its configuration is downloaded."""
    from transformers import AutoConfig

    from thinktune.models import resolve

    resolved = resolve(config.model, config.load, weights=False)
    settings: dict[str, Any] = {"gguf_file": resolved.gguf} if resolved.gguf else {}
    found = AutoConfig.from_pretrained(
        resolved.folder, local_files_only=True, trust_remote_code=config.load.trust_remote_code, **settings
    )
    return shape_of(found, trust_remote_code=config.load.trust_remote_code)


def smallest_factor(number: int) -> int:
    """Above 1, of a number that is."""
    return _divisors(number)[1]


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def duration(hours: float) -> str:
    minutes = max(1, round(hours * 60))
    return f"{hours:.1f} hours" if hours >= 1 else f"{minutes} minute{'s' * (minutes > 1)}"
