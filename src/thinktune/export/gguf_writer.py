"""A model folder as one GGUF file, for llama.cpp and Ollama.

The format and its names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the package gguf, which writes
it. Models of a few types (`gguf_kinds`) with a byte-level BPE tokenizer are known; others are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.errors import ModelError
from thinktune.export.gguf_kinds import Kind, kind_of, rope_of
from thinktune.export.gguf_types import Precision, file_type, quantize, tensor_type
from thinktune.models.chat import Chat
from thinktune.models.folder import check_model_folder, read_json, read_safetensors_header
from thinktune.models.gguf_rope import DIVISORS, RULE, rope_divisors
from thinktune.tags import TAGS

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 65504.0  # of float16

# How llama.cpp calls the ways in which text is split before its pieces are looked up.
_QWEN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class _Tensor:
    """One weight: its name in GGUF, and a function that reads its values in float32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray[Any, Any]]


def write_gguf(folder: Path, file: Path, tokenizer: Any, chat: Chat, precision: Precision, name: str) -> None:
    """Write the model in `folder` to `file`, one tensor in memory at a time.

    The chat template goes along, with the chat's system text in it.

    Raises:
        ModelError: a model or tokenizer that is not one of the known kinds.
    """
    import gguf

    config = read_json(folder / "config.json")
    model = kind_of(config)
    architecture = gguf.MODEL_ARCH[model.architecture]
    rope = rope_of(config)
    tensors = list(_tensors(folder, config, model))
    if rope["rope_type"] == "llama3":
        tensors.append(_divisors(folder))
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    _add_shape(writer, config, rope)
    _add_tokenizer(writer, folder, tokenizer, chat, int(config["vocab_size"]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(file_type(precision))
    layers, tied = int(config["num_hidden_layers"]), all(tensor.name != "output.weight" for tensor in tensors)
    types = [tensor_type(tensor.name, tensor.shape, precision, layers, tied=tied) for tensor in tensors]
    for tensor, kind in zip(tensors, types, strict=True):
        _announce(writer, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, kind in zip(tensors, types, strict=True):
        writer.write_tensor_data(_packed(tensor, kind))
    writer.close()


def _tensors(folder: Path, config: dict[str, Any], kind: Kind) -> Iterator[_Tensor]:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.architecture], int(config["num_hidden_layers"]))
    heads = int(config["num_attention_heads"])
    permuted = {"q_proj": heads, "k_proj": int(config.get("num_key_value_heads") or heads)}
    tied = bool(config.get("tie_word_embeddings"))
    for file in check_model_folder(folder):
        for key, entry in read_safetensors_header(file).items():
            if tied and key == "lm_head.weight":
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise ModelError(
                    f"{file} holds {key}, which has no place in GGUF", hint="such models are not known here"
                )
            count = permuted.get(key.split(".")[-2], 0) if kind.permuted else 0
            yield _Tensor(name, tuple(entry["shape"]), _reader(file, key, count))


def _divisors(folder: Path) -> _Tensor:
    from transformers import AutoConfig

    values = rope_divisors(AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()).numpy()
    return _Tensor(DIVISORS, values.shape, lambda: values)


def _reader(file: Path, key: str, heads: int) -> Callable[[], np.ndarray[Any, Any]]:
    def read() -> np.ndarray[Any, Any]:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as weights:
            values: np.ndarray[Any, Any] = weights.get_tensor(key).float().numpy()
        if heads:
            split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
            values = split.swapaxes(1, 2).reshape(values.shape)
        return values

    return read


def _announce(writer: Any, tensor: _Tensor, kind: Any) -> None:
    import gguf
    import numpy as np

    floats: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16)}
    if dtype := floats.get(kind.name):
        writer.add_tensor_info(tensor.name, tensor.shape, dtype, int(np.prod(tensor.shape)) * dtype.itemsize)
        return
    block, size = gguf.GGML_QUANT_SIZES[kind]
    *rows, columns = tensor.shape
    packed = (*rows, columns // block * size)
    writer.add_tensor_info(tensor.name, packed, np.dtype(np.uint8), int(np.prod(packed)), kind)


def _packed(tensor: _Tensor, kind: Any) -> np.ndarray[Any, Any]:
    import numpy as np

    values = tensor.read()
    if kind.name == "F32":
        return values
    if kind.name != "F16":
        return quantize(values, kind)
    if np.abs(values).max() > _LARGEST:
        raise ModelError(f"{tensor.name} has values beyond float16", hint="export it as q8_0")
    return values.astype(np.float16)


def _add_shape(writer: Any, config: dict[str, Any], rope: dict[str, Any]) -> None:
    heads, size = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = int(config.get("head_dim") or size // heads)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(size)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(int(head * (rope.get("partial_rotary_factor") or 1)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        writer.add_string(RULE, json.dumps({name: value for name, value in rope.items() if name != "rope_theta"}))
    if config["model_type"] == "phi3":
        writer.add_rope_scaling_orig_ctx_len(int(config["original_max_position_embeddings"]))
        writer.add_sliding_window(int(config.get("sliding_window") or 0))
    if config["model_type"] == "olmo3":
        writer.add_sliding_window(int(config["sliding_window"]))
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if rope["rope_type"] == "yarn":
        _add_yarn(writer, rope)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))


def _add_yarn(writer: Any, rope: dict[str, Any]) -> None:
    import gguf

    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
    writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))


def _add_tokenizer(writer: Any, folder: Path, tokenizer: Any, chat: Chat, size: int) -> None:
    import gguf

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "BPE":
        raise ModelError(f"the tokenizer of {folder} is {described['model']['type']}; GGUF is known here for BPE")
    pieces = {index: piece for piece, index in described["model"]["vocab"].items()}
    kinds = dict.fromkeys(pieces, gguf.TokenType.NORMAL)
    for added in described["added_tokens"]:
        pieces[added["id"]] = added["content"]
        # llama.cpp does not print control tokens: tags are text, though a vocabulary may call them special.
        control = added["special"] and added["content"] not in TAGS
        kinds[added["id"]] = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
    # Embeddings are often padded to a round number of rows, which no text leads to.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(described, folder))
    writer.add_token_list([pieces.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kinds.get(index, gguf.TokenType.UNUSED) for index in range(size)])
    merges = described["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(chat.end_of_turn_id)
    writer.add_eot_token_id(chat.end_of_turn_id)
    for add, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add(index)
    # The beginning of a conversation is in its template, as it was trained: llama.cpp and Ollama would repeat it.
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat.told_template())


def _splitting(described: dict[str, Any], folder: Path) -> str:
    """Return llama.cpp's name for the tokenizer's way of splitting text."""
    step = described.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    patterns = [each["pattern"].get("Regex", "") for each in steps if each["type"] == "Split"]
    digits = [each["individual_digits"] for each in steps if each["type"] == "Digits"]
    if len(patterns) == 1 and patterns[0].endswith(_QWEN):
        return "qwen2"
    if len(patterns) == 1 and patterns[0].endswith(_LLAMA3):
        return "llama-bpe"
    if digits == [True] and not patterns:
        return "smollm"
    if not patterns and not digits:
        return "gpt-2"
    raise ModelError(f"the tokenizer of {folder} splits text in a way that is not known here for GGUF")
