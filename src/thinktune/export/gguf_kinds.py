"""The model types that can be written as GGUF: how llama.cpp calls and stores them, and which reader proves the file.

llama.cpp's own conversion (convert_hf_to_gguf.py) and its loader are the reference for the keys of each architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from thinktune.errors import ModelError

Reader = Literal["transformers", "llama.cpp"]


@dataclass(frozen=True)
class Kind:
    """One model type.

    Attributes:
        architecture: its name in `gguf.MODEL_ARCH`.
        permuted: whether llama.cpp rotates neighbouring values of q and k where transformers rotates halves.
        reader: which of them reads such files back as they are meant.
    """

    architecture: str
    permuted: bool = False
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
}
_NO_ROPE_STEP = 4  # llama.cpp leaves rotary positions out in every fourth layer of SmolLM3, whatever the file says


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Return the kind of a model by the contents of its config.json.

    Raises:
        ModelError: a type that is not known for GGUF, or a setting that llama.cpp has no place for.
    """
    told = config.get("model_type")
    kind = KINDS.get(str(told))
    if kind is None:
        raise ModelError(
            f"it is a {told} model; known for GGUF are {', '.join(KINDS)}",
            hint="llama.cpp's convert_hf_to_gguf.py knows more kinds",
        )
    window, context = config.get("sliding_window"), int(config["max_position_embeddings"])
    if told == "mistral" and window is not None and window < context:
        raise ModelError(f"it has a sliding window of {window} tokens, which llama.cpp leaves out for mistral models")
    layers = config["num_hidden_layers"]
    every_fourth = [int((layer + 1) % _NO_ROPE_STEP != 0) for layer in range(layers)]
    if told == "smollm3" and (config.get("no_rope_layers") or every_fourth) != every_fourth:
        raise ModelError(f"llama.cpp has smollm3 models without rotary positions in every {_NO_ROPE_STEP}th layer only")
    if told == "phi3" and (rope_of(config).get("partial_rotary_factor") or 1) != 1:
        return replace(kind, reader="llama.cpp")  # transformers' reader forgets it
    return kind


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary parameters of a config.json, of today's form or of that before transformers 5.

    Raises:
        ModelError: scaled positions of a kind that cannot be written.
    """
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if any(isinstance(value, dict) for value in told.values()):  # by kind of layer
        told = told.get("full_attention") or {}
    scaled = told.get("rope_type", told.get("type")) or "default"
    known: tuple[str, ...] = ("default", "llama3") if config.get("model_type") in ("llama", "smollm3") else ("default",)
    if config.get("model_type") == "olmo3":
        known += ("yarn",)
    if scaled not in known:
        raise ModelError(f"the model scales its positions ({scaled}), which is not known here for GGUF")
    # The factor of attention scores is not in the file: llama.cpp computes it so.
    usual = 0.1 * math.log(told["factor"]) + 1 if scaled == "yarn" else 1.0
    if abs((told.get("attention_factor") or usual) - usual) > 1e-6 or told.get("mscale"):
        raise ModelError("the model scales its attention scores by a factor that GGUF has no place for")
    theta = told.get("rope_theta") or config.get("rope_theta") or 10000.0
    return {**told, "rope_type": scaled, "rope_theta": float(theta)}
