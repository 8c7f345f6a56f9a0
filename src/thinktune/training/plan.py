"""The plan that a training follows: resolved for the loaded model with its adapter, kept in the run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

from thinktune.config import Config
from thinktune.data import Prepared
from thinktune.errors import RunFolderError
from thinktune.files import write_json
from thinktune.models import Loaded
from thinktune.models.sharded_base import sharded_base_of
from thinktune.planner.hardware import GIB, hardware_here
from thinktune.planner.learning_rate import LearningRate
from thinktune.planner.model_shape import shape_of
from thinktune.planner.pack_lengths import PackLengths
from thinktune.planner.plan import Plan, plan_as_configured
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.records import PlanRecord, read_record
from thinktune.run_folder import RunFolder
from thinktune.training.fused.document_by_document import layers_run_apart
from thinktune.training.fused.support import why_not_fused
from thinktune.training.ranks import agree, by_first, here
from thinktune.training.reinforce.problems import PreparedProblems
from thinktune.training.whole_model import products_dtype

_ENGINE = GIB
"""Bytes that the engine that draws keeps in an update: CUDA graphs, and gaps between pieces. An update of Qwen2.5-3B in
nf4, planned for 15.3 of 16 GiB, ran out of memory without."""

logger = logging.getLogger(__name__)


def resolve_plan(model: Any, config: Config, loaded: Loaded, packs: PackLengths) -> Plan:
    """Plan the training of a model, with its adapter if it has one, on measured packs, on the device of the model.

    Batches of a reinforcement differ from step to step, and are large: no CUDA graph is recorded for them. On a GPU it
    is said why layers are not fused, unless that was asked for. Of several ranks, all get the plan of the first, for
    the memory of that which has least.
    """
    may_fuse = config.train.fused and config.lora is not None and loaded.device.type == "cuda"
    if may_fuse and (reason := why_not_fused(model)) is not None:
        logger.info(f"its layers are not fused: {reason}")
        may_fuse = False
    shape = shape_of(loaded.model.config, trust_remote_code=config.load.trust_remote_code)
    dtype = products_dtype(config, loaded)
    hardware = hardware_here(loaded.device, dtype, config.train.memory)
    beside = _ENGINE if config.method == "grpo" and loaded.device.type == "cuda" else 0
    hardware = replace(hardware, memory=agree(hardware.memory - beside, min))
    may_graph = config.method == "sft" and not layers_run_apart(loaded.model)
    width, gpus = dtype.itemsize, here().size
    kept = 1 / gpus if sharded_base_of(model) else 1.0
    return by_first(
        lambda: plan_as_configured(
            config, shape, packs, hardware, width=width, may_fuse=may_fuse, may_graph=may_graph, gpus=gpus, kept=kept
        )
    )


def settings_without_effect(config: Config, loaded: Loaded, prepared: Prepared, plan: Plan) -> Iterator[str]:
    """Warn of settings without effect, and of examples too long for the model."""
    if config.train.eval_every is not None and not prepared.held_out:
        yield "train.eval_every does nothing: data.eval_fraction holds no examples out"
    if config.train.offload_checkpoints is True and not plan.fused:
        yield "train.offload_checkpoints does nothing: only layers that are fused can"
    longest = max(map(len, prepared.train))
    if isinstance(prepared, PreparedProblems):
        longest = prepared.longest_prompt + config.rl.max_completion_length
    known = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if known is not None and longest > known:
        yield (
            f"the longest example has {longest:,} tokens, more than the {known:,} that the model was made for; "
            f"data.max_length={known} drops such examples"
        )


def recorded_plan(run: RunFolder, config: Config, plan: Plan) -> Plan:
    """Return the plan with the learning rate that this run began with, and with its split and recomputation, on as many
    GPUs of the same kind and with like settings.

    The split of packs over batches decides in which order numbers are added: a resumed training repeats it bit by bit.

    Raises:
        RunFolderError: the plan, which has the number that `learning_rate: auto` stood for, is missing or damaged.
    """
    if not run.plan.exists():
        if plan.rate.rule is not None and any(run.checkpoints.glob("*")):
            raise RunFolderError(
                f"{run.plan} is missing: for train.learning_rate, it has the number of auto",
                hint="restore it from a copy, or make the run anew",
            )
        return plan
    values = read_record(run.plan, PlanRecord)
    if (rate := values["plan"].get("rate")) is not None:
        plan = replace(plan, rate=LearningRate(rate["value"], rate["rule"]))
    asked = _asked(config)
    before = {name: value for name, value in values["asked"].items() if name in asked}  # an earlier version had more
    if before != asked or values["plan"]["hardware"] != plan.hardware or values["plan"].get("gpus", 1) != plan.gpus:
        return plan
    if values["plan"].get("kept", 1.0) != plan.kept:
        return plan
    setup = values["setup"]
    known = {field.name for field in fields(RecomputePolicy)}  # a run of an earlier version may say more
    memory: dict[str, Any] = {name: value for name, value in setup["memory"].items() if name in known}
    memory["levels"] = tuple(memory["levels"])
    return replace(
        plan,
        memory=RecomputePolicy(**memory),
        packs=setup["rows"],
        accumulation=setup["accumulation"],
        graphed=plan.graphed and setup.get("graphed", True),
        slopes=tuple(values["plan"].get("slopes", plan.slopes)),
    )


def record_plan(run: RunFolder, config: Config, plan: Plan) -> None:
    """Write plan.json."""
    values = asdict(plan)
    setup = {"memory": values["memory"], "rows": plan.packs, "accumulation": plan.accumulation}
    setup["graphed"] = plan.graphed
    write_json(run.plan, {"setup": setup, "asked": _asked(config), "plan": values})


def _asked(config: Config) -> dict[str, Any]:
    train = config.train
    names = ("batch_size", "accumulation", "gradient_checkpointing", "offload_checkpoints", "memory")
    return {name: getattr(train, name) for name in names}
