"""The kernels of a training, compiled on all cores before the first of them is needed.

Triton compiles a kernel when it is first started, and has the others wait: half a minute on a machine that has not seen
a model of this size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch

from thinktune.data import Tokens
from thinktune.models.untouched import gpus_of, inner_model
from thinktune.training.fidelity import batch_of, cut, exact
from thinktune.training.fused.layer_kinds import first_of_each_kind
from thinktune.training.model_with_loss import ModelWithLoss

_TOKENS = 64


def compile_kernels(with_loss: ModelWithLoss, longest: Sequence[Tokens]) -> None:
    """Compile the kernels of a step, and those of the check before it, of a model that is set up with fused layers.

    Nothing of it stays but the kernels: no gradient, and random numbers, modes and buffers are as they were. Layers
    with a part that is not fused are left to Triton: that part would compute with numbers that nobody has written.

    Args:
        longest: the documents of the longest batch: some kernels are others for many tokens than for few, which the
            check has.
    """
    model = with_loss.model
    fused = [vars(module)["fused"] for module in model.modules() if "fused" in vars(module)]
    if not all(layer.is_whole for layer in fused):
        return
    wanted: dict[Any, Callable[[], Any]] = {}
    # Two layers of each kind have all kernels; but checkpoints wait in main memory layer by layer.
    some = nullcontext() if fused[0].store else first_of_each_kind(inner_model(model), 2)
    with torch.random.fork_rng(gpus_of(model)), some, _noted(wanted):
        for mode, documents in ((exact(model), [cut(longest[0], _TOKENS)]), (_training(model), longest)):
            with mode, torch.enable_grad():
                torch.autograd.grad(with_loss(**batch_of(model, documents)), with_loss.trained, allow_unused=True)
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.cuda.set_device, initargs=(model.device,)) as pool:
        list(pool.map(_compile, wanted.values()))


def _compile(kernel: Callable[[], Any]) -> None:
    with suppress(Exception):  # it will be compiled when it is started, and say then what is wrong
        kernel()


@contextmanager
def _training(model: torch.nn.Module) -> Iterator[None]:
    """Hold every module in training mode within the block; then restore the mode of each."""
    resting = [module for module in model.modules() if not module.training]
    for module in resting:
        module.training = True
    try:
        yield
    finally:
        for module in resting:
            module.training = False


@contextmanager
def _noted(wanted: dict[Any, Callable[[], Any]]) -> Iterator[None]:
    """Note kernels that are not there yet within the block, and neither compile nor run them: results mean nothing."""
    from triton import knobs

    def note(*, key: str, fn: Any, compile: Any, **_: Any) -> bool:
        wanted[fn.jit_function, key] = lambda: fn.jit_function.preload(compile["specialization_data"])
        return True  # handled

    before, knobs.runtime.jit_cache_hook = knobs.runtime.jit_cache_hook, note
    try:
        yield
    finally:
        knobs.runtime.jit_cache_hook = before
