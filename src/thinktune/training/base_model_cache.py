"""A base model and tokenised data, kept from one training to the next; adapters come and go and leave no trace.

`train` takes its model and its data from here, so that `sweep` loads and tokenises once for all its members.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

import torch

from thinktune.config import Config
from thinktune.data import Prepared, prepare
from thinktune.models import Loaded, load_model, make_chat
from thinktune.models.chat import date_settings
from thinktune.models.sharded_base import ShardedBase, is_sharded, sharded_base_of
from thinktune.training.reinforce.problems import prepare_problems

logger = logging.getLogger(__name__)


class BaseModelCache:
    """Holds the last base model and the last prepared data, and hands them out again to configs that want the same.

    Attributes:
        loads: how often a model was loaded.
        preparations: how often data was read and tokenised.
        now: the moment at which this was made, for templates that read the clock.
    """

    def __init__(self) -> None:
        self.loads = 0
        self.preparations = 0
        self._loaded: Loaded | None = None
        self._prepared: Prepared | None = None
        self._keys: tuple[Any, Any] = (None, None)
        self._checksum = 0
        self.now = datetime.now()  # all see the same date

    def take(
        self, config: Config, now: datetime | None = None, into: ShardedBase | None = None
    ) -> tuple[Loaded, Prepared]:
        """Return the base model, with the chat that `config` asks for, and the data to train.

        Args:
            now: for a template that reads the clock; None: `self.now`.
            into: the sharded base that takes the weights, if they are loaded now.

        Raises:
            ThinktuneError: from loading the model and the data.
        """
        loaded = self.take_model(config, now, into)
        key = (model_key(config), data_key(config), date_settings(loaded.chat).get("now"))
        if self._prepared is None or self._keys[1] != key:
            self._prepared = None
            self._prepared = (prepare_problems if config.method == "grpo" else prepare)(config, loaded.chat)
            self.preparations += 1
            self._keys = (self._keys[0], key)
        return loaded, self._prepared

    def forget_model(self) -> None:
        """Let go of the base model, and its memory."""
        self._loaded = None

    def take_model(self, config: Config, now: datetime | None = None, into: ShardedBase | None = None) -> Loaded:
        """Return the base model alone. One whose weights have changed since it was loaded is loaded anew."""
        key = model_key(config)
        if self._loaded is not None and self._keys[0] == key and checksum(self._loaded.model) != self._checksum:
            logger.warning("warning: the base model in memory has changed; loading it anew")
            self._loaded = None
        if self._loaded is None or self._keys[0] != key:
            self._loaded = None  # its memory first
            self._loaded = load_model(config.model, load=config.load_to_train, quantize=config.quantize, into=into)
            self.loads += 1
            self._keys = (key, self._keys[1])
            self._checksum = checksum(self._loaded.model)
        loaded = self._loaded
        settings = {**loaded.settings, **config.data.chat_settings}
        loaded.chat = make_chat(loaded.tokenizer, settings, stop_ids=loaded.chat.stop_ids, now=now or self.now)
        return loaded


def model_key(config: Config) -> tuple[Any, ...]:
    """Return the settings that decide which base model is loaded, and how."""
    return config.model, config.load_to_train, config.quantize


def data_key(config: Config) -> tuple[Any, ...]:
    """Return the settings that, with the model, decide the trained tokens and the data report."""
    data = config.data, config.format, config.data_seed, config.train.packing, config.train.pack_length
    return (*data, config.method, config.rl.max_completion_length if config.method == "grpo" else None)


@torch.no_grad()
def checksum(model: torch.nn.Module) -> int:
    """Compute a number that changes with any weight or buffer of the model, of a sharded base as it was read."""
    sharded = sharded_base_of(model)
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = sharded.digest if sharded else 0
    for place, tensor in enumerate([*model.parameters(), *model.buffers()], start=1):
        if tensor.numel() and not is_sharded(tensor):
            bits = tensor.detach().contiguous().view(-1).view(integers[tensor.element_size()])
            total += place * int(bits.sum(dtype=torch.int64))
    return total
