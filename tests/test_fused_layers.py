"""The fused decoder layers compute what plain PEFT computes. Without a GPU the kernels run in Triton's interpreter."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from conftest import make_tiny_tokenizer
from thinktune.config import Dpo, Load, Rl
from thinktune.data import Tokens
from thinktune.data.examples import Example
from thinktune.models import load_model
from thinktune.models.fp8_linear import quantise_to_fp8
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.collator import PackedCollator
from thinktune.training.fused import frozen_projection
from thinktune.training.fused.decoder_layer import without_fp8_products
from thinktune.training.fused.fuse_model import fuse_layers
from thinktune.training.fused.kernels.dropout import Dropout, dropped, threshold_of
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.fused.support import why_not_fused
from thinktune.training.methods.dpo import document_logprobs, pair_losses
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.reinforce.objective import Fact, Objective

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
LENGTHS = [19, 2, 30]
TOKEN_KEYS = torch.randint(0, 2**31, (sum(LENGTHS),), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
SEED = 17
NOBODY = Example((), "", "", 1, "test")


def make(
    kind: str, *, targets: list[str] = ALL, r: int = 4, quantise: bool = False, vocabulary: int = 160, **lora: Any
) -> PeftModel:
    """Two layers of awkward widths, with an adapter whose B matrices are not zero."""
    torch.manual_seed(0)
    more = {"sliding_window": None} if kind == "mistral" else {}
    config = CONFIGS[kind](
        hidden_size=96, intermediate_size=208, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=vocabulary, tie_word_embeddings=True, **more,
    )  # fmt: skip
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(DEVICE)
    for name, parameter in base.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    if quantise:
        quantise_to_fp8(base)
    return add_adapter(base, targets=targets, r=r, **lora)


def add_adapter(base: Any, *, targets: list[str] = ALL, r: int = 4, **lora: Any) -> PeftModel:
    torch.manual_seed(1)
    model = get_peft_model(
        base, LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets, task_type="CAUSAL_LM", **lora)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def packed_batch() -> dict[str, Any]:
    tokens = sum(LENGTHS)
    return {
        "token_keys": TOKEN_KEYS.to(DEVICE),
        "dropout_seed": torch.tensor([SEED], dtype=torch.int32, device=DEVICE),
        "input_ids": torch.randint(0, 160, (1, tokens), generator=torch.Generator().manual_seed(0)).to(DEVICE),
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None].to(DEVICE),
        "cu_seq_lens_q": torch.tensor([0, *LENGTHS]).cumsum(0).to(DEVICE, torch.int32),
        "max_length_q": max(LENGTHS),
        "document_lengths": LENGTHS,
        "use_cache": False,
    }


def outcome(model: PeftModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The logits of a packed batch and every gradient of a function of them."""
    model.zero_grad()
    with packed_documents(model.get_base_model()):  # the backward pass too: it may run layers again
        logits = model(**packed_batch()).logits[0]
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
        (logits * weights).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(fused: PeftModel, plain: PeftModel) -> None:
    (logits, grads), (expected_logits, expected_grads) = outcome(fused), outcome(plain)
    torch.testing.assert_close(logits, expected_logits, atol=2e-5, rtol=2e-5)
    assert grads.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        scale = float(grad.abs().max())
        torch.testing.assert_close(
            grads[name], grad, atol=1e-4 * scale, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def gradients_of(policy: ModelWithLoss, inputs: dict[str, Any], method: str) -> tuple[float, torch.Tensor]:
    """The loss of pairs, or of a policy, over a batch of documents, and the gradients of all that is trained."""
    policy.zero_grad()
    generator = torch.Generator().manual_seed(3)
    if method == "dpo":
        sums, lengths = document_logprobs(policy, inputs)
        reference = -5 * lengths + torch.randn(len(lengths), generator=generator).to(lengths)
        loss = pair_losses(Dpo(beta=0.5), sums, reference, lengths).losses.sum()
    else:
        logprobs = -policy(**inputs, reduction="none", temperature=0.9)
        facts = torch.ones(len(Fact), len(logprobs))
        facts[Fact.ADVANTAGE] = torch.randn(len(logprobs), generator=generator)
        facts[Fact.OLD] = -5 + 0.3 * torch.randn(len(logprobs), generator=generator)
        facts[Fact.SAMPLED] = facts[Fact.OLD] + 0.1
        facts[Fact.REFERENCE] = -5.0
        loss = Objective(Rl(beta=0.1, epsilon=5.0))(logprobs, facts.to(logprobs.device))
    loss.backward()
    return float(loss.detach()), torch.cat([each.grad.flatten() for each in policy.trained if each.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_losses_of_log_probabilities_are_those_of_plain_peft(method: str) -> None:
    plain, fused = make("llama"), make("llama")
    fuse_layers(fused, RecomputePolicy())
    documents = [Tokens(array("i", range(3, 3 + length)), 1, NOBODY) for length in (19, 7, 24, 12)]
    inputs = PackedCollator(documents)([{"documents": [0, 1, 2, 3]}])
    inputs = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in inputs.items()}
    found = []
    for model in (plain, fused):
        with packed_documents(model.get_base_model()):
            found.append(gradients_of(ModelWithLoss(model), inputs, method))
    (expected, gradients), (loss, ours) = found
    assert loss == pytest.approx(expected, rel=1e-5)
    assert 0 < (ours - gradients).norm() < 1e-4 * gradients.norm()


@pytest.mark.parametrize("kind", CONFIGS)
def test_fused_layers_give_the_logits_and_gradients_of_plain_peft(kind: str) -> None:
    plain, fused = make(kind), make(kind)
    assert why_not_fused(fused) is None
    layers = fuse_layers(fused, RecomputePolicy())
    assert_same(fused, plain)
    layers.undo()
    assert_same(fused, plain)


def test_fused_layers_see_no_further_than_a_sliding_window() -> None:
    fused, plain, wide = (make("mistral") for _ in range(3))
    for model in (fused, plain):
        model.config.sliding_window = 7
    fuse_layers(fused, RecomputePolicy())
    assert_same(fused, plain)
    assert not torch.allclose(outcome(plain)[0], outcome(wide)[0], rtol=0.01)


@pytest.mark.parametrize(
    "memory",
    [
        RecomputePolicy(("mlp",)),
        pytest.param(RecomputePolicy(("full",)), marks=pytest.mark.slow),
        pytest.param(RecomputePolicy(("none", "full"), mlp_chunks=3), marks=pytest.mark.slow),
    ],
)
def test_what_is_computed_again_is_the_same(memory: RecomputePolicy) -> None:
    fused = make("qwen3")
    fuse_layers(fused, memory)
    assert_same(fused, make("qwen3"))


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": ["q_proj", "v_proj", "down_proj"]},
        pytest.param({"r": 20}, marks=pytest.mark.slow),
        {"r": 33},
        pytest.param({"targets": ["up_proj"], "use_rslora": True}, marks=pytest.mark.slow),
    ],
)
def test_any_targets_and_ranks_may_be_trained(changes: dict[str, Any]) -> None:
    fused = make("qwen2", **changes)
    fuse_layers(fused, RecomputePolicy())
    assert_same(fused, make("qwen2", **changes))


class SameMask(torch.nn.Module):
    """Drops for PEFT what the kernels drop for the projection at a place."""

    def __init__(self, place: int, probability: float) -> None:
        super().__init__()
        self.place, self.threshold = place, threshold_of(probability)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seed = torch.tensor([SEED], dtype=torch.int32, device=x.device)
        return x * dropped(torch.ones_like(x[0]), Dropout(seed, TOKEN_KEYS.to(x.device), self.place, self.threshold))


def with_the_same_masks(model: PeftModel, probability: float) -> PeftModel:
    for number, layer in enumerate(model.get_base_model().model.layers):
        for place, name in enumerate(ALL):
            module = getattr(layer.mlp if place > 3 else layer.self_attn, name)
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = SameMask(8 * number + place, probability)
    return model


@pytest.mark.parametrize(
    ("kind", "memory", "changes"),
    [
        ("qwen2", RecomputePolicy(), {}),
        pytest.param(
            "qwen3",
            RecomputePolicy(("full",), mlp_chunks=2),
            {"targets": ["q_proj", "v_proj", "o_proj", "down_proj"]},
            marks=pytest.mark.slow,
        ),
        pytest.param("qwen3", RecomputePolicy(("mlp",), mlp_chunks=2), {"r": 40}, marks=pytest.mark.slow),
    ],
)
def test_dropout_is_that_of_peft_on_the_input_of_every_adapter(
    kind: str, memory: RecomputePolicy, changes: dict[str, Any]
) -> None:
    fused = make(kind, lora_dropout=0.3, **changes)
    assert why_not_fused(fused) is None
    fuse_layers(fused, memory)
    assert_same(fused, with_the_same_masks(make(kind, lora_dropout=0.3, **changes), 0.3))
    fused.eval()
    assert_same(fused, make(kind, **changes))


@pytest.mark.slow
def test_a_backward_pass_draws_what_its_own_forward_pass_drew() -> None:
    fused = make("llama", lora_dropout=0.3)
    fuse_layers(fused, RecomputePolicy(("full",)))

    def sums(*seeds: int) -> list[torch.Tensor]:
        with packed_documents(fused.get_base_model()):
            return [
                fused(**{**packed_batch(), "dropout_seed": torch.tensor([seed])}).logits.square().sum()
                for seed in seeds
            ]

    def gradient(total: torch.Tensor) -> torch.Tensor:
        trained = [parameter for parameter in fused.parameters() if parameter.requires_grad]
        return torch.cat([part.flatten() for part in torch.autograd.grad(total, trained)])

    (alone,), (first, other) = sums(1), sums(1, 2)
    assert first.item() != other.item()
    torch.testing.assert_close(gradient(first), gradient(alone))


def test_what_a_token_drops_does_not_depend_on_what_it_is_packed_with() -> None:
    examples = [Tokens(array("i", range(length)), 1, Example((), "", "", 1, "")) for length in (5, 9, 7)]
    collate = PackedCollator(examples)

    def keys(*documents: int) -> list[int]:
        found: list[int] = collate([{"documents": [each]} for each in documents])["token_keys"].tolist()
        return found

    assert keys(2, 0, 1) == keys(2) + keys(0) + keys(1)
    assert len(set(keys(0, 1, 2))) == 21


def test_masks_drop_as_often_as_told_and_are_independent() -> None:
    example = Tokens(array("i", range(64)), 1, Example((), "", "", 1, ""))
    keys = PackedCollator([example] * 4)([{"documents": [0, 1, 2, 3]}])["token_keys"]
    x, probability = torch.ones(256, 512, device=DEVICE), 0.1
    masks = []
    for seed, place in [(1, 0), (1, 1), (1, 8), (2, 0)]:
        of = Dropout(torch.tensor([seed], dtype=torch.int32, device=DEVICE), keys.to(DEVICE), place, threshold_of(0.1))
        kept = dropped(x, of)
        assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
        assert torch.equal(dropped(x, of), kept)
        masks.append(((kept == 0).double() - probability) / (probability * (1 - probability)) ** 0.5)
    numbers = x.numel()
    table = torch.stack([mask.flatten() for mask in masks])
    scores = table @ table.t() / numbers**0.5  # standard normal off the diagonal, where masks are independent
    assert scores.fill_diagonal_(0.0).abs().max() < 4.5
    assert (table.sum(1) / numbers**0.5).abs().max() < 4.5
    for mask in masks:  # nor do rows, columns or neighbours go together
        assert abs(float((mask.sum(1) ** 2).sum() / numbers) - 1) < 0.4
        assert abs(float((mask.sum(0) ** 2).sum() / numbers) - 1) < 0.3
        assert abs(float((mask[1:] * mask[:-1]).sum() / numbers**0.5)) < 4.5
        assert abs(float((mask[:, 1:] * mask[:, :-1]).sum() / numbers**0.5)) < 4.5


@pytest.mark.slow
def test_weights_that_lay_beside_low_rank_matrices_are_given_back_without_a_second_copy() -> None:
    layers = [torch.nn.Linear(8, width, bias=False) for width in (4, 6)]
    before = [layer.weight.detach().clone() for layer in layers]
    joined = frozen_projection.DenseProjection(layers, beside=16, below=3)
    held = joined.beside.untyped_storage()
    assert all(layer.weight.untyped_storage().data_ptr() == held.data_ptr() for layer in layers)
    joined.release()
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before, strict=True))
    assert all(layer.weight.untyped_storage().data_ptr() != held.data_ptr() for layer in layers)
    parts = [part for part in vars(joined).values() if isinstance(part, torch.Tensor)]
    assert all(part.untyped_storage().nbytes() == 0 for part in parts)


@pytest.mark.slow
def test_an_eight_bit_base_is_made_whole_for_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_projection, "_multiplies_fp8", lambda layers: False)  # as on GPUs before Hopper
    fused = make("qwen2", quantise=True)
    assert all(parameter.dtype == torch.float32 for parameter in fused.parameters() if parameter.requires_grad)
    fuse_layers(fused, RecomputePolicy(("mlp",)))
    assert_same(fused, make("qwen2", quantise=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "memory"), [("qwen2", RecomputePolicy()), ("qwen3", RecomputePolicy(("full",), mlp_chunks=2))]
)
def test_products_in_eight_bits_come_near_to_those_of_the_same_weights(kind: str, memory: RecomputePolicy) -> None:
    fused = make(kind, quantise=True)
    fuse_layers(fused, memory)
    (logits, grads), (expected_logits, expected_grads) = outcome(fused), outcome(make(kind, quantise=True))
    assert torch.cosine_similarity(logits.flatten(), expected_logits.flatten(), dim=0) > 0.995
    all_of = [torch.cat([part[name].flatten() for name in expected_grads]) for part in (grads, expected_grads)]
    assert torch.cosine_similarity(*all_of, dim=0) > 0.98
    for name, grad in expected_grads.items():  # those of keys are small differences of large numbers
        assert torch.cosine_similarity(grads[name].flatten(), grad.flatten(), dim=0) > 0.93, name


@pytest.mark.slow
def test_products_in_eight_bits_can_be_set_aside_for_a_comparison() -> None:
    fused = make("qwen2", quantise=True)
    layers = fuse_layers(fused, RecomputePolicy()).layers
    kinds = [[type(group.frozen) for group in layer.groups] for layer in layers]
    assert {kind for of_layer in kinds for kind in of_layer} == {frozen_projection.Fp8Projection}
    with without_fp8_products(layers):
        assert_same(fused, make("qwen2", quantise=True))
        # One weight is whole at a time, not the model.
        assert len({id(vars(group.frozen)["_scratch"]) for layer in layers for group in layer.groups}) == 1
    assert [[type(group.frozen) for group in layer.groups] for layer in layers] == kinds


@pytest.mark.parametrize("base", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_bases_of_bitsandbytes_train_as_in_plain_peft(base: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tokenizer = make_tiny_tokenizer()
    make("qwen2", vocabulary=len(tokenizer)).unload().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def load() -> PeftModel:
        model = load_model(tmp_path, load=Load(device=DEVICE, dtype="float32"), quantize=base).model
        return add_adapter(model.requires_grad_(False))

    fused = load()
    fuse_layers(fused, RecomputePolicy(("mlp",)))
    (logits, grads), (expected_logits, expected_grads) = outcome(fused), outcome(load())
    # bitsandbytes rounds activations, to bfloat16 or to 8 bits; the fused products take them as they are.
    torch.testing.assert_close(logits, expected_logits, atol=0.01, rtol=0.01)
    for name, grad in expected_grads.items():
        assert torch.cosine_similarity(grads[name].flatten(), grad.flatten(), dim=0) > 0.99, name
