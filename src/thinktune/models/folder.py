"""What lies in a model or adapter folder: whether it is whole, and what thinktune wrote down about it.

Everything here reads headers and names only, so that a broken download is told before gigabytes are loaded.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from thinktune.errors import ModelError
from thinktune.files import write_json

SETTINGS_FILE = "thinktune.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write `thinktune.json` into an adapter or merged folder: what later verbs have to know to use it as trained.

    `base_model` that is a local path is made absolute, so that the folder can be used from anywhere on the machine.
    """
    from thinktune import __version__

    base = settings.get("base_model")
    if isinstance(base, str) and Path(base).expanduser().exists():
        settings = {**settings, "base_model": str(Path(base).expanduser().resolve())}
    write_json(folder / SETTINGS_FILE, {**settings, "thinktune": __version__})


def read_settings(folder: Path) -> dict[str, Any]:
    """What `write_settings` wrote; empty for folders that are not from thinktune.

    Raises:
        ModelError: the file is there and cannot be read.
    """
    file = folder / SETTINGS_FILE
    return read_json(file) if file.exists() else {}


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`.

    Raises:
        ModelError: missing, not JSON, or not an object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{file} is missing", hint=_INCOMPLETE) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint=_INCOMPLETE) from None
    if not isinstance(values, dict):
        raise ModelError(f"{file} holds no JSON object", hint=_INCOMPLETE)
    return values


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


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
    read_json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index).get("weight_map", {}).values()))
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
    for file in files:
        read_safetensors_header(file)
    return files


def check_adapter_folder(folder: Path) -> Path:
    """Make sure that the folder holds a whole adapter, and return its weights file.

    Raises:
        ModelError: weights that are missing, pickled or cut off.
    """
    read_json(folder / ADAPTER_CONFIG)
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise _no_weights(folder)
    read_safetensors_header(weights)
    return weights


def read_safetensors_header(file: Path) -> dict[str, dict[str, Any]]:
    """The tensors of a safetensors file: name → {"dtype", "shape", "data_offsets"}.

    The format: 8 bytes little-endian length, that many bytes of JSON, then the data
    (https://huggingface.co/docs/safetensors). The file is as long as the last offset says, or it was cut off.

    Raises:
        ModelError: cut off, or not safetensors.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}", hint=_INCOMPLETE) from None
    if size != end:
        raise ModelError(f"{file} is cut off: it has {size:,} bytes, and should have {end:,}", hint=_INCOMPLETE)
    return tensors


def stored_dtype(files: list[Path]) -> str:
    """The safetensors dtype (`BF16`, `F16`, `F32`, …) of most of the weights' bytes."""
    sizes: Counter[str] = Counter()
    for file in files:
        for entry in read_safetensors_header(file).values():
            start, end = entry["data_offsets"]
            sizes[entry["dtype"]] += end - start
    return sizes.most_common(1)[0][0] if sizes else "F32"


def generation_ends(folder: Path) -> frozenset[int]:
    """The token ids that end a generation according to the model's generation_config.json; none if it has none."""
    file = folder / "generation_config.json"
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    return frozenset([] if ends is None else ends if isinstance(ends, list) else [ends])


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def adapter_sha256(folder: Path) -> str:
    """What identifies the state of an adapter: a digest over its weights and its config."""
    return hashlib.sha256((sha256(folder / ADAPTER_WEIGHTS) + sha256(folder / ADAPTER_CONFIG)).encode()).hexdigest()


def what_lies_in(folder: Path, most: int = 6) -> str:
    """A few names, for an error message."""
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


_INCOMPLETE = "the folder is broken or half downloaded: download or copy it again"
