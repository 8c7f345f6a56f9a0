"""Out of memory: provoked early by a warm-up step, reported with the prediction, retried with a lighter plan."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

import torch
from rich.console import Console

from thinktune.config import Config
from thinktune.data import Tokens
from thinktune.errors import OutOfMemory, StartAgain
from thinktune.models.untouched import gpus_of
from thinktune.planner.hardware import GIB
from thinktune.planner.plan import Plan, lighter, smallest_factor
from thinktune.run_folder import RunFolder
from thinktune.training.fidelity import batch_of
from thinktune.training.peak_memory import peak_memory_gib, reset_peak_memory
from thinktune.training.plan import record_plan
from thinktune.training.ranks import agree, here
from thinktune.training.trainer import ThinkTrainer


@contextmanager
def memory_limited(config: Config, device: torch.device) -> Iterator[None]:
    """Limit the tensors on the GPU to `train.memory` within the block."""
    if config.train.memory is None or device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, config.train.memory * GIB / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@contextmanager
def memory_agreed(*, apart: bool = True) -> Iterator[None]:
    """Let memory have run out on all ranks if it does on one within the block.

    Args:
        apart: whether ranks do not wait for each other within it; else those that have memory cannot be asked.
    """
    short = False
    try:
        yield
    except torch.OutOfMemoryError:
        if here().size == 1 or not apart:
            raise
        short = True
    if agree(short, max):
        raise torch.OutOfMemoryError("memory ran out on one of the GPUs")


def warm_up_step(trainer: ThinkTrainer, longest: Sequence[Tokens]) -> float:
    """Run a forward and a backward pass on the longest possible batch, so that memory runs out now or never.

    Nothing of it stays: no gradient, and the random numbers are where they were. (Kernels that it made are kept.)

    Args:
        longest: the documents of that batch.

    Returns:
        The peak of memory, in GiB.
    """
    model = trainer.model_with_loss
    inputs = batch_of(model.model, longest)
    was_training = model.training
    model.train()
    with torch.random.fork_rng(gpus_of(model)):
        # What the optimizer will hold from the first step on.
        state = [torch.empty(2, *parameter.shape, device=parameter.device) for parameter in model.trained]
        loss = model(**inputs) / inputs["targets"].numel()
        loss.backward()
    del state, loss
    model.zero_grad()
    model.train(was_training)
    return peak_memory_gib()


def describe_shortage(plan: Plan) -> str:
    """Say the predicted and the available memory, and the batches they are for."""
    used = f"{peak_memory_gib():.1f} GiB were in use" if torch.cuda.is_initialized() else "memory ran out"
    return (
        f"out of memory in training: {plan.parts['peak'] / GIB:.1f} GiB were predicted and {plan.limit / GIB:.1f} GiB "
        f"there, {used}, with batches of up to {plan.longest:,} tokens ({plan.describe()})"
    )


def next_lighter_plan(config: Config, plan: Plan, console: Console, *, after: int) -> Plan:
    """Choose the plan to go on with after memory ran out, and say it.

    Args:
        after: the optimizer step whose checkpoint training goes on from; 0: from the start.

    Raises:
        OutOfMemory: `train.on_oom` is error, or nothing is left to give up.
    """
    shortage = describe_shortage(plan)
    lighter_one = lighter(plan) if config.train.on_oom == "retry" else None
    if lighter_one is None:
        raise OutOfMemory(shortage, hint="try " + ", or ".join(_ways_to_save_memory(config)))
    console.print(shortage, style="yellow", highlight=False)
    where = f"from the checkpoint of step {after}" if after else "from the start"
    console.print(f"going on {where} with the same optimizer steps: {lighter_one.describe()}", highlight=False)
    free_memory_of_the_past()
    return lighter_one


def leave_lighter_plan(config: Config, plan: Plan, run: RunFolder | None) -> NoReturn:
    """Leave the next lighter plan to those that start again from the newest checkpoint, after memory ran out on this
    rank alone: the others wait for it in a step, and cannot be asked.

    Args:
        run: None: it is not begun yet, so that no plan can be left.

    Raises:
        StartAgain: to end this process with the status that means this.
        OutOfMemory: as `next_lighter_plan`.
    """
    if run is None:
        raise OutOfMemory(describe_shortage(plan), hint="try " + ", or ".join(_ways_to_save_memory(config)))
    lighter_one = next_lighter_plan(config, plan, Console(quiet=True), after=0)
    record_plan(run, config, lighter_one)
    raise StartAgain(describe_shortage(plan), hint=f"starting again, same optimizer steps: {lighter_one.describe()}")


def free_memory_of_the_past() -> None:
    """Free the memory of earlier trainers and optimizers, which lie in reference cycles, give the system back what is
    free, and count the peak from here."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    else:
        # The check had the weights in float32, 0.7 GiB of SmolLM2, and glibc would keep most of it to the end.
        with suppress(AttributeError, TypeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
    reset_peak_memory()


def _ways_to_save_memory(config: Config) -> Iterator[str]:
    train = config.train
    if train.on_oom == "error":
        yield "train.on_oom=retry"
    if train.gradient_checkpointing is not True:
        yield "train.gradient_checkpointing=true"
    if (packs := train.batch_size) > 1:
        factor = smallest_factor(packs)
        yield f"train.batch_size={packs // factor} train.accumulation={train.accumulation * factor} (the same step)"
    if config.quantize == "none":
        yield "quantize=nf4"
    yield "a smaller data.max_length"
