"""Making a training fit into memory: the plan for what is loaded, its proof, and what to do when it was wrong."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console

from thinktune.config import Config
from thinktune.data import Tokens
from thinktune.errors import ModelError, OutOfMemory
from thinktune.files import write_json
from thinktune.models import Loaded
from thinktune.planner.hardware import GIB, hardware_here
from thinktune.planner.model_shape import shape_of
from thinktune.planner.pack_lengths import rows_of
from thinktune.planner.plan import Plan, Setup, lighter, plan_rows, smallest_factor
from thinktune.records import PlanRecord, read_record
from thinktune.run_folder import RunFolder
from thinktune.training.fused.packed_attention import packed_documents, require_within
from thinktune.training.fused.support import why_not_fused
from thinktune.training.progress_bar import peak_memory_gib
from thinktune.training.trainer import ThinkTrainer

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


@contextmanager
def set_up(model: PeftModel, loaded: Loaded, plan: Plan, setup: Setup) -> Iterator[None]:
    """Within, the model with its adapter takes packed batches and keeps what `setup` says; then it is as it was."""
    with packed_documents(loaded.model):
        if plan.fused:
            from thinktune.training.fused.fuse_model import (
                fuse_layers,  # needs Triton, which comes with PyTorch for GPUs only
            )

            fused = fuse_layers(model, setup.memory)
            try:
                yield
            finally:
                fused.undo()
            return
        if recomputes_by_transformers(plan, setup):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            yield
        finally:
            if loaded.model.is_gradient_checkpointing:
                loaded.model.gradient_checkpointing_disable()


def recomputes_by_transformers(plan: Plan, setup: Setup) -> bool:
    """Whether whole layers are recomputed the way transformers does it, which is the one for layers not fused."""
    return not plan.fused and setup.memory.levels[0] == "full"


def require_windows(loaded: Loaded, examples: Sequence[Tokens]) -> None:
    """
    Raises:
        ModelError: an example is longer than the sliding window of some layer.
    """
    text = loaded.model.config.get_text_config()
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ["sliding_attention"])
    require_within(getattr(text, "sliding_window", None) if slides else None, max(map(len, examples)))
    if "chunked_attention" in (getattr(text, "layer_types", None) or []):
        require_within(getattr(text, "attention_chunk_size", None), max(map(len, examples)))


def require_single_documents(config: Config) -> None:
    """
    Raises:
        ModelError: several documents are to share a sequence.
    """
    if config.train.packing or config.train.batch_size > 1:
        raise ModelError(
            "with this model, examples that share a sequence would see each other: "
            "its layers do not keep packed documents apart",
            hint="set train.packing=false train.batch_size=1, and train.accumulation to the rows a step should have",
        )


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


@contextmanager
def memory_limited(config: Config, device: torch.device) -> Iterator[None]:
    """Within, tensors on the GPU take no more than `train.memory`."""
    if config.train.memory is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, config.train.memory * GIB / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def prove(trainer: ThinkTrainer, longest: list[list[int]]) -> float:
    """Run one forward and backward pass on the longest batch that there can be, so that memory runs out now or never.

    Nothing of it stays: no gradient, and the random numbers are where they were. (Kernels that it made are kept.)

    Args:
        longest: the packs of that batch, each the indexes of its examples.

    Returns:
        The peak of memory, in GiB.
    """
    model = trainer.model
    inputs = trainer._prepare_inputs(trainer.data_collator([{"documents": documents} for documents in longest]))
    del inputs["labels"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.train()
    with torch.random.fork_rng():
        # What the optimizer will hold from the first step on.
        state = [torch.empty(2, *parameter.shape, device=parameter.device) for parameter in trained]
        loss = model(**inputs, use_cache=False)["loss"] / inputs["targets"].numel()
        loss.backward()
    del state, loss
    for parameter in trained:
        parameter.grad = None
    model.train(was_training)
    return peak_memory_gib()


def describe_shortage(plan: Plan, setup: Setup) -> str:
    """What was predicted, what there is, and for which batches."""
    used = f"{peak_memory_gib():.1f} GiB were in use" if torch.cuda.is_initialized() else "memory ran out"
    return (
        f"out of memory in training: {plan.parts['peak'] / GIB:.1f} GiB were predicted and {plan.limit / GIB:.1f} GiB "
        f"there, {used}, with batches of up to {plan.longest:,} tokens ({setup.describe()})"
    )


def go_lighter(config: Config, plan: Plan, setup: Setup, console: Console, *, after: int) -> Setup:
    """The setup to go on with after memory ran out; it is said.

    Args:
        after: the optimizer step whose checkpoint training goes on from; 0: from the start.

    Raises:
        OutOfMemory: `train.on_oom` is error, or nothing is left to give up.
    """
    shortage = describe_shortage(plan, setup)
    lighter_one = lighter(setup, fused=plan.fused) if config.train.on_oom == "retry" else None
    if lighter_one is None:
        raise OutOfMemory(shortage, hint="try " + ", or ".join(_ways_to_save_memory(config)))
    console.print(shortage, style="yellow", highlight=False)
    where = f"from the checkpoint of step {after}" if after else "from the start"
    console.print(f"going on {where} with the same optimizer steps: {lighter_one.describe()}", highlight=False)
    free_memory_of_the_past()
    return lighter_one


def free_memory_of_the_past() -> None:
    """A trainer and its optimizer lie in cycles; their memory is wanted now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _ways_to_save_memory(config: Config) -> Iterator[str]:
    train = config.train
    if train.on_oom == "error":
        yield "train.on_oom=retry"
    if train.gradient_checkpointing is not True:
        yield "train.gradient_checkpointing=true"
    if (rows := train.batch_size) > 1:
        factor = smallest_factor(rows)
        yield f"train.batch_size={rows // factor} train.accumulation={train.accumulation * factor} (the same step)"
    elif train.accumulation > 1 and train.fold_accumulation:
        yield "train.fold_accumulation=false"
    if config.quantize == "none":
        yield "quantize=nf4"
    yield "a smaller data.max_length"
