"""Code that a model's files refer to: never fetched or run, unless `load.trust_remote_code` allows it.

A config can name a kernel on a hub for its attention, which transformers would download and run while it builds the
model, and modules of Python (`auto_map`) that lie beside the weights or on a hub. Code that would decide how the model
computes is refused by name; otherwise transformers' own is used instead, with a notice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.models.folder import ADAPTER_CONFIG, read_json

logger = logging.getLogger(__name__)

ALLOW = "load.trust_remote_code=true allows it, where you know what it is; or take it out of that file"
_KERNELS = ("attn_implementation", "experts_implementation", "kernel", "kernels", "kernel_config")
_MODULES = ("auto_map", "custom_generate", "auto_mapping")
_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json", ADAPTER_CONFIG)


def check_foreign_code(folders: Sequence[Path], load: Load) -> None:
    """Refuse models whose files name code that they cannot do without; warn of code they can.

    Raises:
        ModelError: a kernel of a hub, or a model type that only code beside the weights knows.
    """
    if load.trust_remote_code:
        return
    for file in [folder / name for folder in folders for name in _FILES]:
        values = read_json(file) if file.is_file() else {}
        for key, value in _settings(values):
            if _is_kernel(key, value):
                raise ModelError(f"{file} wants a program from a hub: {key} is {value}", hint=ALLOW)
        named = [key for key, value in _settings(values, into=()) if key in _MODULES and value]
        if "auto_map" in named and file.name == "config.json" and not _is_known(values.get("model_type")):
            raise ModelError(
                f"{file} wants code of its own: its model type {values.get('model_type')!r} is none of transformers', "
                f"and auto_map names {_first(values['auto_map'])}",
                hint=ALLOW,
            )
        if "auto_map" in named or "custom_generate" in named:
            logger.warning(f"{file} names code ({', '.join(named)}), which is not run: transformers' own is used")


def needs_own_code(folder: Path) -> bool:
    """Return whether the tokenizer in a folder names modules of its own."""
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(read_json(file).get("auto_map"))


def _settings(values: Any, into: Sequence[type] = (dict, list)) -> Iterator[tuple[str, Any]]:
    """Yield every key of nested JSON objects and its value."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield key, value
            if isinstance(value, tuple(into)):
                yield from _settings(value, into)
    elif isinstance(values, list):
        for value in values:
            yield from _settings(value, into)


def _is_kernel(key: str, value: Any) -> bool:
    """Return whether a setting names a repository or a path: names of transformers' own implementations have no slash.

    It may be given for each part of a model, as `{"text_config": "owner/name"}`.
    """
    if key.strip("_").removesuffix("_internal") not in _KERNELS or value is None:
        return False
    return "/" in str(value) or not isinstance(value, str | dict)


def _is_known(model_type: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _first(auto_map: Any) -> str:
    return str(next(iter(auto_map.values()), "nothing")) if isinstance(auto_map, dict) else str(auto_map)
