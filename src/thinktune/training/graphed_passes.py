"""Forward and backward passes of small batches, recorded as CUDA graphs and replayed for later batches of like size.

A small step is a thousand kernels of microseconds, and starting one from Python takes longer than running it. A graph
starts them all at once, but with fixed shapes: a batch is filled up to the next of a few sizes, with tokens of a
document of their own and with targets of weight 0, which change neither loss nor gradients.
"""

from __future__ import annotations

import gc
import logging
from typing import Any, NamedTuple

import torch

from thinktune.inference.engines.hf.cuda_graph import Recorder
from thinktune.training.model_with_loss import ModelWithLoss

logger = logging.getLogger(__name__)

_MOST_GRAPHS = 48
"""Of one training; a graph takes some megabytes. Batches of further sizes run without."""


class Size(NamedTuple):
    """What a graph holds. A single document is filled up behind its end, where causal attention does not see it; else
    the padding is one more."""

    tokens: int
    trained: int
    documents: int

    @classmethod
    def of(cls, batch: dict[str, Any]) -> Size:
        """The size that a batch is filled up to."""
        tokens = _rounded_up(batch["input_ids"].numel(), 8)
        count = len(batch["document_lengths"])
        documents = 1 if count == 1 else max(8, 1 << count.bit_length())
        return cls(tokens, _rounded_up(batch["targets"].numel(), 4), documents)


def _rounded_up(count: int, sizes: int) -> int:
    """Return the next of so many sizes between two powers of two, at least 64 apart."""
    step = max(64, (1 << max(count - 1, 0).bit_length()) // 2 // sizes)
    return -(-count // step) * step


class RecordedPass:
    """The graph of one size of batch, with the tensors that it reads and those that it writes."""

    def __init__(self, model: ModelWithLoss, recorder: Recorder, size: Size, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.inputs: dict[str, torch.Tensor] = {
            "input_ids": zeros(1, size.tokens),
            "position_ids": zeros(1, size.tokens),
            "token_keys": zeros(size.tokens, dtype=torch.int32),
            "cu_seq_lens_q": zeros(size.documents + 1, dtype=torch.int32),
            "positions": zeros(size.trained),
            "targets": zeros(size.trained),
            "weights": zeros(size.trained, dtype=torch.float32),
            "dropout_seed": zeros(1, dtype=torch.int32),
        }
        # Rows of padding predict from tokens far apart: many of one row would be added up one after the other.
        self._spread = torch.arange(size.trained, device=device) % size.tokens
        self._divisor = torch.ones((), device=device)
        self._size = size
        self._model = model
        self._recorder = recorder
        self._recorded: tuple[Any, Any] | None = None

    def fill(self, batch: dict[str, Any]) -> None:
        """Take over a batch, and fill up what it does not."""
        for name, tensor in self.inputs.items():
            given = batch[name]
            if given is None:  # weights: 1 for every token
                given = torch.ones_like(batch["targets"], dtype=torch.float32)
            if name == "cu_seq_lens_q" and self._size.documents == 1:
                given = given[:1]
            tensor[..., : given.shape[-1]].copy_(given)
            rest = tensor[..., given.shape[-1] :]
            if name == "cu_seq_lens_q":
                rest.fill_(self._size.tokens)
            elif name == "positions":
                rest.copy_(self._spread[given.shape[-1] :])
            else:
                rest.zero_()

    def replay(self, divisor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Return the summed loss, the count of tokens predicted right and all gradients [numbers trained], valid until
        the next replay of any graph; None: it cannot be recorded."""
        self._divisor.copy_(divisor)
        if self._recorded is None:
            # Attention over one document, and perhaps products, are set up for each size. They must not be on another
            # stream: what accumulates a parameter's gradient stays on that of the pass before, while any of it lives.
            self._recorded = self._recorder.record(self._run, warm_up=True)
            if self._recorded is None:  # some of it may have lived on in a cycle of references
                gc.collect()
                self._recorder.works = True
                self._recorded = self._recorder.record(self._run, warm_up=True)
        if self._recorded is None:
            return None
        graph: torch.cuda.CUDAGraph = self._recorded[0]
        out: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._recorded[1]
        graph.replay()
        return out

    def _run(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        documents = {"max_length_q": self._size.tokens, "document_lengths": [], "repeats": self._size.documents == 1}
        summed = self._model(**self.inputs, **documents)
        gradients = torch.autograd.grad(summed / self._divisor, self._model.trained)
        assert self._model.right is not None
        return summed.detach(), self._model.right, torch.cat([gradient.flatten() for gradient in gradients])


class GraphedPasses:
    """Runs forward and backward passes from graphs.

    The first batch of a size is left to the caller, so that no kernel is set up while a graph is recorded, and sizes
    that come once cost nothing.
    """

    def __init__(self, model: ModelWithLoss, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._recorder = Recorder(device)
        self._recorded: dict[Size, RecordedPass | None] = {}
        self._gradients = model.join_gradients()
        self._addresses: list[int] = []

    def backward(self, batch: dict[str, Any], divisor: torch.Tensor) -> torch.Tensor | None:
        """Add the gradients of a batch's loss.

        Args:
            batch: the entries of a method's batch, with `weights` and `dropout_seed`.
            divisor: of the summed loss.

        Returns:
            The summed loss, in nats; None: this batch was not run.
        """
        addresses = [parameter.data_ptr() for parameter in self._model.trained]
        if addresses != self._addresses:  # graphs would go on reading the memory that parameters had
            self._recorded.clear()
            self._addresses = addresses
        size = Size.of(batch)
        if size not in self._recorded:
            self._recorded[size] = None
            return None
        if (step := self._recorded[size]) is None:
            if not self._recorder.works or sum(each is not None for each in self._recorded.values()) >= _MOST_GRAPHS:
                return None
            step = self._recorded[size] = RecordedPass(self._model, self._recorder, size, self._device)
        step.fill(batch)
        try:
            replayed = step.replay(divisor)
        except torch.OutOfMemoryError:  # its memory lies beside that of passes without a graph
            self._recorder.works, self._recorder.reason, replayed = False, "there is no memory for them", None
        if replayed is None:
            logger.info(f"going on without CUDA graphs: {self._recorder.reason}")
            self._recorded[size] = None
            return None
        summed, right, gradients = replayed
        self._gradients.add_(gradients)
        self._model.right = right.clone()
        return summed.clone()
