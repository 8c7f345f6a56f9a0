"""Arguments that models hand to attention beside query, key and value. Unknown ones are refused, not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinktune.errors import ModelError

_CHANGE_NOTHING = {
    "position_ids",  # rotary embeddings have used them already
    "cache_position",
    "token_keys",  # of dropout in fused layers
    "dropout_seed",
    "cu_seq_lens_k",
    "max_length_k",
    "use_cache",
    "output_router_logits",
    "output_hidden_states",
    "return_dict",
    "num_items_in_batch",
    "logits_to_keep",
}
"""Keyword arguments that models hand through to attention and that change nothing in it."""


def refuse_unknown(wanted: Mapping[str, Any], attention: str, hint: str) -> None:
    """Refuse keyword arguments (a cap on scores, sinks, a mask, …) that are set and that an attention does not know.

    Raises:
        ModelError: with their names.
    """
    unset = (None, False)
    names = [name for name, value in wanted.items() if name not in _CHANGE_NOTHING]
    if unknown := [name for name in names if not any(wanted[name] is nothing for nothing in unset)]:
        raise ModelError(
            f"the model's attention wants what {attention} does not compute: {', '.join(unknown)}", hint=hint
        )
