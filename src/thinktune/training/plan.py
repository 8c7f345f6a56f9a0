"""The plan that a training follows: made for the loaded model, settled for its adapter, kept in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from peft import PeftModel

from thinktune.config import Config
from thinktune.data import Tokens
from thinktune.files import write_json
from thinktune.models import Loaded
from thinktune.planner.hardware import hardware_here
from thinktune.planner.model_shape import shape_of
from thinktune.planner.pack_lengths import rows_of
from thinktune.planner.plan import Plan, Setup, plan_rows
from thinktune.records import PlanRecord, read_record
from thinktune.run_folder import RunFolder
from thinktune.training.fused.support import why_not_fused

Notify = Callable[[str], None]


def plan_training(config: Config, loaded: Loaded, examples: Sequence[Tokens], *, may_fuse: bool = True) -> Plan:
    """The plan for a model and the examples to train on, on the device where the model is; see `plan_rows`."""
    shape = shape_of(loaded.model.config, trust_remote_code=config.load.trust_remote_code)
    hardware = hardware_here(loaded.device, loaded.dtype, config.train.memory)
    rows = rows_of(examples, config)
    return plan_rows(config, shape, rows, hardware, width=loaded.dtype.itemsize, may_fuse=may_fuse)


def settle(
    model: PeftModel,
    config: Config,
    loaded: Loaded,
    examples: Sequence[Tokens],
    plan: Plan,
    setup: Setup,
    notify: Notify,
) -> tuple[Plan, Setup]:
    """Plan and setup as they are, or those for layers that are not fused where fused/ cannot run this model's.

    On a GPU it is said why they are not, unless that was asked for.
    """
    reason = why_not_fused(model) if plan.fused or (config.train.fused and loaded.device.type == "cuda") else None
    if reason is not None:
        notify(f"its layers are not fused: {reason}")
    if reason is None or not plan.fused:
        return plan, setup
    plain = plan_training(config, loaded, examples, may_fuse=False)
    return plain, (plain.setup if setup == plan.setup else setup)  # another one is a resumed run's own


def recorded_setup(run: RunFolder, config: Config, plan: Plan) -> Setup:
    """The setup that this run began with on this hardware under the same settings, else the plan's.

    How rows are spread decides in which order numbers are added up: a resumed training repeats it bit by bit.
    """
    if not run.plan.exists():
        return plan.setup
    values = read_record(run.plan, PlanRecord)
    same = values["asked"] == _asked(config) and values["plan"]["hardware"] == plan.hardware
    return Setup.from_dict(values["setup"]) if same else plan.setup


def record_setup(run: RunFolder, config: Config, plan: Plan, setup: Setup) -> None:
    write_json(run.plan, {"setup": asdict(setup), "asked": _asked(config), "plan": asdict(plan)})


def _asked(config: Config) -> dict[str, Any]:
    train = config.train
    names = ("batch_size", "accumulation", "fold_accumulation", "gradient_checkpointing")
    return {name: getattr(train, name) for name in (*names, "offload_checkpoints", "memory")}
