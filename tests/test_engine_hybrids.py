"""The transformers engine on models that keep a state beside keys and values, against `generate()` of transformers."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from thinktune.config import Sampling
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.engines.hf.cache_layers import states_of
from thinktune.inference.engines.hf.cuda_graph import Recorder
from thinktune.inference.engines.hf.decoder import Decoder
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.hf.fidelity import require_faithful
from thinktune.training.fused.packed_attention import packed_documents

MIXED = ["linear_attention", "full_attention"]
DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3_5": {"layer_types": MIXED, **DELTA},
    "Qwen3Next": {"layer_types": MIXED, **DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "FalconH1": {"mamba_d_ssm": 64, **MAMBA},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "Bamba": {"attn_layer_indices": [1], **MAMBA},
    "KimiLinear": {
        "layer_types": MIXED, "mlp_layer_types": ["dense", "dense"], "linear_head_dim": 8, "linear_num_heads": 4,
        "kv_lora_rank": 8, "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
        "num_key_value_heads": 4, "head_dim": None,
    },
}  # fmt: skip

QUICK = ("Qwen3_5", "FalconH1", "Lfm2")  # linear attention, attention and a state in one layer, convolution


def make(kind: str, **settings: Any) -> Any:
    """A tiny random model with weights so large that greedy decoding does not repeat one token."""
    sizes = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip
    settings = {key: value for key, value in {**sizes, **settings}.items() if value is not None or key == "q_lora_rank"}
    name = f"{kind}Text" if kind in ("Qwen3_5", "Llama4") else kind
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * (1.5 / weight.shape[-1] ** 0.5))
    return model


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def qwen(tokenizer: Any) -> TransformersEngine:
    return TransformersEngine(make("Qwen3_5", **FAMILIES["Qwen3_5"]), tokenizer, [2])


def requests_of(lengths: Iterable[int], **sampling: Any) -> list[Request]:
    """Some end after 6 tokens, others after up to 16."""
    noise = random.Random(0)
    return [
        Request(
            str(at),
            [noise.randrange(3, 60) for _ in range(length)],
            Sampling(**{"max_tokens": 6 + 5 * (at % 3), "stop": (), **sampling}),
        )
        for at, length in enumerate(lengths)
    ]


def answers(completions: Iterable[Completion]) -> dict[tuple[str, int], Sequence[int]]:
    found = {(each.request_id, each.index): each.token_ids for each in completions}
    assert all(found.values())
    return found


def generated(model: Any, request: Request) -> list[int]:
    ids = torch.tensor([request.prompt_ids])
    settings = {"max_new_tokens": request.sampling.max_tokens, "eos_token_id": 2, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
    return [int(token) for token in out[0, len(request.prompt_ids) :]]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK)) for kind in FAMILIES]
)
def test_seven_prompts_of_different_lengths_are_answered_as_generate_does(kind: str, tokenizer: Any) -> None:
    model = make(kind, **FAMILIES[kind])
    engine = TransformersEngine(model, tokenizer, [2], max_batch_tokens=300)  # some have to wait
    assert not engine.recomputes
    requests = requests_of([1, 40, 17, 17, 3, 25, 60])
    found = answers(engine.generate(requests))
    assert len(set(map(tuple, found.values()))) == len(requests)
    for request in requests:
        assert list(found[request.id, 0]) == generated(model, request)


def test_attention_in_blocks_is_that_of_each_row_alone_whatever_it_shares_a_batch_with(tokenizer: Any) -> None:
    model = make(
        "Llama4", attention_chunk_size=16, layer_types=["chunked_attention", "full_attention"], no_rope_layers=[1, 0],
        moe_layers=[], intermediate_size_mlp=48, floor_scale=200,
    )  # fmt: skip
    engine = TransformersEngine(model, tokenizer, [2], max_batch_tokens=300)
    assert not engine.recomputes
    assert engine.context_length == 199  # queries behind it are scaled by their column
    requests = requests_of([1, 40, 17, 17, 3, 25, 60])
    requests += [replace(each, id=f"{each.id}+", prompt_ids=[*requests[6].prompt_ids, 9]) for each in requests[:2]]
    found = answers(engine.generate(requests))
    for request in requests:
        assert list(found[request.id, 0]) == generated(model, request)


@pytest.mark.parametrize("reads", [False, True])
def test_prompts_of_different_lengths_are_read_together_where_padding_changes_no_state(
    reads: bool, qwen: TransformersEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reads:
        where = "transformers.models.qwen3_5.modeling_qwen3_5.apply_mask_to_padding_states"
        monkeypatch.setattr(where, lambda states, mask: states)
    engine = TransformersEngine(qwen.model, tokenizer, [2])
    assert engine.decoder.reads_padding == reads
    read: list[int] = []
    original = Decoder.forward

    def forward(self: Decoder, ids: torch.Tensor, *args: Any) -> torch.Tensor:
        if ids.shape[1] > 1:
            read.append(len(ids))
        return original(self, ids, *args)

    monkeypatch.setattr(Decoder, "forward", forward)
    requests = requests_of([9, 5, 5, 2])
    found = answers(engine.generate(requests))
    assert read == ([1, 2, 1] if reads else [4])
    assert [list(found[each.id, 0]) for each in requests] == [generated(qwen.model, each) for each in requests]


def test_log_probabilities_of_a_batch_are_those_of_a_plain_forward(qwen: TransformersEngine) -> None:
    pairs = [(request.prompt_ids, [5, 9, 11]) for request in requests_of([2, 30, 11])]
    alone = [qwen.logprobs(*pair) for pair in pairs]
    assert [each.logprob for each in qwen.likelihoods(pairs)] == pytest.approx([sum(each) for each in alone], abs=1e-4)
    ids = torch.tensor([[*pairs[1][0], *pairs[1][1]]])
    with torch.inference_mode():
        scores = qwen.model(ids).logits[0, 29:32].log_softmax(-1)
    assert alone[1] == pytest.approx([float(scores[at, token]) for at, token in enumerate(pairs[1][1])], abs=1e-4)


def test_samples_of_one_prompt_go_their_own_ways(qwen: TransformersEngine) -> None:
    (request,) = requests_of([12], n=4, temperature=1.0, seed=5, max_tokens=20)
    together = answers(qwen.generate([request]))
    assert len(set(map(tuple, together.values()))) == 4
    others = requests_of([3, 3, 50], temperature=1.0, seed=1)
    assert together.items() <= answers(qwen.generate([*others[1:], replace(request, id="0")])).items()


def test_rows_sent_back_for_want_of_room_go_on_as_if_nothing_had_been(qwen: TransformersEngine, tokenizer: Any) -> None:
    requests = requests_of([1, 9, 9, 14], max_tokens=70)
    small = TransformersEngine(qwen.model, tokenizer, [2], max_batch_tokens=250)
    assert answers(small.generate(requests)) == answers(qwen.generate(requests))


def test_a_state_counts_as_memory_of_its_row(qwen: TransformersEngine) -> None:
    # A token: keys and values of 2 heads of 8. A state: 4 heads of 8 x 8, and 4 columns of 2 * 16 + 32 channels.
    assert qwen.scheduler()._limits.state == -(-(4 * 64 + 4 * 64) // 32)


def test_a_recording_leaves_states_as_they_were_and_changes_no_token(qwen: TransformersEngine) -> None:
    class Tried(Recorder):
        """Runs a step for trial, as a GPU does before it records one."""

        works = property(lambda self: True, lambda self, value: None)
        steps = 0

        def record(self, forward: Any, keep: Any = (), *, warm_up: bool = False) -> None:
            before = [tensor.clone() for tensor in keep]
            super().record(forward, keep)
            assert before
            assert all(map(torch.equal, before, keep))
            self.steps += 1

        def _try(self, forward: Any) -> None:
            forward()
            raise RuntimeError("this is no GPU")

    fixed, recorder = copy.copy(qwen), Tried(torch.device("cpu"))
    fixed._decoder = replace(qwen.decoder, recorder=recorder)
    requests = requests_of([4, 20, 20], max_tokens=30)
    assert answers(fixed.generate(requests)) == answers(qwen.generate(requests))
    assert recorder.steps >= 28


def test_an_adapter_on_a_linear_attention_is_used_and_training_goes_on(tokenizer: Any) -> None:
    from peft import LoraConfig, get_peft_model

    model = make("Qwen3_5", **FAMILIES["Qwen3_5"])
    requests = requests_of([5, 16])
    plain = answers(TransformersEngine(model, tokenizer, [2]).generate(requests))
    tuned = get_peft_model(model, LoraConfig(target_modules=["in_proj_qkv", "out_proj"], init_lora_weights=False))
    tuned.train()
    engine = TransformersEngine(tuned, tokenizer, [2])
    found = answers(engine.generate(requests))
    assert tuned.training
    assert found != plain
    assert {key: list(ids) for key, ids in found.items()} == {
        (request.id, 0): generated(tuned.eval(), request) for request in requests
    }


def test_a_model_that_is_set_up_for_packed_examples_decodes_as_ever(qwen: TransformersEngine, tokenizer: Any) -> None:
    requests = requests_of([5, 16])
    with packed_documents(qwen.model):
        engine = TransformersEngine(qwen.model, tokenizer, [2])
        assert not engine.recomputes
        found = answers(engine.generate(requests))
    assert found == answers(qwen.generate(requests))


def test_a_cache_that_is_not_understood_is_done_without_and_that_is_said(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = make("MiniMax", layer_types=MIXED, block_size=16, num_local_experts=2, num_experts_per_tok=1)
    engine = TransformersEngine(model, tokenizer, [2])
    assert engine.recomputes
    assert "minimax models are answered the slow way" in caplog.text
    requests = requests_of([1, 20, 7])
    found = answers(engine.generate(requests))
    for request in requests:
        assert list(found[request.id, 0]) == generated(model, request)
    assert "".join(engine.stream(requests[1])) == next(engine.generate([requests[1]])).text


def test_a_model_whose_every_state_is_its_own_is_done_without_a_cache(tokenizer: Any) -> None:
    config = transformers.Mamba2Config(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1,
        chunk_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    engine = TransformersEngine(transformers.Mamba2ForCausalLM(config).eval(), tokenizer, [2])
    assert engine.recomputes
    (request,) = requests_of([9])
    assert list(next(engine.generate([request])).token_ids) == generated(engine.model, request)


def test_an_engine_that_is_off_goes_the_slow_way_now_and_the_next_time(
    qwen: TransformersEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_engine() -> TransformersEngine:
        return TransformersEngine(qwen.model, tokenizer, [2])

    right = Decoder.forward

    def off(self: Decoder, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        for state in states_of(cache):
            state.mul_(0.5)
        return right(self, ids, mask, positions, cache)

    monkeypatch.setattr(Decoder, "forward", off)
    first, second = make_engine(), make_engine()
    require_faithful(first, tokenizer, "these weights")
    assert first.recomputes
    assert not second.recomputes
    require_faithful(second, tokenizer, "these weights")
    assert second.recomputes
