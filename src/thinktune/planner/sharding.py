"""Where a frozen base may be spread over the GPUs of a host, by a config and the shape of its model."""

from __future__ import annotations

from thinktune.config import Config
from thinktune.planner.model_shape import ModelShape


def why_not_sharded(config: Config, gpus: int) -> str | None:
    """Explain in a few words why the base of a training cannot be spread; None: it can, for all that a config tells."""
    if gpus == 1:
        return "there is one GPU"
    if config.lora is None:
        return "lora: null trains all weights, and none is frozen"
    if config.method != "sft":
        return f"method: {config.method} asks the model in training"
    if config.quantize == "int8":
        return "quantize is int8"
    return None


def kept_shares(config: Config, shape: ModelShape, gpus: int) -> list[float]:
    """List the shares of the layers' weights that each GPU may keep, the preferred one first."""
    wanted = config.train.shard_base
    if wanted is False or shape.experts or why_not_sharded(config, gpus) is not None:
        return [1.0]
    return [1 / gpus] if wanted is True else [1.0, 1 / gpus]
