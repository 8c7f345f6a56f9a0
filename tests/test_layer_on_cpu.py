"""Decoder layers as single nodes on a CPU compute what transformers' and PEFT's own modules do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from thinktune.models.untouched import untouched
from thinktune.training.fused.layer_on_cpu import layers_on_cpu
from thinktune.training.fused.packed_attention import packed_documents

SIZES: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.2,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = [7, 12, 3]


def with_lora(config: Any, dtype: torch.dtype = torch.float32, **settings: Any) -> PeftModel:
    """A model whose norms, biases and adapters are not what they begin with."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=dtype).requires_grad_(False)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(base, LoraConfig(**settings)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@contextmanager
def fused(model: PeftModel) -> Iterator[bool]:
    with packed_documents(model.get_base_model()), layers_on_cpu(model) as fuses:
        yield fuses


def documents() -> list[torch.Tensor]:
    return list(torch.randint(3, 400, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1)).split(LENGTHS))


def states_of_pack(model: PeftModel) -> torch.Tensor:
    batch = {
        "input_ids": torch.cat(documents())[None],
        "position_ids": torch.cat([torch.arange(length) for length in LENGTHS])[None],
        "cu_seq_lens_q": torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32),
        "max_length_q": max(LENGTHS),
        "document_lengths": LENGTHS,
    }
    states: torch.Tensor = model.get_base_model().model(**batch, use_cache=False).last_hidden_state[0]
    return states


def plain_states(model: PeftModel) -> torch.Tensor:
    """Of every document by itself, by the model's own modules."""
    with untouched(model) as plain:
        return torch.cat([plain.model(input_ids=each[None]).last_hidden_state[0] for each in documents()])


def gradients(model: PeftModel, states: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    found = torch.autograd.grad((states.float() * weights).sum(), list(trained.values()))
    return dict(zip(trained, found, strict=True))


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj"], ["up_proj"]])
@pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Qwen2Config(**SIZES)], ids=["llama", "qwen2"])
def test_states_and_gradients_of_a_pack_are_those_of_plain_peft(config: Any, targets: list[str]) -> None:
    model = with_lora(config, target_modules=targets)
    expected = plain_states(model)
    of_plain = gradients(model, expected)
    with fused(model) as fuses:
        assert fuses
        states = states_of_pack(model)
        of_ours = gradients(model, states)
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    for name, gradient in of_plain.items():
        torch.testing.assert_close(
            of_ours[name], gradient, rtol=1e-4, atol=1e-3, msg=lambda text, name=name: name + text
        )


def test_in_bfloat16_gradients_are_as_near_to_float32_as_plain_pefts() -> None:
    wide = with_lora(LlamaConfig(**SIZES))
    exact = gradients(wide, plain_states(wide))
    narrow = with_lora(LlamaConfig(**SIZES))
    narrow.get_base_model().to(torch.bfloat16)
    narrow.load_state_dict(wide.state_dict())
    for name, parameter in narrow.named_parameters():
        if "lora_" in name:
            parameter.data = wide.get_parameter(name).data.clone()
    of_plain = gradients(narrow, plain_states(narrow))
    with fused(narrow):
        of_ours = gradients(narrow, states_of_pack(narrow))

    def error(found: dict[str, torch.Tensor]) -> float:
        return float(torch.cat([(found[name] - exact[name]).flatten() for name in exact]).norm())

    assert error(of_ours) <= 1.1 * error(of_plain)


def test_what_is_no_pack_and_a_disabled_adapter_are_left_to_the_models_own_layers() -> None:
    model = with_lora(LlamaConfig(**SIZES))
    ids = documents()[1][None]
    expected = model(ids).logits
    with model.disable_adapter():
        without = plain_states(model)
    with layers_on_cpu(model):
        torch.testing.assert_close(model(ids).logits, expected)
    with fused(model), model.disable_adapter():
        torch.testing.assert_close(states_of_pack(model), without, rtol=1e-4, atol=1e-5)


def test_the_layers_take_changed_adapters_and_give_all_weights_back() -> None:
    model = with_lora(LlamaConfig(**SIZES))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with fused(model):
        first = states_of_pack(model).detach()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A" in name:
                    parameter *= 2
        assert not torch.allclose(states_of_pack(model), first)
    torch.testing.assert_close(plain_states(model), plain_states(model))
    weights = {name: each for name, each in model.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(each, before[name]) and each.is_contiguous() for name, each in weights.items())
    assert not any("forward" in vars(layer) for layer in model.get_base_model().model.layers)


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (Qwen3Config(**SIZES), {}),
        (LlamaConfig(**SIZES), {"lora_dropout": 0.1}),
        (LlamaConfig(**SIZES), {"use_dora": True}),
        (LlamaConfig(**SIZES), {"modules_to_save": ["lm_head"]}),
        (LlamaConfig(**{**SIZES, "hidden_act": "gelu"}), {}),
    ],
    ids=["norms of heads", "dropout", "dora", "more is trained", "activation"],
)
def test_what_the_layers_do_not_compute_is_left_as_it_is(config: Any, settings: dict[str, Any]) -> None:
    model = with_lora(config, **settings)
    with fused(model) as fuses:
        assert not fuses
