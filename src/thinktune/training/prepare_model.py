"""A model, with or without an adapter, made ready for packed batches and for the recomputation of its plan."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from thinktune.models import Loaded
from thinktune.planner.plan import Plan
from thinktune.training.fused.layer_on_cpu import layers_on_cpu
from thinktune.training.fused.packed_attention import NAME, packed_documents

logger = logging.getLogger(__name__)


@contextmanager
def set_up(model: Any, loaded: Loaded, plan: Plan) -> Iterator[None]:
    """Let the model take packed batches and save tensors as `plan` says within the block; restore it
    then."""
    with packed_documents(loaded.model) as attention:
        if attention != NAME:
            logger.warning(
                f"attention is the model's own ({attention}), one example at a time: "
                "its memory grows with the square of the longest"
            )
        if plan.fused:
            # It needs Triton, which comes with PyTorch for GPUs only.
            from thinktune.training.fused.fuse_model import fuse_layers

            fused = fuse_layers(model, plan.memory)
            try:
                yield
            finally:
                fused.undo()
            return
        if recomputes_by_transformers(plan):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        try:
            with nullcontext() if recomputes_by_transformers(plan) else layers_on_cpu(model):
                yield
        finally:
            if loaded.model.is_gradient_checkpointing:
                loaded.model.gradient_checkpointing_disable()


def recomputes_by_transformers(plan: Plan) -> bool:
    """Return whether whole layers are recomputed by transformers' checkpointing, used for layers not fused."""
    return not plan.fused and plan.memory.levels[0] == "full"
