"""The weights of a model folder as GGUF has them: llama.cpp's names, and values in the order and form that it wants.

llama.cpp's own conversion (its folder conversion/) is the reference for what becomes of each weight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.errors import ModelError
from thinktune.export.gguf_kinds import Kind
from thinktune.models.folder import check_model_folder, read_safetensors_header
from thinktune.models.gguf_rope import DIVISORS, rope_divisors

if TYPE_CHECKING:
    import numpy as np

    Values = np.ndarray[Any, Any]
    Change = Callable[[Values], Values]

_TEXT = re.compile(r"^(model\.)?language_model\.(model\.)?(?!lm_head)")
_ELSEWHERE = re.compile(r"^(model\.)?(vision_tower|visual|multi_modal_projector|mtp)\.")
"""Weights of another half than text, or that draw several tokens at once, which llama.cpp does without."""


@dataclass(frozen=True)
class Tensor:
    """One weight: its name in GGUF, and a function that reads its values in float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Values]


def read_tensors(folder: Path, config: Mapping[str, Any], kind: Kind, rope: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the weights of the model in `folder`; `config` is its text config and `rope` its rotary parameters.

    Raises:
        ModelError: a weight that has no place in GGUF.
    """
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.architecture], int(config["num_hidden_layers"]))
    for file in check_model_folder(folder):
        for key, entry in read_safetensors_header(file).items():
            own = _TEXT.sub("model.", key)
            if _ELSEWHERE.match(key) or (own.endswith("lm_head.weight") and config.get("tie_word_embeddings")):
                continue
            name = names.get_name(own.replace(".dt_bias", ".dt_proj.bias"), try_suffixes=(".weight", ".bias"))
            if name is None:
                raise ModelError(
                    f"{file} holds {key}, which has no place in GGUF", hint="such models are not known here"
                )
            shape = tuple(size for size in entry["shape"] if size != 1 or "conv1d" not in key)
            yield Tensor(name, shape, _reader(file, key, shape, _changes(own, config, kind)))
    if rope["rope_type"] == "llama3":
        yield _divisors(folder)
    if rope["rope_type"] == "longrope":
        for length in ("long", "short"):
            yield _constant(f"rope_factors_{length}.weight", rope[f"{length}_factor"])


def _divisors(folder: Path) -> Tensor:
    from transformers import AutoConfig

    values = rope_divisors(AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config())
    return _constant(DIVISORS, values.tolist())


def _constant(name: str, numbers: list[float]) -> Tensor:
    import numpy as np

    values = np.array(numbers, np.float32)
    return Tensor(name, values.shape, lambda: values)


def _reader(file: Path, key: str, shape: tuple[int, ...], changes: list[Change]) -> Callable[[], Values]:
    def read() -> Values:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as weights:
            values: Values = weights.get_tensor(key).float().numpy().reshape(shape)
        for change in changes:
            values = change(values)
        return values

    return read


def _changes(key: str, config: Mapping[str, Any], kind: Kind) -> list[Change]:
    """Return what becomes of a weight's values, in order."""
    import numpy as np

    part = key.split(".")[-2]
    heads = int(config["num_attention_heads"])
    permuted = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}
    found: list[Change] = []
    if kind.permuted and part in permuted:
        halves = permuted[part], 2, int(config.get("head_dim") or config["hidden_size"] // heads) // 2
        found.append(lambda values: _swapped(values, 0, halves, 1))
    if kind.shifted and key.endswith("norm.weight") and "linear_attn" not in key:
        found.append(lambda values: values + 1)
    if key.endswith(".A_log"):
        found.append(lambda values: -np.exp(values))
    if ".linear_attn." in key:
        found.append(lambda values: _tiled(values, key, config))
    return found


def _tiled(values: Values, key: str, config: Mapping[str, Any]) -> Values:
    """Reorder the value heads of linear attention: those of a key head lie side by side in transformers, and llama.cpp
    goes through all key heads again and again."""
    import numpy as np

    keys, heads = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
    each, beside = (keys, heads // keys, int(config["linear_value_head_dim"])), 2 * keys * config["linear_key_head_dim"]
    part = key.split(".linear_attn.")[1].split(".")[0]
    if part in ("in_proj_qkv", "conv1d"):  # queries and keys come first
        return np.concatenate([values[:beside], _swapped(values[beside:], 0, each, 0)])
    if part in ("in_proj_a", "in_proj_b", "A_log", "dt_bias"):
        return _swapped(values, 0, (*each[:2], 1), 0)
    axis = {"in_proj_z": 0, "out_proj": 1}.get(part)
    return values if axis is None else _swapped(values, axis, each, 0)


def _swapped(values: Values, axis: int, sizes: tuple[int, int, int], first: int) -> Values:
    """Exchange two neighbours, `first` and the next, of the three indexes that an axis is made of."""
    shape = values.shape
    split = values.reshape(*shape[:axis], *sizes, *shape[axis + 1 :])
    return split.swapaxes(axis + first, axis + first + 1).reshape(shape)
