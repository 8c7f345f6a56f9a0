"""The published shapes of common models, for a plan where their config.json cannot be had."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from thinktune.imports import importing

TABLE = files("thinktune.planner") / "known_models.json"
"""A list of `names` on the hub, `config`: the fields of their config.json that a shape depends on, and the published
number of `parameters`, tied ones counted once."""


def known_config(reference: str) -> Any | None:
    """Build the transformers config of a common model, as far as its shape goes; None: the table does not have it.

    >>> known_config("Qwen/Qwen2.5-3B-Instruct").hidden_size
    2048
    """
    with importing():
        from transformers import AutoConfig

    name = reference.removeprefix("ms:").lower()
    for entry in json.loads(TABLE.read_text(encoding="utf-8")):
        if name in map(str.lower, entry["names"]):
            return AutoConfig.for_model(**entry["config"])
    return None
