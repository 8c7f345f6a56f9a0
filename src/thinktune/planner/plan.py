"""The memory, the speed and the hours of a training, planned from the sizes of its model, its data and its device.

`train` begins with a plan for the device at hand and takes the recompute policy from it; `fit` looks for the fastest
settings that fit, with the same number of packs an optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thinktune.config import Config, Quantize
from thinktune.notices import muted
from thinktune.planner.cost_model import CostModel, cost_model_of
from thinktune.planner.dealing import share, waiting_seconds
from thinktune.planner.hardware import GIB, Hardware
from thinktune.planner.learning_rate import LearningRate, learning_rate
from thinktune.planner.memory_model import Batch
from thinktune.planner.model_shape import ModelShape
from thinktune.planner.pack_lengths import PackLengths
from thinktune.planner.policy_choice import MOST_CHUNKS, Checkpointing, choose
from thinktune.planner.recompute_policy import Level, RecomputePolicy
from thinktune.planner.sharding import kept_shares

_MORE_PRECISE: tuple[Quantize, ...] = ("none", "fp8", "int8", "nf4")
_WORTH = 1.1
"""So many times faster a less precise base has to be to be preferred."""


@dataclass(frozen=True)
class Plan:
    """The memory and the time that a training will take, and its way through the model.

    Attributes:
        packs, accumulation: packs a forward pass takes, and passes that an optimizer step adds up on each GPU.
        gpus: over which the packs of an optimizer step are dealt.
        slopes: seconds of a token and of a pair of tokens that attend, by which they are.
        efficiency: tokens/s of all GPUs together, of so many times those of one with the same batches.
        waits: the seconds of a step that GPUs wait for the slowest, and those for the gradients to be added up.
        kept: share of the layers' frozen weights that each GPU keeps; below 1, the others come from other GPUs.
        late: seconds of a step in which they are waited for.
        whole: whether all weights are trained.
        states: whether layers with a state are in plain PyTorch, whose speed a trace of them estimates.
        unknown: classes of layers whose memory and speed are not known.
        fused: whether fused/ runs the decoder layers.
        why_not_fused: what keeps it from that.
        graphed: whether forward and backward passes are run from CUDA graphs.
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
    packs: int
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
    rate: LearningRate
    graphed: bool = False
    gpus: int = 1
    slopes: tuple[float, float] = (1.0, 0.0)
    efficiency: float = 1.0
    waits: tuple[float, float] = (0.0, 0.0)
    kept: float = 1.0
    late: float = 0.0
    whole: bool = False
    states: bool = False
    unknown: tuple[str, ...] = ()
    why_not_fused: str = ""

    def cost(self, pack: Batch) -> float:
        """Estimate the seconds that a pack adds to those of a GPU."""
        return self.slopes[0] * pack.tokens + self.slopes[1] * pack.attended

    def describe(self) -> str:
        """Say how the packs of an optimizer step go through the model."""
        spread = f"{self.packs} pack{'s' * (self.packs > 1)} at once"
        graphs = ", from CUDA graphs" * self.graphed
        ranks = f" on each of {self.gpus}" * (self.gpus > 1)
        base = ", the base spread over them" * (self.kept < 1)
        return f"{spread} x {self.accumulation}{ranks}{base}, {describe_memory(self.memory)}{graphs}"

    def line(self) -> str:
        """Say the plan in a line."""
        speed = f", about {self.tokens_per_second:,.0f} tokens/s" if self.tokens_per_second else ""
        hours = f", {duration(self.hours)}" if self.hours else ""
        speed += f" ({self.efficiency:.0%} of {self.gpus} times one GPU)" if speed and self.gpus > 1 else ""
        return (
            f"plan: {self.parts['peak'] / GIB:.1f} of {self.limit / GIB:.1f} GiB"
            f"{'' if self.fits else ' (does not fit)'}{speed}{hours}; {self.describe()}"
            f"{'; ' * bool(self.unknown)}{self.not_known()}"
        )

    def not_known(self) -> str:
        """Say which layers are planned as attention for want of anything better; nothing where there are none."""
        if not self.unknown:
            return ""
        return (
            f"what {', '.join(self.unknown)} takes is not known, and counted as attention: memory and speed may differ"
        )

    def overrides(self, config: Config) -> list[str]:
        """List the settings that differ from `config`'s, as `key=value`."""
        settings: dict[str, Any] = {"quantize": self.quantize}
        settings |= {"train.batch_size": self.packs, "train.accumulation": self.accumulation}
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
    """Say a recompute policy, as in `recomputing 12 of 36 MLPs and 4 of 36 layers, MLP in 2 chunks`."""
    full, mlp, total = memory.levels.count("full"), memory.levels.count("mlp"), len(memory.levels)
    some = [f"{mlp} of {total} MLPs"] * bool(mlp) + [f"{full} of {total} layers"] * bool(full)
    parts = ["recomputing " + " and ".join(some) if some else "recomputing nothing"]
    parts += [f"MLP in {memory.mlp_chunks} chunks"] * (memory.mlp_chunks > 1)
    parts += ["checkpoints in main memory"] * memory.offload
    return ", ".join(parts)


def lighter(plan: Plan) -> Plan | None:
    """Return the next lighter plan for the same optimizer step; None: there is none.

    It goes without CUDA graphs, then recomputes more, then cuts the MLP into more chunks, then keeps checkpoints in
    main memory, then takes fewer packs at once. The prediction stays as it was.
    """
    if plan.graphed:
        return replace(plan, graphed=False)
    memory = plan.memory
    ladder: tuple[Level, ...] = ("mlp", "full") if plan.fused else ("full",)
    for level in ladder:
        heavier = ("none",) if level == "mlp" else ("none", "mlp")
        if any(each in heavier for each in memory.levels):
            levels = tuple(level if each in heavier else each for each in memory.levels)
            return replace(plan, memory=replace(memory, levels=levels))
    if plan.fused and memory.mlp_chunks < MOST_CHUNKS:
        return replace(plan, memory=replace(memory, mlp_chunks=memory.mlp_chunks * 2))
    if plan.fused and not memory.offload:
        return replace(plan, memory=replace(memory, offload=True))
    if plan.packs > 1:
        factor = smallest_factor(plan.packs)
        return replace(plan, packs=plan.packs // factor, accumulation=plan.accumulation * factor)
    return None


def plan_as_configured(
    config: Config,
    shape: ModelShape,
    packs: PackLengths,
    hardware: Hardware,
    *,
    width: int,
    may_fuse: bool = True,
    may_graph: bool = True,
    gpus: int = 1,
    kept: float | None = None,
) -> Plan:
    """Plan a config as it stands, with its base and batches; recomputation is chosen where it is auto.

    A base that may be spread over the GPUs is where it does not fit otherwise.

    Args:
        hardware: each of the GPUs.
        width: bytes of a number in the model's dtype.
        may_fuse: False where fused/ has said that it cannot run this model's layers.
        may_graph: False where layers are run on one document at a time, which no CUDA graph can follow.
        kept: the share of the layers' weights that each GPU has; None: to be chosen.
    """
    config = _continued(config)
    choices = _packs_at_once(config, gpus)
    cost = cost_model_of(config, shape, hardware, width=width)
    cost = replace(cost, may_fuse=may_fuse and cost.may_fuse, may_graph=may_graph)
    wanted = config.train.offload_checkpoints

    def best(cost: CostModel, *, offload: bool) -> Plan:
        return _best(_plans(config, cost, packs, choices, config.train.gradient_checkpointing, (offload,), gpus))

    plans = []
    for share_kept in kept_shares(config, shape, gpus) if kept is None else [kept]:
        cost = replace(cost, kept=share_kept)
        plan = best(cost, offload=wanted is True)
        if wanted == "auto" and cost.fused and not plan.fits:
            plan = best(cost, offload=True)
        if plan.fits:
            return plan
        plans.append(plan)
    return plans[0] if _has_room_for_base(plans[0]) else plans[-1]


def _has_room_for_base(plan: Plan) -> bool:
    return sum(plan.parts[name] for name in ("weights", "adapter", "optimizer")) < plan.limit


def _packs_at_once(config: Config, gpus: int) -> list[int]:
    """List how many packs a forward pass may take: at least a batch, at most all that a GPU gets of a step."""
    batch, accumulation = config.train.batch_size, config.train.accumulation
    if gpus == 1:
        return [batch * factor for factor in _divisors(accumulation)]
    own = share(batch * accumulation, gpus)
    return [count for count in _divisors(own) if count >= min(batch, own)]


def fit(
    config: Config, shape: ModelShape, packs: PackLengths, hardware: Hardware, *, width: int, gpus: int = 1
) -> Plan:
    """Find the fastest plan that fits, over all number formats of the base and all splits of an optimizer step.

    A less precise base is taken only where it is clearly faster than every more precise one that fits.
    """
    config = _continued(config)
    choices = _divisors(share(config.train.batch_size * config.train.accumulation, gpus))
    bases = _MORE_PRECISE if hardware.kind == "cuda" and config.lora is not None else (config.quantize,)
    best: Plan | None = None
    for base in bases:
        in_base = config.model_copy(update={"quantize": base})
        whole = cost_model_of(in_base, shape, hardware, width=width)
        if base == "fp8" and not whole.in_fp8:
            continue  # int8 is as small, and faster then
        for cost in (replace(whole, kept=kept) for kept in kept_shares(in_base, shape, gpus)):
            offloads = (False, True) if cost.fused else (False,)
            plan = _best(_plans(config, cost, packs, choices, "auto", offloads, gpus))
            if best is None or _preferred(plan, best):
                best = plan
    assert best is not None
    return best


def _continued(config: Config) -> Config:
    """Put the rank, scale, dropout and targets of the adapter of `lora.init` in the place of the config's."""
    from thinktune.models import resolve
    from thinktune.models.folder import ADAPTER_CONFIG, read_json

    if config.lora is None or config.lora.init is None:
        return config
    with muted():
        adapter = resolve(config.lora.init, config.load, weights=False, prefer_merged=False).adapter
    if adapter is None:
        return config  # training will say so
    told = read_json(adapter / ADAPTER_CONFIG)
    ranks = [told.get("r", config.lora.r), *(told.get("rank_pattern") or {}).values()]
    own = {"r": max(ranks), "dropout": told.get("lora_dropout", 0.0), "experts": bool(told.get("target_parameters"))}
    own |= {"alpha": told.get("lora_alpha", config.lora.alpha), "use_rslora": bool(told.get("use_rslora"))}
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
    packs: PackLengths,
    choices: Sequence[int],
    checkpointing: Checkpointing,
    offloads: Sequence[bool],
    gpus: int,
) -> Iterator[Plan]:
    for at_once in choices:
        for offload in offloads:
            memory = choose(cost, packs.longest(at_once), checkpointing=checkpointing, offload=offload)
            yield _plan(config, cost, packs, memory, at_once, gpus)


def _plan(
    config: Config, cost: CostModel, packs: PackLengths, memory: RecomputePolicy, at_once: int, gpus: int
) -> Plan:
    rows = config.train.batch_size * config.train.accumulation
    accumulation = share(rows, gpus) // at_once
    longest, mean = packs.longest(at_once), packs.mean(rows / gpus / accumulation)
    slopes, waits = cost.slopes(memory), (0.0, 0.0)
    seconds = alone = accumulation * cost.seconds(mean, memory) + cost.optimizer_seconds()
    if gpus > 1:
        waits = waiting_seconds(packs.packs, slopes, rows, gpus), cost.adding_seconds(gpus)
        seconds += sum(waits)
        alone = rows / at_once * cost.seconds(packs.mean(at_once), memory) + cost.optimizer_seconds()
    step_tokens = packs.mean(rows).tokens
    steps = config.train.max_steps
    if steps is None and packs.count is not None:
        steps = math.ceil(math.ceil(packs.count / rows) * config.train.epochs)
    parts, graphed = cost.memory(longest, memory), cost.graphed(mean, memory)
    if graphed:
        parts |= {name: parts[name] + cost.beside_graphs(parts) for name in ("workspace", "peak")}
    return Plan(
        model=config.model,
        hardware=cost.hardware.name,
        quantize=cost.quantize,
        fused=cost.fused,
        why_not_fused=cost.why_not_fused,
        memory=memory,
        packs=at_once,
        accumulation=accumulation,
        parts=parts,
        limit=cost.hardware.memory,
        fits=cost.fits(longest, memory),
        longest=int(longest.tokens),
        step_tokens=step_tokens,
        tokens_per_second=step_tokens / seconds,
        steps=steps,
        hours=steps * seconds / 3600 if steps is not None else None,
        data=packs.source,
        rate=learning_rate(config, cost.shape, packs),
        graphed=graphed,
        gpus=gpus,
        slopes=slopes,
        efficiency=alone / gpus / seconds,
        waits=waits,
        kept=cost.kept,
        late=accumulation * cost.late_seconds(mean, memory),
        whole=cost.whole,
        states=cost.shape.mixers.kept > 0,
        unknown=cost.shape.mixers.unknown,
    )


def _best(plans: Iterator[Plan]) -> Plan:
    """Return the fastest plan that fits, else the smallest; of equals the first."""
    found = list(plans)
    fitting = [plan for plan in found if plan.fits]
    if fitting:
        return max(fitting, key=lambda plan: plan.tokens_per_second or 0)
    return min(found, key=lambda plan: plan.parts["peak"])


def smallest_factor(number: int) -> int:
    """Return the smallest divisor greater than 1 of a number greater than 1."""
    return _divisors(number)[1]


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def duration(hours: float) -> str:
    minutes = max(1, round(hours * 60))
    return f"{hours:.1f} hours" if hours >= 1 else f"{minutes} minute{'s' * (minutes > 1)}"
