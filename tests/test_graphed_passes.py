"""Batches filled up to the sizes of CUDA graphs. (The graphs themselves need a GPU: test_gpu.py.)"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from test_fidelity import make_family
from test_fused import with_lora
from thinktune.data.examples import Example
from thinktune.data.tokens import Tokens
from thinktune.inference.engines.hf.cuda_graph import Recorder
from thinktune.training.collator import PackedCollator
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.graphed_passes import RecordedPass, Size
from thinktune.training.model_with_loss import ModelWithLoss

CPU = torch.device("cpu")


def tokens_of(lengths: list[int], context: int) -> list[Tokens]:
    nobody = Example(messages=(), think="", answer="", row=1, source="test")
    return [
        Tokens(array("i", [3 + (at * 7 + length) % 200 for at in range(length)]), context, nobody) for length in lengths
    ]


@pytest.mark.parametrize("weights", [None, 0.5])
@pytest.mark.parametrize(
    ("lengths", "context"), [([19, 2, 70], 1), ([64, 64], 30), ([1, 1, 300, 4, 5, 6, 7], 1), ([77], 5)]
)
def test_a_batch_filled_up_has_its_loss_and_gradients(
    tiny_model: Path, lengths: list[int], context: int, weights: float | None
) -> None:
    tuned = with_lora(tiny_model)
    model = ModelWithLoss(tuned)
    batch = PackedCollator(tokens_of(lengths, context))([{"documents": list(range(len(lengths)))}])
    weighed = None if weights is None else torch.full_like(batch["targets"], weights, dtype=torch.float32)
    batch |= {"weights": weighed, "dropout_seed": torch.zeros(1, dtype=torch.int32)}
    filled = RecordedPass(model, Recorder(CPU), Size.of(batch), CPU)
    for _ in range(2):  # what the batch before left behind counts for nothing
        filled.fill(batch)
    ends = filled.inputs["cu_seq_lens_q"].diff().tolist()
    assert sum(ends) == filled.inputs["input_ids"].numel()

    def run(inputs: dict[str, object]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        with packed_documents(tuned.get_base_model()):
            loss = model(**inputs)
        return loss.detach(), torch.autograd.grad(loss, model.trained)

    documents = {"document_lengths": [end for end in ends if end], "max_length_q": max(ends)}
    loss, gradients = run({**filled.inputs, **documents})
    expected, of_these = run(batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, of_these)


class _Questions(TorchDispatchMode):
    """Counts the numbers that are asked of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("family", ["", "Gemma3"])
def test_a_pass_asks_the_device_for_no_number_so_that_it_can_be_recorded(
    tiny_model: Path, tmp_path: Path, family: str
) -> None:
    tuned = with_lora(make_family(tmp_path, family) if family else tiny_model)
    model = ModelWithLoss(tuned)
    batch = PackedCollator(tokens_of([19, 70], 1))([{"documents": [0, 1]}])
    with packed_documents(tuned.get_base_model()), _Questions() as asked:
        torch.autograd.grad(model(**batch), model.trained)
    assert asked.count == 0


def test_sizes_are_few_and_hold_their_batch() -> None:
    sizes = set()
    for count in range(1, 5000):
        ids = torch.empty(1, count, device="meta")
        size = Size.of({"input_ids": ids, "targets": ids[0], "document_lengths": [count]})
        assert count <= size.tokens <= max(count + 63, count * 1.126)
        assert count <= size.trained <= max(count + 63, count * 1.26)
        sizes.add(size.tokens)
    assert len(sizes) <= 45


def test_joined_gradients_are_parts_of_one_tensor_and_are_zeroed_in_their_place(tiny_model: Path) -> None:
    model = ModelWithLoss(with_lora(tiny_model))
    joined = model.join_gradients()
    joined += 1
    assert all(bool((parameter.grad == 1).all()) for parameter in model.trained)
    model.zero_grad()
    assert not joined.any()
    assert model.trained[-1].grad is not None
    assert model.trained[-1].grad.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()
