"""A model folder as one GGUF file, for llama.cpp and Ollama.

The format and its names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and the package gguf, which writes
it. Models of a few types are known (`gguf_kinds`), and two of tokenizers (`gguf_tokenizer`); others are refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.errors import ModelError
from thinktune.export.gguf_kinds import full_attention_step, kind_of, read_text_config, rope_of
from thinktune.export.gguf_tensors import Tensor, read_tensors
from thinktune.export.gguf_tokenizer import add_tokenizer
from thinktune.export.gguf_types import Precision, file_type, quantize, tensor_type
from thinktune.models.chat import Chat
from thinktune.models.gguf_rope import RULE

if TYPE_CHECKING:
    import numpy as np

_LARGEST = 65504.0  # of float16


def write_gguf(folder: Path, file: Path, tokenizer: Any, chat: Chat, precision: Precision, name: str) -> None:
    """Write the model in `folder` to `file`, one tensor in memory at a time.

    The chat template goes along, with the chat's system text in it.

    Raises:
        ModelError: a model or tokenizer that is not one of the known kinds.
    """
    import gguf

    config = read_text_config(folder)
    model = kind_of(config)
    architecture = gguf.MODEL_ARCH[model.architecture]
    rope = rope_of(config)
    tensors = list(read_tensors(folder, config, model, rope))
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    _add_shape(writer, config, rope)
    add_tokenizer(writer, folder, tokenizer, chat, int(config["vocab_size"]))
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


def _announce(writer: Any, tensor: Tensor, kind: Any) -> None:
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


def _packed(tensor: Tensor, kind: Any) -> np.ndarray[Any, Any]:
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
    if add := _MORE.get(config["model_type"]):
        add(writer, config, rope)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))


def _add_phi3(writer: Any, config: dict[str, Any], rope: dict[str, Any]) -> None:
    original, longest = int(config["original_max_position_embeddings"]), int(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_sliding_window(int(config.get("sliding_window") or 0))
    if rope["rope_type"] == "longrope":
        # arXiv 2402.13753: attention grows with the logarithm of the length.
        times = float(rope.get("factor") or longest / original)
        grown = math.sqrt(1 + math.log(times) / math.log(original)) if times > 1 else 1.0
        writer.add_rope_scaling_attn_factors(float(rope.get("attention_factor") or grown))


def _add_olmo3(writer: Any, config: dict[str, Any], rope: dict[str, Any]) -> None:
    writer.add_sliding_window(int(config["sliding_window"]))
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if rope["rope_type"] == "yarn":
        _add_yarn(writer, rope)


def _add_gemma3(writer: Any, config: dict[str, Any], rope: dict[str, Any]) -> None:
    import gguf

    writer.add_sliding_window(int(config["sliding_window"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if cap := config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(cap))


def _add_qwen3_5(writer: Any, config: dict[str, Any], rope: dict[str, Any]) -> None:
    heads, width = int(config["linear_num_value_heads"]), int(config["linear_value_head_dim"])
    writer.add_ssm_conv_kernel(int(config["linear_conv_kernel_dim"]))
    writer.add_ssm_state_size(int(config["linear_key_head_dim"]))
    writer.add_ssm_group_count(int(config["linear_num_key_heads"]))
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(heads * width)
    writer.add_full_attention_interval(full_attention_step(config))
    # Positions in time, height and width are the same for text.
    writer.add_rope_dimension_sections([*rope.get("mrope_section", (11, 11, 10)), 0])


_MORE = {
    "phi3": _add_phi3,
    "olmo3": _add_olmo3,
    "gemma3_text": _add_gemma3,
    "qwen3_5_text": _add_qwen3_5,
}
"""Keys that only some model types have."""


def _add_yarn(writer: Any, rope: dict[str, Any]) -> None:
    import gguf

    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    writer.add_rope_scaling_yarn_beta_fast(float(rope.get("beta_fast") or 32))
    writer.add_rope_scaling_yarn_beta_slow(float(rope.get("beta_slow") or 1))
