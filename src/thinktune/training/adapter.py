"""The adapter on a base model: put on to be trained or to be asked, taken off without a trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from thinktune.config import Config
from thinktune.errors import ConfigError, ModelError
from thinktune.imports import uncollected
from thinktune.models import Loaded, resolve
from thinktune.models.adapters import base_weight, put_adapter, touches_embeddings
from thinktune.models.fp8_linear import has_quantised_weights
from thinktune.network import keep_peft_local
from thinktune.planner.model_shape import ModelShape, shape_of
from thinktune.training.adapter_round_trip import require_round_trip
from thinktune.training.fused.lora_linear import fuse_lora
from thinktune.training.fused.package_kernels import kernels_that_train

logger = logging.getLogger(__name__)


@contextmanager
def adapter_to_train(loaded: Loaded, config: Config) -> Iterator[PeftModel]:
    """Put a new adapter on the base model within the block, or the one of `lora.init`, its master weights in float32;
    afterwards it is the plain base model again."""
    keep_peft_local()
    base = loaded.model
    base.requires_grad_(False)
    model = _wrap(loaded, config)
    _require_plain_head(model)
    fuse_lora(model)
    try:
        with kernels_that_train(model):
            yield model
    finally:
        model.unload()
        if base.is_gradient_checkpointing:
            base.gradient_checkpointing_disable()
        base.disable_input_require_grads()
        base.eval()


@contextmanager
def adapter_to_ask(loaded: Loaded, adapter: Path) -> Iterator[Any]:
    """Yield the tuned model: the adapter merged into the base model in memory, or beside it if that is quantised.

    Afterwards the base model has its own weights again, bit by bit: they were kept in main memory meanwhile.
    """
    model = put_adapter(loaded.model, adapter, merge=False)
    if has_quantised_weights(loaded.model) or touches_embeddings(adapter):
        try:
            yield model
        finally:
            model.unload()
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    originals = [base_weight(layer).detach().to("cpu", copy=True) for layer in layers]
    merged = model.merge_and_unload()
    try:
        yield merged
    finally:
        with torch.no_grad():
            for layer, original in zip(layers, originals, strict=True):
                base_weight(layer).copy_(original)


def _require_plain_head(model: PeftModel) -> None:
    """Refuse adapters on the head (ConfigError): the loss reads its weight, and would never train them."""
    if isinstance(model.get_base_model().get_output_embeddings(), BaseTunerLayer):
        model.unload()
        raise ConfigError(
            "an adapter on the output embeddings (lm_head) cannot be trained",
            hint="lora.targets without lm_head; to go on from an adapter on it, merge that and train on the result",
        )


def _wrap(loaded: Loaded, config: Config) -> PeftModel:
    settings = config.lora
    assert settings is not None
    if settings.init is not None:
        resolved = resolve(settings.init, config.load, prefer_merged=False)
        if resolved.adapter is None:
            raise ConfigError(f"lora.init: {settings.init} is no adapter", hint=resolved.adapter_hint)
        logger.info(f"continuing the adapter {resolved.adapter}; its own rank, scale, dropout and targets hold")
        model: PeftModel = put_adapter(loaded.model, resolved.adapter, merge=False, trainable=True)
        return model
    shape = shape_of(loaded.model.config, trust_remote_code=config.load.trust_remote_code)
    targets = shape.named_targets(settings.targets)
    shape.check_targets(targets)
    if settings.experts:
        shape.check_experts()
        _require_plain_experts(loaded.model, shape)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        target_parameters=list(shape.expert_targets) if settings.experts else None,
        use_rslora=settings.use_rslora,
        bias="none",
    )
    with uncollected():
        model = get_peft_model(loaded.model, lora)
        try:
            require_round_trip(model, trust_remote_code=config.load.trust_remote_code)
        except ModelError:
            model.unload()
            raise
    return model


def _require_plain_experts(model: Any, shape: ModelShape) -> None:
    packed = [name for name in shape.experts if not model.get_parameter(name).is_floating_point()]
    if packed:
        raise ConfigError(
            f"lora.experts: the weights of {packed[0]} are quantised, and an adapter has to be added to them",
            hint="quantize: none, or lora.experts=false",
        )
