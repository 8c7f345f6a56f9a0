"""The model types that can be written as GGUF: how llama.cpp calls and stores them, and which reader proves the file.

llama.cpp's own conversion (convert_hf_to_gguf.py) and its loader are the reference for the keys of each architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from thinktune.errors import ModelError
from thinktune.models.folder import read_json

Reader = Literal["transformers", "llama.cpp"]


@dataclass(frozen=True)
class Kind:
    """One model type.

    Attributes:
        architecture: its name in `gguf.MODEL_ARCH`.
        permuted: whether llama.cpp rotates neighbouring values of q and k where transformers rotates halves.
        shifted: whether the weight w of a norm stands for 1 + w, which is what llama.cpp wants.
        reader: which of them reads such files back as they are meant.
    """

    architecture: str
    permuted: bool = False
    shifted: bool = False
    reader: Reader = "transformers"


KINDS = {
    "llama": Kind("LLAMA", permuted=True),
    "mistral": Kind("LLAMA", permuted=True),
    "qwen2": Kind("QWEN2"),
    "qwen3": Kind("QWEN3"),
    "phi3": Kind("PHI3"),
    "smollm3": Kind("SMOLLM3", permuted=True, reader="llama.cpp"),
    "olmo2": Kind("OLMO2", reader="llama.cpp"),
    "olmo3": Kind("OLMO2", reader="llama.cpp"),
    "gemma3_text": Kind("GEMMA3", shifted=True, reader="llama.cpp"),
    "qwen3_5_text": Kind("QWEN35", shifted=True, reader="llama.cpp"),
}
_WITH_VISION = {"gemma3", "qwen3_5"}
"""Their text half is written."""
_SCALED = {"llama": "llama3", "smollm3": "llama3", "olmo3": "yarn", "phi3": "longrope", "gemma3_text": "linear"}
"""The scaled rotary positions that are known for a type."""
_NO_ROPE_STEP = 4  # llama.cpp leaves rotary positions out in every fourth layer of SmolLM3, whatever the file says
_GEMMA3_STEP, _GEMMA3_LOCAL_THETA = 6, 10000.0  # each sixth layer sees everything, the others turn by this


def read_text_config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a model folder, or that of its text half, with the defaults of its type.

    Raises:
        ModelError: a model type that is not known for GGUF.
    """
    told = read_json(folder / "config.json").get("model_type")
    if told not in KINDS.keys() | _WITH_VISION:
        raise ModelError(
            f"it is a {told} model; known for GGUF are {', '.join(sorted(KINDS.keys() | _WITH_VISION))}",
            hint="llama.cpp's convert_hf_to_gguf.py knows more kinds",
        )
    from transformers import AutoConfig

    config: dict[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().to_dict()
    return config


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Return the kind of a model by its text config.

    Raises:
        ModelError: a setting that llama.cpp has no place for.
    """
    told = config["model_type"]
    kind = KINDS[told]
    for refused, reason in _REFUSED.get(told, ()):
        if refused(config):
            raise ModelError(f"llama.cpp has {told} models {reason} only")
    window, context = config.get("sliding_window"), int(config["max_position_embeddings"])
    if told == "mistral" and window is not None and window < context:
        raise ModelError(f"it has a sliding window of {window} tokens, which llama.cpp leaves out for mistral models")
    if told == "phi3" and (rope_of(config).get("partial_rotary_factor") or 1) != 1:
        return replace(kind, reader="llama.cpp")  # transformers' reader forgets it
    return kind


def _no_rope_elsewhere(config: Mapping[str, Any]) -> bool:
    every_fourth = [int((layer + 1) % _NO_ROPE_STEP != 0) for layer in range(config["num_hidden_layers"])]
    return bool((config.get("no_rope_layers") or every_fourth) != every_fourth)


def _full_attention_elsewhere(config: Mapping[str, Any], step: int) -> bool:
    full = [kind == "full_attention" for kind in config["layer_types"]]
    return full != [(layer + 1) % step == 0 for layer in range(len(full))]


def _scores_scaled_otherwise(config: Mapping[str, Any]) -> bool:
    by_width = config["num_hidden_layers"] == 62  # llama.cpp knows the model of 27B by its layers
    width = config["hidden_size"] / config["num_attention_heads"] if by_width else config["head_dim"]
    return bool(config["query_pre_attn_scalar"] != width)


_REFUSED: dict[str, list[tuple[Callable[[Mapping[str, Any]], bool], str]]] = {
    "smollm3": [(_no_rope_elsewhere, f"without rotary positions in every {_NO_ROPE_STEP}th layer")],
    "gemma3_text": [
        (
            lambda it: _full_attention_elsewhere(it, _GEMMA3_STEP),
            f"with full attention in every {_GEMMA3_STEP}th layer",
        ),
        (_scores_scaled_otherwise, "with attention scores scaled by the size of a head"),
        (
            lambda it: it["rope_parameters"]["sliding_attention"]["rope_theta"] != _GEMMA3_LOCAL_THETA,
            f"with a rotary base of {_GEMMA3_LOCAL_THETA:,.0f} in their windows",
        ),
        (lambda it: bool(it.get("attn_logit_softcapping")), "without a soft cap on attention scores"),
        (lambda it: bool(it.get("use_bidirectional_attention")), "with causal attention"),
    ],
    "qwen3_5_text": [
        (
            lambda it: _full_attention_elsewhere(it, full_attention_step(it)),
            "with full attention in layers at equal distances",
        )
    ],
}


def full_attention_step(config: Mapping[str, Any]) -> int:
    """Return the number of layers from one with full attention to the next."""
    return [*config["layer_types"], "full_attention"].index("full_attention") + 1


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary parameters of a text config.

    Raises:
        ModelError: scaled positions of a kind that cannot be written.
    """
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in told.values()):  # by kind of layer
        told = told.get("full_attention") or {}
    scaled = told.get("rope_type", told.get("type")) or "default"
    if scaled not in ("default", _SCALED.get(config["model_type"])):
        raise ModelError(f"the model scales its positions ({scaled}), which is not known here for GGUF")
    # The factor of attention scores is in the file for longrope only: llama.cpp computes yarn's so.
    usual = 0.1 * math.log(told["factor"]) + 1 if scaled == "yarn" else 1.0
    if scaled != "longrope" and (abs((told.get("attention_factor") or usual) - usual) > 1e-6 or told.get("mscale")):
        raise ModelError("the model scales its attention scores by a factor that GGUF has no place for")
    theta = told.get("rope_theta") or config.get("rope_theta") or 10000.0
    return {**told, "rope_type": scaled, "rope_theta": float(theta)}
