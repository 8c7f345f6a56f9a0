"""The forward pass of a decoded token, recorded once as a CUDA graph and replayed for the tokens that follow.

Launched from Python, the thousand small kernels of a step take tens of milliseconds, most of which the GPU waits. A
graph has fixed shapes and addresses: the cache keeps its columns between two changes of a batch, the new token goes
into a column that a tensor names, and attention reads all columns under a mask. States are written in place.
"""

from __future__ import annotations

from typing import Any

import torch

from thinktune.inference.engines.hf.cache_layers import row_layers, states_of
from thinktune.inference.engines.hf.cuda_graph import Recorder
from thinktune.inference.engines.hf.decoder import Decoder
from thinktune.inference.engines.hf.kv_cache import columns_of


class RecordedStep:
    """Decodes a token for every row of a cache that does not change otherwise.

    Args:
        starts: the column of each row's first token, `(rows,)`.
    """

    def __init__(self, decoder: Decoder, recorder: Recorder, cache: Any, starts: torch.Tensor) -> None:
        rows, columns = len(starts), columns_of(cache)
        self._decoder = decoder
        self._recorder = recorder
        self._cache = cache
        self._columns = torch.arange(columns, device=starts.device)
        self._starts = starts[:, None]
        self._ids = starts.new_zeros(rows, 1)
        self._positions = starts.new_zeros(rows, 1)
        self._column = starts.new_zeros(1)
        self._mask = torch.zeros(rows, 1, 1, columns, dtype=torch.bool, device=starts.device)
        self._recorded: tuple[torch.cuda.CUDAGraph, torch.Tensor] | None = None
        for layer in row_layers(cache):
            layer.column, layer.starts = self._column, starts

    def __call__(self, last: torch.Tensor, positions: torch.Tensor, width: int) -> torch.Tensor:
        """Compute logits `(rows, vocabulary)` after the tokens `last` `(rows,)`, which go into column `width`."""
        self._ids.copy_(last[:, None])
        self._positions.copy_(positions[:, None])
        self._column.fill_(width)
        self._mask.copy_(((self._columns >= self._starts) & (self._columns <= width))[:, None, None])
        if self._recorded is None and self._recorder.works:
            self._recorded = self._recorder.record(self._forward, keep=states_of(self._cache))
        if self._recorded is None:
            logits = self._forward()
        else:
            graph, logits = self._recorded
            graph.replay()
        for layer in row_layers(self._cache):
            layer.length = width + 1
        return logits

    def _forward(self) -> torch.Tensor:
        return self._decoder.forward(self._ids, self._mask, self._positions, self._cache)
