"""Layer inputs kept in main memory between forward and backward, copied while the device computes."""

from __future__ import annotations

import torch


class HostStore:
    """One tensor a layer, written in the order of the layers and read in the reverse one.

    Copies run on a stream of their own. Reading a layer's input starts the copy of the one below it, which the next
    layer's backward pass will ask for. Host memory is pinned, and kept from step to step.
    """

    def __init__(self, layers: int) -> None:
        self._host: list[torch.Tensor | None] = [None] * layers
        self._coming: dict[int, torch.Tensor] = {}
        self._lengths = [0] * layers
        self._stream = torch.cuda.Stream()

    def put(self, layer: int, rows: torch.Tensor) -> None:
        """Copy [tokens, width] to main memory; its device memory is free for others once that is done."""
        held = self._host[layer]
        if held is None or held.shape[0] < len(rows):
            held = self._host[layer] = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        self._lengths[layer] = len(rows)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            held[: len(rows)].copy_(rows, non_blocking=True)
        rows.record_stream(self._stream)

    def take(self, layer: int) -> torch.Tensor:
        """Return the rows of a layer, on the device."""
        rows = self._coming.pop(layer, None)
        if rows is None:
            rows = self._fetch(layer)
        torch.cuda.current_stream().wait_stream(self._stream)
        rows.record_stream(torch.cuda.current_stream())
        if layer > 0 and self._lengths[layer - 1]:
            self._coming[layer - 1] = self._fetch(layer - 1)
        return rows

    def _fetch(self, layer: int) -> torch.Tensor:
        held, length = self._host[layer], self._lengths[layer]
        assert held is not None
        self._lengths[layer] = 0
        with torch.cuda.stream(self._stream):
            return held[:length].to(torch.cuda.current_device(), non_blocking=True)
