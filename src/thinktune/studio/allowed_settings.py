"""The settings that a training started from the page may change.

A page is not the command line: whoever sits at it, or gets hold of it, must not reach the machine's files, other
servers or code by it. So settings that are numbers, switches and choices are free; a text setting is free if it can be
nothing but text; models and data are those of the shipped configs, of hubs, and those that the studio was started with.
Everything else belongs on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from thinktune.config import Config
from thinktune.config.sections import REWARDS
from thinktune.errors import ConfigError

_TEXTS = {"data.split", "data.source.split", "data.system", "format.template", "lora.targets", "rl.stop",
          "ask.questions", "ask.sampling.stop", "eval.split", "eval.sampling.stop"}  # fmt: skip
"""Settings that are text, and are read as nothing else."""
_REFUSED = {"load.trust_remote_code", "train.report_to", "train.trainer", "infer"}
"""Settings not free although their type is: remote code, loggers that send data out, a section beyond the form."""
_DEVICE = re.compile(r"(auto|cpu|cuda(:\d+)?)\Z")
_HUB = re.compile(r"(ms:)?[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?(:[\w.-]+)?\Z", re.ASCII)
_BUILTIN = re.compile(r"builtin:[\w-]+\Z", re.ASCII)
_HINT = "start such a training on the command line"


def require_allowed(config: Config, shipped: Config, models: Collection[str], data: Collection[str]) -> None:
    """Refuse a config that the page may not train.

    Args:
        config: the config of the form.
        shipped: the shipped config it is based on, whose own values are free.
        models, data: those that the studio was started with.

    Raises:
        ConfigError: a setting that the page may not change, or not to that.
    """
    for key, value, field in _changed(config, shipped):
        if any(key == each or key.startswith(f"{each}.") for each in _REFUSED):
            raise ConfigError(f"{key} cannot be set from the page", hint=_HINT)
        if key == "output":  # the name of the run, which is checked by itself
            continue
        if key in ("model", "data.source", "data.source.source", "eval.data", "lora.init"):
            known = models if key in ("model", "lora.init") else data
            if value is not None and value not in known and not is_remote(str(value), hub=key != "lora.init"):
                raise ConfigError(
                    f"{key}: {value!r} is not of a hub, and the studio was not started with it",
                    hint=f"{_HINT}, or name it when the studio is started (MODEL, --data)",
                )
        elif key == "load.device":
            if not _DEVICE.match(str(value)):
                raise ConfigError(f"{key}: {value!r} is not auto, cpu or cuda:N")
        elif key == "rl.rewards":
            if own := [name for name in value if name not in REWARDS]:
                raise ConfigError(f"rl.rewards: {own[0]} is code of your own", hint=_HINT)
        elif key not in _TEXTS and not _is_plain(field):
            raise ConfigError(f"{key} cannot be set from the page", hint=_HINT)


def require_model(reference: str, models: Collection[str]) -> None:
    """Refuse a model that is neither one of the studio's, nor built in, nor on a hub.

    Raises:
        ConfigError: it is not.
    """
    if reference not in models and not is_remote(reference, hub=True):
        raise ConfigError(f"{reference!r} is not of a hub, and the studio was not started with it", hint=_HINT)


def is_remote(reference: str, *, hub: bool) -> bool:
    """Return whether a reference names a model on a hub or a built-in one, and no file of this machine."""
    return bool(_BUILTIN.match(reference)) or (hub and bool(_HUB.match(reference)) and not Path(reference).exists())


def _changed(one: BaseModel, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield every setting that differs: its key, its value, and its declared type."""
    for name, field in type(one).model_fields.items():
        key = f"{path}{name}"
        value, before = getattr(one, name), getattr(other, name, None)
        if value == before:
            continue
        if isinstance(value, BaseModel):
            yield from _changed(value, before, f"{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for each in value:
                yield from _changed(each, None, f"{key}.")
        else:
            yield key, value, field.annotation


def _is_plain(annotation: Any) -> bool:
    """Return whether a type holds only numbers, booleans and named choices."""
    inner = get_args(annotation)
    if not inner:
        return annotation in (int, float, bool, type(None))
    if get_origin(annotation) is Annotated:
        return _is_plain(inner[0])
    if str(get_origin(annotation)).endswith("Literal"):
        return True
    return all(_is_plain(each) for each in inner)
