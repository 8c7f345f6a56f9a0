"""Scaled rotary positions in GGUF files: a tensor of divisors, which transformers' reader leaves out.

Llama 3.1 and later have one (`rope_freqs.weight`, float32 [head size / 2]): a frequency is divided by its entry.
transformers wants the rule that made them, and not the divisors; it is found by trying the published ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.errors import ModelError

if TYPE_CHECKING:
    import torch

DIVISORS = "rope_freqs.weight"
RULE = "thinktune.rope_parameters"
"""Our own key: the rule as JSON, for files that we wrote."""
_PUBLISHED = [
    {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8192}
    for factor in (8.0, 32.0)
]  # fmt: skip


def rope_divisors(config: Any) -> torch.Tensor:
    """Return the divisors of the rotary frequencies of a text config whose `rope_parameters` scale them: float32
    [rotary size / 2].

    Raises:
        ModelError: a rule that changes more than the frequencies.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rule = config.rope_parameters
    scaled, scaling = ROPE_INIT_FUNCTIONS[rule["rope_type"]](config, torch.device("cpu"))
    if scaling != 1.0:
        raise ModelError(
            f"the model scales its attention scores too ({rule['rope_type']}), which is not known for GGUF"
        )
    size = 2 * len(scaled)
    plain = rule["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled.float()


def restore_rope(model: Any, file: Path) -> None:
    """Scale the rotary frequencies of a model that transformers read from a GGUF file as the file says.

    Raises:
        ModelError: by a rule that is not known.
    """
    import torch
    from gguf import GGUFReader

    reader = GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors if tensor.name.startswith("rope_f")}
    if not tensors:
        return
    decoder = model.get_decoder()
    for rule in _rules(reader) if tensors.keys() == {DIVISORS} else ():
        config = copy.deepcopy(decoder.config)
        config.rope_parameters = {**decoder.config.rope_parameters, **rule}
        divisors = torch.tensor(tensors[DIVISORS].data)
        found = rope_divisors(config)
        if found.shape == divisors.shape and torch.allclose(found, divisors, rtol=1e-3):
            decoder.config.rope_parameters = config.rope_parameters
            decoder.rotary_emb = type(decoder.rotary_emb)(config=decoder.config).to(model.device)
            return
    raise ModelError(
        f"{file} scales its positions in a way that is not known here ({', '.join(sorted(tensors))})",
        hint="take the model in safetensors",
    )


def _rules(reader: Any) -> Iterator[dict[str, Any]]:
    if (own := reader.fields.get(RULE)) is not None:
        yield json.loads(own.contents())
    yield from _PUBLISHED
