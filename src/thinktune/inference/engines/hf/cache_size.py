"""The memory that a cache takes, and the rows and columns that there is room for; trials of caches with states."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from thinktune.inference.engines.hf.cache_layers import new_cache, row_layers, states_of
from thinktune.inference.engines.hf.decoder import Decoder
from thinktune.models.layer_sizes import layer_sizes


@dataclass(frozen=True)
class CacheSize:
    """Bytes that each token of a row takes, and its state beside them."""

    token: int
    state: int = 0


def size_by_config(config: Any, embedding: torch.Tensor) -> CacheSize:
    """Compute the size of a cache of keys and values alone."""
    return CacheSize(sum(2 * layer.kv for layer in layer_sizes(config)) * embedding.element_size())


def measured_size(decoder: Decoder) -> CacheSize:
    """Read two tokens and one more, under the caller's `inference_mode`; return the size of the cache that holds them.

    Raises anything that a model may raise whose cache is of another kind.
    """
    cache = new_cache(decoder.layout or ())
    columns = torch.arange(3, device=decoder.device)[None]
    seen = torch.ones_like(columns, dtype=torch.bool)
    decoder.forward(columns[:, :2], seen[:, :2], columns[:, :2], cache)
    tensors = [tensor for layer in row_layers(cache) for tensor in (layer.keys, layer.values)]
    size = CacheSize(sum(each.nbytes for each in tensors) // 2, sum(each.nbytes for each in states_of(cache)))
    for layer in row_layers(cache):  # room for the third
        layer.keys, layer.values = (torch.cat([each, each[:, :, :1]], 2) for each in (layer.keys, layer.values))
    decoder.forward(columns[:, 2:], seen, columns[:, 2:], cache)
    return size


def reads_padding(decoder: Decoder) -> bool:
    """Return whether padding before a text, though masked, changes its states or what follows; same caller."""
    text = torch.arange(1, 5, device=decoder.device)[None]
    found = []
    for padding in (0, 7):  # more than a convolution reaches
        cache = new_cache(decoder.layout or ())
        ids = torch.nn.functional.pad(text, (padding, 0))
        columns = torch.arange(ids.shape[1], device=decoder.device)[None]
        logits = decoder.forward(ids, columns >= padding, (columns - padding).clamp(min=0), cache)
        found.append([tensor.float() for tensor in (logits, *states_of(cache))])
    bound = 1e-3 if decoder.model.dtype == torch.float32 else 0.05  # a leak changes them by about their size
    pairs = zip(*found, strict=True)
    return any(not (one - other).abs().max() <= bound * one.abs().max() for one, other in pairs)


def tokens_that_fit(size: CacheSize, device: torch.device) -> int:
    """Return the tokens of cache that fit in half of the free GPU memory; on CPU in a quarter of it, at most 1 GiB.

    The rest is for activations, logits, and the copy of a layer's cache when the batch changes.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device)) - torch.cuda.memory_reserved(device)
        free = min(torch.cuda.mem_get_info(device)[0], allowed) // 2
    else:
        free = min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4, 2**30)
    return int(max(1024, free // size.token))
