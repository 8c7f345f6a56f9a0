"""The fast path computes what plain PyTorch and plain PEFT compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from thinktune.errors import ModelError
from thinktune.training.fused import chunked_loss, packed_attention
from thinktune.training.fused.chunked_loss import has_plain_head, head_loss
from thinktune.training.fused.lora_linear import fuse_lora
from thinktune.training.fused.packed_attention import packed_documents

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_lora(folder: Path, **settings: Any) -> PeftModel:
    """The tiny model with an adapter whose B matrices are not zero, so that every gradient flows."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: PeftModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed(lengths: list[int], ids: torch.Tensor) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "max_length_q": max(lengths),
        "document_lengths": lengths,
        "use_cache": False,
    }


def test_the_fused_lora_linear_gives_the_logits_and_gradients_of_plain_peft(tiny_model: Path) -> None:
    ids = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    plain, fused = with_lora(tiny_model), with_lora(tiny_model)
    assert fuse_lora(fused) == 14  # seven projections in each of two layers
    torch.testing.assert_close(fused(ids).logits, plain(ids).logits)
    expected, actual = gradients(plain, ids), gradients(fused, ids)
    assert expected.keys() == actual.keys()
    assert len(actual) == 28
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_fused_lora_linear_obeys_a_disabled_adapter(tiny_model: Path) -> None:
    ids = torch.arange(3, 20)[None]
    model = with_lora(tiny_model)
    fuse_lora(model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, base(ids).logits)
    assert not torch.allclose(model(ids).logits, base(ids).logits)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_the_fused_linear_does_not_compute_is_left_to_peft(tiny_model: Path, settings: dict[str, Any]) -> None:
    assert fuse_lora(with_lora(tiny_model, **settings)) == 0


def test_fusing_changes_no_name_and_no_value_of_the_state_dict(tiny_model: Path) -> None:
    plain, fused = with_lora(tiny_model), with_lora(tiny_model)
    fuse_lora(fused)
    before, after = plain.state_dict(), fused.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("chunk_bytes", [2**30, 4 * 50 * 7])  # all rows at once, and seven at a time
def test_the_head_loss_is_cross_entropy_with_its_gradient(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setitem(chunked_loss._CHUNK_BYTES, "cpu", chunk_bytes)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(50, 8, generator=generator)
    targets = torch.randint(0, 50, (30,), generator=generator)
    ours = torch.randn(30, 8, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    (head_loss(ours, weight, targets) / 30).backward()
    F.cross_entropy(theirs @ weight.t(), targets).backward()
    torch.testing.assert_close(
        head_loss(ours, weight, targets), F.cross_entropy(ours @ weight.t(), targets, reduction="sum")
    )
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_head_loss_of_no_trained_token_is_zero() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)
    total = head_loss(hidden, torch.randn(50, 8), torch.zeros(0, dtype=torch.long))
    total.backward()
    assert total.item() == 0.0


HEADS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "plain": ("Llama", {}, True),
    "capped": ("Gemma2", {"final_logit_softcapping": 30.0}, False),
    "scaled": ("Cohere", {"logit_scale": 0.5}, False),
    "divided": ("Granite", {"logits_scaling": 2.0}, False),
    "with a bias": ("Phi", {}, False),
}


@pytest.mark.parametrize("case", HEADS)
def test_what_a_head_computes_is_found_by_trying(case: str) -> None:
    import transformers

    kind, settings, plain = HEADS[case]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).train()
    model.requires_grad_(False)
    before = torch.get_rng_state()
    assert has_plain_head(model) == plain
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("softcap", 50.0),
        ("s_aux", torch.zeros(2)),
        ("position_bias", torch.zeros(1, 2, 4, 4)),
        ("head_mask", torch.ones(2)),
        ("attention_mask", torch.zeros(1, 1, 4, 4)),
        ("is_causal", False),
        ("a_keyword_of_tomorrow", 0),
    ],
)
def test_what_packed_attention_does_not_know_is_refused_by_name(keyword: str, value: Any) -> None:
    heads = torch.zeros(1, 2, 4, 4)
    given = {"cu_seq_lens_q": torch.tensor([0, 4]), "max_length_q": 4, "document_lengths": [4], keyword: value}
    said = {"attention_mask": "mask", "is_causal": "what comes later"}.get(keyword, keyword)
    with pytest.raises(ModelError, match=said):
        packed_attention.packed_attention(torch.nn.Identity(), heads, heads, heads, **given)


def test_keywords_that_change_nothing_or_are_not_set_are_taken() -> None:
    heads = torch.zeros(1, 2, 4, 4)
    out, _ = packed_attention.packed_attention(
        torch.nn.Identity(), heads, heads, heads, None, cu_seq_lens_q=torch.tensor([0, 4]), max_length_q=4,
        document_lengths=[4], softcap=None, output_attentions=False, position_ids=torch.arange(4), use_cache=False,
    )  # fmt: skip
    assert out.shape == (1, 4, 2, 4)


def test_packed_documents_get_the_hidden_states_they_get_alone(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    lengths = [5, 1, 19, 8]
    ids = torch.randint(3, 300, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    with packed_documents(model):
        together = model.model(**packed(lengths, ids)).last_hidden_state[0].split(lengths)
    assert model.config._attn_implementation != packed_attention.NAME
    for document, states in zip(ids[0].split(lengths), together, strict=True):
        torch.testing.assert_close(states, model.model(document[None]).last_hidden_state[0])


def test_a_packed_document_is_blind_to_the_one_before_it(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, :10] = 7
    with packed_documents(model):
        first = model.model(**packed([10, 10], ids)).last_hidden_state[0]
        second = model.model(**packed([10, 10], other)).last_hidden_state[0]
    assert torch.equal(first[10:], second[10:])
    assert not torch.equal(first[:10], second[:10])


def test_a_document_longer_than_the_sliding_window_is_refused_with_the_length_to_set() -> None:
    heads = torch.zeros(1, 2, 9, 4)
    lengths = torch.tensor([0, 9], dtype=torch.int32)
    with pytest.raises(ModelError, match="sliding window of 8") as raised:
        packed_attention.packed_attention(
            torch.nn.Identity(),
            heads,
            heads,
            heads,
            None,
            cu_seq_lens_q=lengths,
            max_length_q=9,
            document_lengths=[9],
            sliding_window=8,
        )
    assert "data.max_length=8" in raised.value.hint
