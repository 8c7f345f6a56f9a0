"""The class of transformers that a model is built by."""

from __future__ import annotations

from typing import Any


def auto_class(model_type: str | None) -> Any:
    """Return the auto class for models of a type: that of causal LMs, or that of models which read images too.

    The second is for families that are published with a vision tower only (Ministral 3, Mistral Small 3); text goes
    through both kinds alike.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    sees = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return (
        AutoModelForImageTextToText
        if sees and model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        else AutoModelForCausalLM
    )
