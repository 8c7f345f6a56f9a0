"""Kernels of fla, mamba-ssm and causal-conv1d, which transformers takes where they are installed.

Some refuse to be trained with on some machines: fla's delta rule does in its backward pass on Hopper with Triton 3.4 to
3.7.0. transformers has each of them in plain PyTorch too, right and many times slower.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from thinktune.models.untouched import at_rest, inner_model

logger = logging.getLogger(__name__)


@contextmanager
def kernels_that_train(model: Any) -> Iterator[None]:
    """Put the kernels of other packages aside within the block, and say so, if the model does not train with them."""
    functions = _functions_of_packages(model)
    error = _error_of_training(model) if functions else None
    if error is None:
        yield
        return
    before = [(module, name, getattr(module, name)) for module, name in functions]
    for module, name, function in before:
        setattr(module, name, function.__wrapped__)
    logger.warning(
        f"its kernels do not train here, and plain PyTorch computes what they would, many times slower: {error}"
    )
    try:
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def _functions_of_packages(model: Any) -> list[tuple[Any, str]]:
    """List the functions of a model's modules for which transformers has taken those of a package."""
    modules = {sys.modules[type(each).__module__] for each in model.modules()}
    return [
        (module, name)
        for module in modules
        if module.__name__.startswith("transformers.models.")
        for name, function in vars(module).items()
        if _is_of_a_package(function)
    ]


def _is_of_a_package(function: Any) -> bool:
    # transformers keeps what it has chosen in a closure, and the function of its own as functools.wraps has it.
    if not hasattr(function, "__wrapped__") or not hasattr(function, "__code__"):
        return False
    held = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return "is_new_implementation" in held and bool(held["is_new_implementation"].cell_contents)


def _error_of_training(model: Any) -> str | None:
    """Return what a forward and a backward pass over a few tokens dies of; None if it lives."""
    base = inner_model(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ids = torch.arange(3, 11, device=base.device)[None] % base.get_input_embeddings().num_embeddings
    try:
        with at_rest(model), torch.enable_grad():
            states = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
            torch.autograd.grad(states.float().sum(), trained, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a kernel may raise anything
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None
