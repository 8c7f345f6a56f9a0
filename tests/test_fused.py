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
from thinktune.training.fused import chunked_loss as loss_module
from thinktune.training.fused import packed_attention
from thinktune.training.fused.chunked_loss import chunked_logprobs, chunked_loss
from thinktune.training.fused.head import probe_head
from thinktune.training.fused.lora_linear import fuse_lora
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.model_with_loss import ModelWithLoss

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


def test_the_output_of_a_fused_lora_linear_may_be_changed_in_place(tiny_model: Path) -> None:
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for fuse in (False, True):
        model = with_lora(tiny_model)
        if fuse:
            fuse_lora(model)
        layer = model.get_base_model().model.layers[0].mlp.up_proj
        output = layer(hidden)
        output *= 2  # as Llama 4 and Gemma 3n do
        output.square().sum().backward()
        found.append(layer.lora_A.default.weight.grad)
    torch.testing.assert_close(found[1], found[0])


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


WEIGHTS: dict[str, torch.Tensor | None] = {
    "none": None,
    "ones": torch.ones(30),
    "random": torch.rand(30, generator=torch.Generator().manual_seed(3)),
    "of both signs": torch.randn(30, generator=torch.Generator().manual_seed(4)),
    "zero here and there": torch.tensor([0.0, 1.0, -0.5] * 10),
}
CHUNKS = [2**30, 4 * 50 * 7]  # all rows at once, and seven at a time
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU machine compiles the kernels")


@pytest.fixture(params=["torch", pytest.param("kernel", marks=interpreted)])
def either_cross_entropy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU take torch's functions, then the kernel that a GPU takes, interpreted."""
    if request.param == "kernel":
        pytest.importorskip("triton")
        monkeypatch.setattr(loss_module, "_cross_entropy", loss_module._fused_cross_entropy)


def thirty_tokens(vocabulary: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(vocabulary, 8, generator=generator)
    targets = torch.randint(0, vocabulary, (30,), generator=generator)
    return torch.randn(30, 8, generator=generator).requires_grad_(), head, targets


def plain_losses(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of every token in float64, and the hidden states that it is a function of."""
    states = hidden.detach().double().requires_grad_()
    return F.cross_entropy(states @ head.double().t(), targets, reduction="none"), states


@pytest.mark.usefixtures("either_cross_entropy")
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("case", WEIGHTS)
def test_the_chunked_loss_is_weighted_cross_entropy_with_its_gradient(case: str, chunk_bytes: int) -> None:
    hidden, head, targets = thirty_tokens()
    weights = WEIGHTS[case]
    losses, states = plain_losses(hidden, head, targets)
    expected = (losses * (1.0 if weights is None else weights.double())).sum()
    total, _ = chunked_loss(hidden, head, targets, weights, chunk_bytes=chunk_bytes)
    (total / 30).backward()
    (expected / 30).backward()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    assert states.grad is not None
    torch.testing.assert_close(hidden.grad, states.grad.float())


@pytest.mark.usefixtures("either_cross_entropy")
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_the_chunked_log_probabilities_are_those_of_log_softmax_with_their_gradient(chunk_bytes: int) -> None:
    hidden, head, targets = thirty_tokens(vocabulary=53)
    losses, states = plain_losses(hidden, head, targets)
    found = chunked_logprobs(hidden, head, targets, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(found, -losses.float())
    found.exp().sum().backward()
    (-losses).exp().sum().backward()
    assert states.grad is not None
    torch.testing.assert_close(hidden.grad, states.grad.float())
    with torch.no_grad():
        assert torch.equal(chunked_logprobs(hidden.detach(), head, targets, chunk_bytes=chunk_bytes), found)


def test_weights_of_one_change_no_bit_of_the_loss_and_its_gradient() -> None:
    seen = []
    for weights in (None, torch.ones(30)):
        hidden, head, targets = thirty_tokens()
        total, _ = chunked_loss(hidden, head, targets, weights, chunk_bytes=4 * 50 * 7)
        (total / 30).backward()
        seen.append((total, hidden.grad))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


@pytest.mark.usefixtures("either_cross_entropy")
@pytest.mark.parametrize("chunk_bytes", CHUNKS)
def test_tokens_are_right_where_argmax_has_them_and_weigh_something(chunk_bytes: int) -> None:
    hidden, head, targets = thirty_tokens()
    logits = hidden.detach() @ head.t()
    targets = torch.where(torch.arange(30) % 3 == 0, targets, logits.argmax(-1))
    expected = logits.argmax(-1) == targets
    assert 20 <= expected.sum() < 30
    assert chunked_loss(hidden, head, targets, chunk_bytes=chunk_bytes)[1] == expected.sum()
    weights = torch.ones(30).index_fill(0, torch.arange(1, 30, 4), 0.0)
    counted = (expected & (weights != 0)).sum()
    assert 0 < counted < expected.sum()
    assert chunked_loss(hidden, head, targets, weights, chunk_bytes=chunk_bytes)[1] == counted


@pytest.mark.usefixtures("either_cross_entropy")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_equally_likely_tokens_the_first_is_the_right_one(dtype: torch.dtype) -> None:
    hidden, head = torch.ones(3, 8, dtype=dtype, requires_grad=True), torch.zeros(50, 8, dtype=dtype)
    head[[7, 30]] = 1.0
    right = [int(chunked_loss(hidden, head, torch.full((3,), target))[1]) for target in (7, 30, 0)]
    assert right == [3, 0, 0]


def test_the_chunked_loss_of_no_trained_token_is_zero() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    total, _ = chunked_loss(hidden, torch.randn(50, 8), none)
    total.backward()
    assert total.item() == 0.0
    assert chunked_logprobs(hidden, torch.randn(50, 8), none).shape == (0,)


HEADS: dict[str, tuple[str, dict[str, Any], tuple[float, float | None]]] = {
    "plain": ("Llama", {}, (1.0, None)),
    "capped": ("Gemma2", {"final_logit_softcapping": 30.0}, (1.0, 30.0)),
    "scaled": ("Cohere", {"logit_scale": 0.5}, (0.5, None)),
    "divided": ("Granite", {"logits_scaling": 3.0}, (1 / 3.0, None)),
    "with a bias": ("Phi", {}, (1.0, None)),
}


def model_with_head(case: str) -> Any:
    import transformers

    kind, settings, _ = HEADS[case]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).train()
    if case == "with a bias":
        torch.nn.init.normal_(model.lm_head.bias)
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", HEADS)
def test_what_a_head_computes_is_found_by_trying(case: str, dtype: torch.dtype) -> None:
    model = model_with_head(case).to(dtype)
    before = torch.get_rng_state()
    head = probe_head(model)
    assert head is not None
    assert (head.multiplier, head.cap) == HEADS[case][2]
    assert (head.bias is None) == (case != "with a bias")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


def test_a_head_that_is_another_function_is_left_to_the_model() -> None:
    model = model_with_head("plain")
    real = model.lm_head.forward
    model.lm_head.forward = lambda hidden: real(hidden).relu()
    assert probe_head(model) is None


@pytest.mark.usefixtures("either_cross_entropy")
@pytest.mark.parametrize("case", HEADS)
def test_the_chunked_loss_is_that_of_the_models_own_logits_with_its_gradient(case: str) -> None:
    model = model_with_head(case)
    model.get_input_embeddings().weight.requires_grad_(True)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    ids = torch.arange(3, 33)[None]
    targets = torch.randint(0, 60, (30,), generator=torch.Generator().manual_seed(1))
    head = probe_head(model)
    assert head is not None
    seen = []
    for ours in (True, False):
        if ours:
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            total, _ = chunked_loss(hidden, head, targets, chunk_bytes=4 * 60 * 14)
        else:
            total = F.cross_entropy(model(input_ids=ids, use_cache=False).logits[0], targets, reduction="sum")
        seen.append((total.detach(), *torch.autograd.grad(total, model.get_input_embeddings().weight)))
    torch.testing.assert_close(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
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


@pytest.mark.parametrize("settings", [{}, {"logit_scale": 0.5}], ids=["a plain head", "a scaled head"])
def test_a_model_with_its_loss_sums_the_weighted_cross_entropy_of_its_logits(settings: dict[str, float]) -> None:
    import transformers

    kind = "Cohere" if settings else "Llama"
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=60, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings,
    )  # fmt: skip
    base = getattr(transformers, f"{kind}ForCausalLM")(config)
    model = ModelWithLoss(get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)))
    ids = torch.arange(3, 20)[None]
    positions = torch.arange(4, 16)
    weights = torch.randn(12, generator=torch.Generator().manual_seed(0))
    losses = F.cross_entropy(base(ids).logits[0, positions], ids[0, positions + 1], reduction="none")
    for given, expected in ((None, losses.sum()), (weights, (losses * weights).sum())):
        loss = model(positions, ids[0, positions + 1], given, input_ids=ids)
        torch.testing.assert_close(loss, expected)
        assert model.right == (base(ids).logits[0, positions].argmax(-1) == ids[0, positions + 1]).sum()
        ours = torch.autograd.grad(loss, model.trained)
        theirs = torch.autograd.grad(expected, model.trained, retain_graph=True)
        torch.testing.assert_close(ours, theirs)
