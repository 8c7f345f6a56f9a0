"""Completions that share their prompt: what a batch of them says, and which models take it."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from test_fidelity import make_family
from thinktune.data import Example, Tokens
from thinktune.models import load_model
from thinktune.training.adapter import adapter_to_train
from thinktune.training.fused.packed_attention import packed_attention, packed_documents
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.reinforce.shared_prompts import may_share_prompts, shared_inputs
from training import make_config

PROBLEMS = [
    Tokens(array("i", range(5, 5 + prompt + 20)), prompt, Example((), "", "", row, "test"))
    for row, prompt in enumerate((4, 9, 30))
]


def test_a_prompt_is_laid_once_and_its_completions_count_on_from_it() -> None:
    batch = shared_inputs([(7, [1, 2, 3], [4, 5, 6]), (7, [1, 2, 3], [9]), (7, [1, 2, 3], [8, 9]), (8, [1], [2, 3])])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 8, 1, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]
    assert batch["targets"].tolist() == [4, 5, 6, 9, 8, 9, 2, 3]
    assert batch["positions"].tolist() == [2, 3, 4, 2, 2, 5, 6, 7]
    assert batch["document_lengths"] == [3, 2, 1, 1, 1]
    assert batch["key_lengths"] == [3, 5, 4, 1, 2]
    assert batch["key_tokens"].tolist() == [0, 1, 2, *[0, 1, 2, 3, 4], *[0, 1, 2, 5], 6, *[6, 7]]
    assert batch["cu_seq_lens_k"].tolist() == [0, 3, 8, 12, 13, 15]


@pytest.mark.parametrize(
    ("kind", "settings", "shares"),
    [
        ("Llama", {}, True),
        ("Qwen3", {}, True),
        ("Mistral", {"sliding_window": 8}, False),
        ("Gemma2", {}, False),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, False),
    ],
)
def test_a_model_shares_prompts_if_that_changes_no_gradient(
    kind: str, settings: dict[str, Any], *, shares: bool, tmp_path: Path
) -> None:
    lora = {"targets": "auto"}
    config = make_config(make_family(tmp_path / "model", kind, **settings), tmp_path / "run", lora=lora)
    loaded = load_model(config.model, load=config.load)
    with adapter_to_train(loaded, config) as model, packed_documents(loaded.model):
        assert may_share_prompts(ModelWithLoss(model), PROBLEMS) is shares
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_completions_that_share_their_prompt_attend_to_it_as_if_it_were_their_own(device: str) -> None:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    lengths = [(40, 1, 30, 70), (300, 12, 150)]
    completions = [(at, list(range(first)), [0] * each) for at, (first, *rest) in enumerate(lengths) for each in rest]
    shared = shared_inputs(completions)
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "key_tokens")
    batch = {name: shared[name].to(device) for name in names}
    batch |= {name: shared[name] for name in ("max_length_q", "document_lengths", "max_length_k", "key_lengths")}
    tokens, keys = shared["input_ids"].shape[1], shared["key_tokens"].split(shared["key_lengths"])
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, heads, tokens, 64, generator=generator).to(device, dtype) for heads in (9, 3, 3)]
    weights = torch.randn(1, tokens, 9, 64, generator=generator).to(device, dtype)

    def gradients(*leaves: torch.Tensor, together: bool) -> list[torch.Tensor]:
        leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
        if together:
            out, _ = packed_attention(None, *leaves, **batch)
        else:
            query, key, value = leaves
            parts = []
            for own, seen in zip(query.split(shared["document_lengths"], 2), keys, strict=True):
                mask = torch.ones(own.shape[2], len(seen), dtype=torch.bool, device=device)
                mask = mask.tril(len(seen) - own.shape[2])
                states = (each[:, :, seen.to(device)].repeat_interleave(3, 1) for each in (key, value))
                parts.append(torch.nn.functional.scaled_dot_product_attention(own, *states, attn_mask=mask))
            out = torch.cat(parts, 2).transpose(1, 2)
        return [out, *torch.autograd.grad(out, leaves, weights.to(out))]

    found = gradients(*states, together=True)
    expected = gradients(*(state.float() for state in states), together=False)
    bound = 1e-5 if device == "cpu" else 0.01
    for one, two in zip(found, expected, strict=True):
        assert (one.float() - two).norm() < bound * two.norm()
