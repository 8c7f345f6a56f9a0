"""Fused layers decode as the model's own do. Without a GPU the kernels run in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from conftest import make_tiny_tokenizer
from test_fused_layers import DEVICE, make
from thinktune.config import Sampling
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.detokenizer import Detokenizer
from thinktune.inference.engines.hf import batch as batch_module
from thinktune.inference.engines.hf import sampler as sampler_module
from thinktune.inference.engines.hf.block_sums import block_sums
from thinktune.inference.engines.hf.decoder import Decoder, Row
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.hf.sampler import Sampler
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.fused.decoder_layer import FusedLayer
from thinktune.training.fused.fuse_model import fuse_layers
from thinktune.training.fused.generation import generating
from thinktune.training.fused.kernels.decode_attention import decode_attention, is_taken
from thinktune.training.fused.packed_attention import packed_documents


class Unrecorded:
    """Lets steps go the way of CUDA graphs, and runs each kernel as it comes."""

    works = True

    def record(self, *_: Any, **__: Any) -> None:
        return None


def drawn(model: Any) -> list[tuple[tuple[int, ...], list[float]]]:
    engine = TransformersEngine(model, make_tiny_tokenizer(), (2,))
    if DEVICE == "cpu":
        engine._decoder = replace(engine._decoder, recorder=Unrecorded())  # type: ignore[arg-type]
    sampling = Sampling(n=3, temperature=1.0, max_tokens=4, stop=(), seed=1)
    requests = [Request(str(at), list(range(5, 9 + 3 * at)), sampling, logprobs=True) for at in range(2)]
    found = sorted(engine.generate(requests), key=lambda each: (each.request_id, each.index))
    return [(tuple(each.token_ids), list(each.logprobs)) for each in found]


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_tokens_noted_together_end_a_row_where_single_ones_do(stop: tuple[str, ...]) -> None:
    ends = frozenset(range(2, 14))
    detokenizer = Detokenizer(make_tiny_tokenizer(), ends, 400)
    decoder = Decoder(None, detokenizer, ends, 400, 99, None, torch.device("cpu"))
    request = Request("1", [1], Sampling(temperature=1.0, stop=stop), logprobs=True)
    together, singly = ([Row(request, at, 10 + at) for at in range(30)] for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        bursts = torch.rand(16, 3, 30, generator=generator, dtype=torch.float64)
        bursts[:, 0] = (400 * bursts[:, 0]).floor()
        bursts[:, 2] = (bursts[:, 2] > 0.01).double()
        decoder.accept_several(together, bursts)
        for token in bursts:
            decoder.accept_several(singly, token[None])
        for one, other in zip(together, singly, strict=True):
            assert (one.ids, one.logprobs, one.reason) == (other.ids, other.logprobs, other.reason)
    assert {row.reason for row in together} == {"stop", "length", "error"}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_fused_layers_draw_the_same_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(kind, vocabulary=400)
    expected = drawn(model)
    calls = []
    decode = FusedLayer.decode

    def counted(layer: FusedLayer, *batch: Any) -> torch.Tensor:
        calls.append(layer.number)
        return decode(layer, *batch)

    monkeypatch.setattr(FusedLayer, "decode", counted)
    with packed_documents(model.get_base_model()):
        fused = fuse_layers(model, RecomputePolicy(("none",)))
        try:
            with generating(model):
                found = drawn(model)
        finally:
            fused.undo()
    assert {0, 1} == set(calls)
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    for (_, ours), (_, own) in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(own), rtol=1e-3, atol=1e-3)


def test_one_pass_over_the_logits_draws_what_several_do() -> None:
    heats = [0.5 + at / 50 for at in range(60)]
    rows = [Row(Request(str(each), [1], Sampling(temperature=each, seed=2), logprobs=True), 0, 9) for each in heats]
    logits = 4 * torch.randn(60, 3000, generator=torch.Generator().manual_seed(1))
    logits[:, 17] = -torch.inf

    def sampler() -> Sampler:
        for row in rows:
            row.enter()
        return Sampler(rows, 3000, torch.device(DEVICE))

    logits = logits.to(DEVICE)
    ids, _ = sampler().pick(logits.clone())
    again = sampler()
    assert again.is_plain
    found, logprobs, sound = again.draw(logits, again.noise(2)[0])
    assert found.long().tolist() == ids.tolist()
    torch.testing.assert_close(logprobs.float(), again.logprobs(logits, ids), rtol=1e-4, atol=1e-4)
    assert sound.all()


def test_the_kernel_sums_blocks_as_torch_does() -> None:
    logits = 3 * torch.randn(3, 2500, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([[0.5], [1.0], [2.0]])
    expected = sampler_module._block_sums(logits, scale)
    found = block_sums(logits.to(DEVICE), scale.to(DEVICE), 1024)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("heads", "count", "dim"), [(6, 2, 32), (9, 3, 64), (2, 2, 128), (18, 1, 16)])
def test_a_decoded_token_attends_to_its_rows_columns_and_goes_into_the_cache(heads: int, count: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(1)
    starts, column, columns = torch.tensor([0, 3, 70, 129, 2]), torch.tensor([129]), 150
    drawn = torch.randn(5, heads + 2 * count, dim, generator=generator)  # as the joined product has them
    cache = torch.randn(2, 5, count, columns, dim, generator=generator)
    cache[:, 0, :, 130:] = torch.nan  # memory that nothing has been written to
    given = (each.to(DEVICE) for each in drawn.split([heads, count, count], 1))
    query, key, value = (each.transpose(0, 1) for each in given)
    keys, values = cache.to(DEVICE, copy=True)
    assert is_taken(query, keys, values)
    found = decode_attention(query, key, value, keys, values, starts.to(DEVICE), column.to(DEVICE), 0.2)
    cache[:, :, :, 129] = torch.stack(drawn.split([heads, count, count], 1)[1:])
    torch.testing.assert_close(torch.stack([keys, values]).cpu(), cache, rtol=0, atol=0, equal_nan=True)
    for row, start in enumerate(starts.tolist()):
        own_keys, own_values = (each[row, :, start:130].repeat_interleave(heads // count, 0) for each in cache)
        own = drawn[row, :heads, None]
        expected = torch.nn.functional.scaled_dot_product_attention(own, own_keys, own_values, scale=0.2)[:, 0]
        torch.testing.assert_close(found[row].cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("many", [1, 10**6])
def test_tokens_that_are_noted_a_burst_behind_are_those_noted_at_once(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make("llama", vocabulary=400)
    monkeypatch.setattr(batch_module, "_MANY", many)
    monkeypatch.setattr(batch_module, "_BURST", 3)
    ends = tuple(range(2, 60))
    engine = TransformersEngine(model, make_tiny_tokenizer(), ends, max_rows=4, spare=5)  # columns end amid a burst
    engine._decoder, recorded = replace(engine._decoder, recorder=None), engine._decoder
    requests = [
        Request(
            str(at), list(range(5, 9 + 2 * at)), Sampling(n=3, temperature=1.0, max_tokens=17, seed=1), logprobs=True
        )
        for at in range(4)
    ]
    expected = {(each.request_id, each.index): each for each in engine.generate(requests)}
    assert {each.finish_reason for each in expected.values()} == {"stop", "length"}
    engine._decoder = recorded
    if DEVICE == "cpu":
        engine._decoder = replace(recorded, recorder=Unrecorded())  # type: ignore[arg-type]
    found = list(engine.generate(requests))
    assert len(found) == 12
    whole = 0
    for each in found:
        own = expected[each.request_id, each.index]
        pairs = list(zip(each.token_ids, own.token_ids, strict=False))
        alike = next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
        if alike < len(pairs):  # a number drawn at the edge of two tokens, which a rounding moves
            one, other = pairs[alike]
            assert abs(one - other) == 1
        else:
            assert (each.token_ids, each.finish_reason) == (own.token_ids, own.finish_reason)
            whole += 1
        logprobs = (torch.tensor(one.logprobs[:alike]) for one in (each, own))
        torch.testing.assert_close(*logprobs, rtol=1e-4, atol=1e-4)
    assert whole >= 10
