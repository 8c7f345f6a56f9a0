"""Writes a changed model to a folder, with what its base has besides: generation config, vision weights, processors."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinktune.files import write_json
from thinktune.models.folder import check_model_folder, read_json, read_safetensors_header, stored_dtype
from thinktune.models.quantised import SCALES, dequantised_method

logger = logging.getLogger(__name__)

_FILE = "generation_config.json"
_HEAD = "lm_head.weight"
_PACKED = ("U8", "I8", "F8_E4M3", "F8_E5M2")
_COMPUTED = ("inv_freq", "masked_bias", ".attn.bias", ".attention.bias")  # buffers that old checkpoints hold


def save_model(model: Any, folder: Path, base: Path, stop_ids: frozenset[int]) -> None:
    """Write weights, config and generation config of a model whose base lies in the folder `base`.

    The generation config is the base's, word for word, and ends at `stop_ids` too: other programs learn the end of a
    reply from it, and a base model learns to end its turn here. transformers itself refuses to write some that it
    reads, such as a temperature beside `do_sample: false`, and settings of generation in config.json.

    Weights of the base that the model has not, as its vision tower where only the text half was loaded, come along bit
    by bit, and the folder loads as the same class as its base.
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
    for file in base.glob("*processor_config.json"):
        shutil.copyfile(file, folder / file.name)
    if (base / "config.json").is_file() and any(base.glob("*.safetensors")):  # no GGUF
        _add_rest(model, folder, check_model_folder(base))


def _add_rest(model: Any, folder: Path, base: Sequence[Path]) -> None:
    """Complete a saved model by the weights of its base that it lacks, and by the config of the whole."""
    files = check_model_folder(folder)
    saved = {name for file in files for name in read_safetensors_header(file)}
    places = {name: file for file in base for name in read_safetensors_header(file)}
    rest = _rest(model, saved, places)
    if not rest:
        return
    known = {*places, *(f"{model.base_model_prefix}.{name}" for name in places)}
    if strange := sorted(name for name in saved - known if not name.endswith(_HEAD)):
        logger.warning(
            f"the merged model lacks {len(rest)} weights of its base, among them {min(rest)}: it names its weights "
            f"otherwise ({strange[0]})"
        )
        return
    if packed := sorted(name for name, file in rest.items() if read_safetensors_header(file)[name]["dtype"] in _PACKED):
        logger.warning(
            f"the merged model lacks {len(rest)} weights of its base, among them {packed[0]}: they are quantised, and "
            "it is not"
        )
        return
    logger.info(f"{len(rest)} weights that only the base has, such as {min(rest)}, are kept as they are")
    shards = [folder / f"model-{at + 1:05}-of-{len(files) + 1:05}.safetensors" for at in range(len(files) + 1)]
    for file, shard in reversed(list(zip(files, shards, strict=False))):
        file.rename(shard)
    _copy_weights(rest, shards[-1], None if _same_dtype(model, base) else model.dtype)
    _write_index(folder, shards)
    told = read_json(base[0].parent / "config.json")
    if told.get("architectures") != [type(model).__name__]:
        untied = not saved <= known
        write_json(folder / "config.json", _updated(told, str(model.dtype).removeprefix("torch."), untied))


def _rest(model: Any, saved: set[str], places: dict[str, Path]) -> dict[str, Path]:
    """Return the weights of a base that a model saved from it lacks, but those that it computes or ties."""
    tied = model.config.get_text_config().tie_word_embeddings
    left_out: tuple[str, ...] = (*_COMPUTED, _HEAD) if tied else _COMPUTED
    if places and dequantised_method(next(iter(places.values())).parent) is not None:
        left_out += SCALES  # the saved weights are whole
    prefix = f"{model.base_model_prefix}."  # some of the checkpoints of old have none
    return {
        name: file for name, file in places.items() if not {name, prefix + name} & saved and not name.endswith(left_out)
    }


def _write_index(folder: Path, shards: Sequence[Path]) -> None:
    entries = {
        name: (shard.name, *entry["data_offsets"])
        for shard in shards
        for name, entry in read_safetensors_header(shard).items()
    }
    size = sum(end - start for _, start, end in entries.values())
    places = {name: shard for name, (shard, *_) in sorted(entries.items())}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def _copy_weights(places: dict[str, Path], out: Path, dtype: Any) -> None:
    """Write tensors of several files into one, as they are or in another floating-point dtype."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {}
    for file in sorted(set(places.values())):
        with safe_open(file, "pt") as stored:
            for name in (name for name, place in places.items() if place == file):
                tensor = stored.get_tensor(name)
                tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    save_file(tensors, out, metadata={"format": "pt"})


def _same_dtype(model: Any, base: Sequence[Path]) -> bool:
    names = {"BF16": "torch.bfloat16", "F16": "torch.float16", "F32": "torch.float32"}
    return names.get(stored_dtype(list(base))) == str(model.dtype)


def _updated(config: dict[str, Any], dtype: str, untied: bool) -> dict[str, Any]:
    """Change the dtype of a whole model's config, and that its head has a weight of its own."""
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        part |= dict.fromkeys({"dtype", "torch_dtype"} & part.keys(), dtype)
    config.pop("quantization_config", None)
    if untied:
        config["tie_word_embeddings"] = False
        config.get("text_config", {})["tie_word_embeddings"] = False
    return config
