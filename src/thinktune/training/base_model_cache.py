"""A base model and tokenised data, kept from one training to the next; adapters come and go and leave no trace.

`train` takes its model and its data from here, so that `sweep` loads and tokenises once for all its members.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from thinktune.config import Config
from thinktune.data import Prepared, prepare
from thinktune.errors import ConfigError
from thinktune.models import Loaded, load_model, make_chat, resolve
from thinktune.models.adapters import put_adapter, touches_embeddings
from thinktune.models.chat import date_settings
from thinktune.models.fp8_linear import has_quantised_weights
from thinktune.network import keep_peft_local
from thinktune.training.fused.lora_linear import fuse_lora
from thinktune.training.trainer import add_summed_loss

Notify = Callable[[str], None]


class Workbench:
    """Holds the last base model and the last prepared data, and hands them out again to configs that want the same.

    Attributes:
        loads: how often a model was loaded.
        preparations: how often data was read and tokenised.
    """

    def __init__(self) -> None:
        self.loads = 0
        self.preparations = 0
        self._loaded: Loaded | None = None
        self._prepared: Prepared | None = None
        self._keys: tuple[Any, Any] = (None, None)
        self._checksum = 0
        self._now = datetime.now()  # all see the same date

    def take(self, config: Config, notify: Notify, now: datetime | None = None) -> tuple[Loaded, Prepared]:
        """The base model, with the chat that `config` asks for, and the data to train.

        Args:
            now: for a template that reads the clock; None takes the moment at which this was made.

        Raises:
            ThinktuneError: what loading the model and the data raise.
        """
        loaded = self.take_model(config, notify, now)
        key = (model_key(config), data_key(config), date_settings(loaded.chat).get("now"))
        if self._prepared is None or self._keys[1] != key:
            self._prepared = None
            self._prepared = prepare(config, loaded.chat, notify)
            self.preparations += 1
            self._keys = (self._keys[0], key)
        return loaded, self._prepared

    def take_model(self, config: Config, notify: Notify, now: datetime | None = None) -> Loaded:
        """The base model alone. One whose weights are not what they were when it was loaded is loaded anew."""
        key = model_key(config)
        if self._loaded is not None and self._keys[0] == key and checksum(self._loaded.model) != self._checksum:
            notify("warning: the base model in memory has changed; loading it anew")
            self._loaded = None
        if self._loaded is None or self._keys[0] != key:
            self._loaded = None  # its memory first
            self._loaded = load_model(config.model, load=config.load, quantize=config.quantize, notify=notify)
            self.loads += 1
            self._keys = (key, self._keys[1])
            self._checksum = checksum(self._loaded.model)
        loaded = self._loaded
        settings = {**loaded.settings, **config.data.chat_settings}
        loaded.chat = make_chat(loaded.tokenizer, settings, stop_ids=loaded.chat.stop_ids, now=now or self._now)
        return loaded


def model_key(config: Config) -> tuple[Any, ...]:
    """What decides which base model is loaded, and how."""
    return config.model, config.load, config.quantize


def data_key(config: Config) -> tuple[Any, ...]:
    """What decides, with the model, which tokens are trained and what the data report says of them."""
    return config.data, config.format, config.data_seed, config.train.packing, config.train.pack_length


@torch.no_grad()
def checksum(model: torch.nn.Module) -> int:
    """A number that is another one when any weight or buffer of the model is."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for place, tensor in enumerate([*model.parameters(), *model.buffers()], start=1):
        if tensor.numel():
            bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()])
            total += place * int(bits.sum(dtype=torch.int64))
    return total


@contextmanager
def adapter_to_train(loaded: Loaded, config: Config, notify: Notify) -> Iterator[PeftModel]:
    """Within, the base model carries a new adapter, or the one of `lora.init`, its master weights in float32;
    afterwards it is the plain base model again."""
    keep_peft_local()
    base = loaded.model
    base.requires_grad_(False)
    model = _wrap(loaded, config, notify)
    _require_plain_head(model)
    fuse_lora(model)
    add_summed_loss(base)
    try:
        yield model
    finally:
        model.unload()
        del base.forward  # the one with the summed loss; the class's own is below it
        if base.is_gradient_checkpointing:
            base.gradient_checkpointing_disable()
        base.disable_input_require_grads()
        base.eval()


@contextmanager
def adapter_to_ask(loaded: Loaded, adapter: Path) -> Iterator[Any]:
    """Within, the tuned model: the adapter merged into the base model in memory, or beside it where that is quantised.

    Afterwards the base model has its own weights again, bit by bit: they were kept in main memory meanwhile.
    """
    model = put_adapter(loaded.model, adapter, merge=False)
    if has_quantised_weights(loaded.model) or touches_embeddings(adapter):
        try:
            yield model
        finally:
            model.unload()
        return
    layers = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    originals = [layer.weight.detach().to("cpu", copy=True) for layer in layers]
    merged = model.merge_and_unload()
    try:
        yield merged
    finally:
        with torch.no_grad():
            for layer, original in zip(layers, originals, strict=True):
                layer.weight.copy_(original)


def _require_plain_head(model: PeftModel) -> None:
    """Raises ConfigError for adapters on the head: the loss reads its weight, and would never train them."""
    if isinstance(model.get_base_model().get_output_embeddings(), BaseTunerLayer):
        model.unload()
        raise ConfigError(
            "an adapter on the output embeddings (lm_head) cannot be trained",
            hint="lora.targets without lm_head; to go on from an adapter on it, merge that and train on the result",
        )


def _wrap(loaded: Loaded, config: Config, notify: Notify) -> PeftModel:
    if config.lora.init is not None:
        resolved = resolve(config.lora.init, config.load, notify, prefer_merged=False)
        if resolved.adapter is None:
            raise ConfigError(f"lora.init: {config.lora.init} is no adapter", hint="name a run or an adapter folder")
        notify(f"continuing the adapter {resolved.adapter}; its own rank, scale, dropout and targets hold")
        model: PeftModel = put_adapter(loaded.model, resolved.adapter, merge=False, trainable=True)
        return model
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=config.lora.targets,
        use_rslora=config.lora.use_rslora,
        bias="none",
    )
    return get_peft_model(loaded.model, lora)
