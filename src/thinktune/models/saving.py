"""Writes a changed model to a folder, with the generation config of its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from thinktune.files import write_json
from thinktune.models.folder import read_json

_FILE = "generation_config.json"


def save_model(model: Any, folder: Path, base: Path, stop_ids: frozenset[int]) -> None:
    """Write weights, config and generation config of a model whose base lies in the folder `base`.

    The generation config is the base's, word for word, and ends at `stop_ids` too: other programs learn the end of a
    reply from it, and a base model learns to end its turn here. transformers itself refuses to write some that it
    reads, such as a temperature beside `do_sample: false`, and settings of generation in config.json.
    """
    from transformers import GenerationConfig

    file, own = base / _FILE, model.generation_config
    told = read_json(file) if file.is_file() else json.loads(own.to_json_string(keys_to_pop=["compile_config"]))
    strays = {name for name in model.config._get_generation_parameters() if name in vars(model.config)}
    for name in strays:
        told.setdefault(name, getattr(model.config, name))
        delattr(model.config, name)
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder)
    finally:
        model.generation_config = own
    ends = told.get("eos_token_id")
    known = frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])
    if not stop_ids <= known:
        told["eos_token_id"] = sorted(known | stop_ids)
    write_json(folder / _FILE, told)
