"""Of a decoder, the first layers of each kind stand for the others."""

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen3_5TextConfig

from thinktune.training.fused.layer_kinds import first_of_each_kind

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 64}  # fmt: skip


def computing(model: torch.nn.Module, count: int = 1) -> list[int]:
    """Return which layers change what they are given."""
    seen: list[int] = []
    layers = model.get_decoder().layers
    handles = [
        layer.register_forward_hook(lambda _, given, out, at=at: seen.append(at) if out is not given[0] else None)
        for at, layer in enumerate(layers)
    ]
    with first_of_each_kind(model, count), torch.no_grad():
        model(input_ids=torch.arange(8)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    assert not any("forward" in vars(layer) for layer in layers)
    return seen


def test_layers_that_are_alike_hand_on_what_they_are_given() -> None:
    model = AutoModelForCausalLM.from_config(Qwen2Config(num_hidden_layers=4, **SIZES))
    assert computing(model) == [0]
    assert computing(model, 2) == [0, 1]
    model.get_decoder().layers[2].mlp.act_fn = torch.nn.GELU()
    assert computing(model) == [0, 2]


def test_layers_that_mix_tokens_another_way_are_of_another_kind() -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    config = Qwen3_5TextConfig(num_hidden_layers=4, layer_types=kinds, head_dim=16, **SIZES)
    assert computing(AutoModelForCausalLM.from_config(config)) == [0, 1]


def test_all_layers_of_a_model_that_is_not_known_compute() -> None:
    from transformers import GPT2Config

    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=32, n_head=2, n_layer=3, vocab_size=64))
    with first_of_each_kind(model):
        assert not any("forward" in vars(module) for module in model.modules())
