"""The decision to spread a frozen base over the GPUs of a host, made before it is loaded."""

from __future__ import annotations

from typing import Any

from thinktune.config import Config
from thinktune.errors import ConfigError, UsageError
from thinktune.models.device import choose_device
from thinktune.models.sharded_base import ShardedBase
from thinktune.notices import muted
from thinktune.planner.plan import Plan
from thinktune.planner.plan_config import plan_config
from thinktune.planner.sharding import why_not_sharded
from thinktune.training.ranks import by_first, gather, here, on_one_host


def base_to_fill(config: Config) -> ShardedBase | None:
    """Return a sharded base for the weights to be loaded into; None: each rank holds all of them.

    `auto` asks the plan, and is for GPUs.

    Raises:
        UsageError: `train.shard_base: true` where that cannot be.
    """
    wanted, place = config.train.shard_base, here()
    if wanted is False:
        return None
    why_not = why_not_sharded(config, place.size)
    if why_not is None and not on_one_host():
        why_not = "the GPUs are on several hosts"
    if why_not is not None:
        if wanted is True:
            raise UsageError(f"train.shard_base cannot be true: {why_not}", hint="set train.shard_base=auto")
        return None
    device = choose_device(config.load.device)
    if wanted == "auto" and (device.type != "cuda" or by_first(lambda: _plan(config).kept == 1)):
        return None
    return ShardedBase(place.rank, place.size, gather, config.quantize, device)


def _plan(config: Config) -> Plan:
    with muted():
        return plan_config(config, gpus=here().size)


def require_adapters(model: Any) -> None:
    """Check that every layer has an adapter: by the layers that gradients come to, ranks know whom to wait for.

    Raises:
        ConfigError: one has none.
    """
    for number, layer in enumerate(model.get_base_model().get_decoder().layers):
        if not any(parameter.requires_grad for parameter in layer.parameters()):
            raise ConfigError(
                f"train.shard_base: layer {number} has no adapter", hint="lora.targets that all layers have"
            )
