"""The contents of a model or adapter folder: whether it is whole, and the settings that thinktune recorded in it.

Everything here reads headers and names only, so that a broken download is told before gigabytes are loaded.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from thinktune.errors import ModelError
from thinktune.files import write_json

SETTINGS_FILE = "thinktune.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_SETTINGS: dict[str, type] = {"base_model": str, "system": str, "format": dict}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write `thinktune.json`, the settings that later verbs need to use the model as trained, into an adapter or merged
    folder.

    `base_model` that is a local path is made absolute, so that the folder can be used from anywhere on the machine.
    """
    from thinktune.version import __version__

    base = settings.get("base_model")
    if isinstance(base, str) and Path(base).expanduser().exists():
        settings = {**settings, "base_model": str(Path(base).expanduser().resolve())}
    write_json(folder / SETTINGS_FILE, {**settings, "thinktune": __version__})


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings that `write_settings` wrote; empty for folders of other tools.

    Raises:
        ModelError: the file is there but unreadable, or holds values of the wrong type.
    """
    file = folder / SETTINGS_FILE
    settings = read_json(file) if file.exists() else {}
    for name, kind in _SETTINGS.items():
        if not isinstance(settings.get(name), kind | None):
            raise ModelError(f"{file}: {name} is {settings[name]!r:.100}, not {kind.__name__}", hint=_INCOMPLETE)
    if (settings.get("system") or "").encode("utf-8", "replace").decode() != (settings.get("system") or ""):
        raise ModelError(f"{file}: system holds half of a surrogate pair, which is no text")
    return settings


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in `file`.

    Raises:
        ModelError: missing, not JSON, or not an object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file} is missing", hint=_INCOMPLETE) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint=_INCOMPLETE) from None
    if not isinstance(values, dict):
        raise ModelError(f"{file} holds no JSON object", hint=_INCOMPLETE)
    return values


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def is_whole(folder: Path) -> bool:
    """Tell whether the folder holds a model made by full fine-tuning."""
    return bool(read_settings(folder).get("whole"))


def check_model_folder(folder: Path) -> list[Path]:
    """Make sure that the folder holds a whole model, and return its safetensors files.

    Raises:
        ModelError: no config, no weights, only pickled ones, or some that are missing or cut off.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json; {what_lies_in(folder)}",
            hint="name a folder that a model was saved to, a run folder, a hub id, or builtin:smollm2",
        )
    config = read_json(folder / "config.json")
    generation_ends(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in places.values()
        ):
            raise ModelError(f"{index} does not say which file each tensor is in", hint=_INCOMPLETE)
        shards = sorted(set(places.values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise ModelError(
                f"{folder} is not whole: {', '.join(missing)} of {len(shards)} weight files missing", hint=_INCOMPLETE
            )
        files = [folder / name for name in shards]
    else:
        files = sorted(file for file in folder.glob("model*.safetensors") if file.is_file())
    if not files:
        raise _no_weights(folder)
    _check_layers(config, sum(len(read_safetensors_header(file)) for file in files), folder)
    return files


def _check_layers(config: dict[str, Any], tensors: int, folder: Path) -> None:
    """Refuse more layers than there can be weights for: building a model of 100 million layers takes days."""
    layers = config.get("num_hidden_layers")
    if layers is not None and not (type(layers) is int and 1 <= layers <= tensors):
        raise ModelError(f"{folder}: config.json asks for {layers!r} layers, and the weights are {tensors} tensors")


def check_adapter_folder(folder: Path) -> Path:
    """Make sure that the folder holds a whole adapter, and return its weights file.

    Raises:
        ModelError: weights that are missing, pickled or cut off; layers that are repeated.
    """
    if read_json(folder / ADAPTER_CONFIG).get("layer_replication"):
        raise ModelError(f"{folder} repeats layers of its base (layer_replication), which is not supported")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise _no_weights(folder)
    read_safetensors_header(weights)
    return weights


def read_safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """Read the tensors of a safetensors file: name → {"dtype", "shape", "data_offsets"}.

    The format: 8 bytes little-endian length, that many bytes of JSON, then the data
    (https://huggingface.co/docs/safetensors). The file is as long as the last offset says, or it was cut off.

    Raises:
        ModelError: cut off, or not safetensors.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size, _LONGEST_HEADER):
                raise ValueError("its header is longer than the file, or than the format allows")
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}", hint=_INCOMPLETE) from None
    if size != end:
        raise ModelError(f"{file} is cut off: it has {size:,} bytes, and should have {end:,}", hint=_INCOMPLETE)
    try:
        with safe_open(file, "numpy"):  # checks shapes, types and offsets against each other
            return tensors
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}", hint=_INCOMPLETE) from None


def stored_dtype(files: list[Path]) -> str:
    """Return the safetensors dtype (`BF16`, `F16`, `F32`, …) of most of the weights' bytes."""
    sizes: Counter[str] = Counter()
    for file in files:
        for entry in read_safetensors_header(file).values():
            start, end = entry["data_offsets"]
            sizes[entry["dtype"]] += end - start
    return sizes.most_common(1)[0][0] if sizes else "F32"


def generation_ends(folder: Path) -> frozenset[int]:
    """Return the token ids that end a generation according to generation_config.json; none if it has none."""
    file = folder / "generation_config.json"
    found = read_json(file).get("eos_token_id") if file.is_file() else None
    ends = [] if found is None else found if isinstance(found, list) else [found]
    if not all(type(end) is int and 0 <= end < 2**31 for end in ends):
        raise ModelError(f"{file}: eos_token_id is {found!r:.100}, not a token id or a list of them")
    return frozenset(ends)


def sha256(file: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def adapter_sha256(folder: Path) -> str:
    """Identify the state of an adapter: a digest over its weights and its config."""
    return hashlib.sha256((sha256(folder / ADAPTER_WEIGHTS) + sha256(folder / ADAPTER_CONFIG)).encode()).hexdigest()


def what_lies_in(folder: Path, most: int = 6) -> str:
    """List a few file names, for an error message."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    if not names:
        return "it is empty"
    return "found there: " + ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return ModelError(
            f"{folder} has its weights as {', '.join(pickles[:3])}: pickled files can run code, and are refused",
            hint="load it once where you trust it and save_pretrained() it again: that writes safetensors",
        )
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if ggufs:
        return ModelError(f"{folder} holds GGUF weights", hint=f"name the file itself: {folder / ggufs[0]}")
    return ModelError(f"{folder} has no safetensors weights; {what_lies_in(folder)}", hint=_INCOMPLETE)


_LONGEST_HEADER = 100 * 2**20
"""Bytes, as safetensors' own reader has it."""
_INCOMPLETE = "the folder is broken or half downloaded: download or copy it again"
