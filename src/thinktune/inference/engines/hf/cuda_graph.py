"""Record the kernels that a function launches on a GPU as a CUDA graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

log = logging.getLogger(__name__)


_ONE_MASK = {"full_attention", "linear_attention", "conv", "hybrid", "mlp", "moe"}


def attends_to_all(config: Any) -> bool:
    """Return whether every attention of a model of this text config is to all tokens: then one mask serves all."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    return kinds <= _ONE_MASK and window is None


class Recorder:
    """Shared by the graphs of one model: a stream to record on, and memory, since one graph is in use at a time.

    Attributes:
        works: False once the model has turned out to be impossible to record.
        reason: why.
    """

    def __init__(self, device: torch.device) -> None:
        self.works = True
        self.reason = ""
        self._device = device
        self._stream: Any = None
        self._pool: Any = None
        self._first: Any = None

    def record(
        self, forward: Callable[[], Any], keep: Sequence[torch.Tensor] = (), *, warm_up: bool = False
    ) -> tuple[torch.cuda.CUDAGraph, Any] | None:
        """Record the kernels of `forward`; return the graph and the tensors of its result. None: it cannot be recorded.

        Args:
            keep: tensors that it changes, which must not have changed before the graph is replayed.
            warm_up: run it once before, as the first is anyway: its kernels may be others than those recorded so far.

        Raises:
            torch.OutOfMemoryError: there is no room for its activations.
        """
        try:
            if self._pool is None:
                with _kept(keep):
                    self._try(forward)
            elif warm_up:
                with self._on_stream():
                    forward()
            return self._record(forward)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # the model asks the GPU for a number, say
            log.debug("without a CUDA graph: %s", error)
            self.works, self.reason = False, str(error).split("\n")[0]
            return None

    def _try(self, forward: Callable[[], Any]) -> None:
        """Run it once: the set-up of kernels at their first call must not be recorded, and a model that waits for the
        GPU would break a recording."""
        self._stream = torch.cuda.Stream(self._device)
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not find everything
            torch.cuda.set_sync_debug_mode("error")
        try:
            with self._on_stream():
                forward()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        self._pool = torch.cuda.graph_pool_handle()
        self._first = self._record(lambda: torch.zeros(1, device=self._device))  # a pool lives as long as a graph of it

    def _record(self, forward: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        # Not by `torch.cuda.graph`, which empties the allocator's cache each time, and leaves its stream in use where
        # it fails.
        graph = torch.cuda.CUDAGraph()
        with self._on_stream():
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                out = forward()
            finally:
                graph.capture_end()
        return graph, out

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
        outer.wait_stream(self._stream)


@contextmanager
def _kept(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    before = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, content in zip(tensors, before, strict=True):
            tensor.copy_(content)
