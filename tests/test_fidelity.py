"""What is trained and what answers is the model itself, or it is refused: tiny models of other families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from conftest import make_tiny_tokenizer
from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.inference.engines.hf.decoder import Decoder
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.hf.fidelity import compare, prompts_for, require_faithful
from thinktune.models import Loaded, load_model
from thinktune.models.plain_attention import plain_attention
from thinktune.models.untouched import rounded_otherwise, untouched, widened
from thinktune.training.adapter import adapter_to_train
from thinktune.training.base_model_cache import BaseModelCache
from thinktune.training.fidelity import measure
from thinktune.training.fused import packed_attention
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.tried_families import untried
from training import adapter_of, make_config, metrics_of, quietly


def make_family(folder: Path, kind: str, **settings: Any) -> Path:
    """A tiny random model with weights so large that every part matters."""
    tokenizer = make_tiny_tokenizer()
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
    }  # fmt: skip
    torch.manual_seed(0)
    config_class = getattr(transformers, f"{kind}TextConfig", None) or getattr(transformers, f"{kind}Config")
    config = config_class(
        **{"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **sizes, **settings}
    )
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn_like(weight) * (1.3 / weight.shape[-1] ** 0.5))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def short(model: Path, output: Path, **settings: Any) -> Any:
    train = {"max_steps": 2, "save_every": 2, **settings.pop("train", {})}
    return make_config(model, output, data={"sample": 6, "eval_fraction": 0}, train=train, **settings)


MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "a cap on attention scores": ("Gemma2", {"attn_logit_softcapping": 5.0, "sliding_window": 64}),
    "sinks": ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64}),
    "a mask of its own": ("Doge", {"sliding_window": None}),
}
"""Attention that asks for more than SDPA has; rows are longer than the windows."""


@pytest.mark.parametrize("case", MORE)
def test_a_family_whose_attention_wants_more_is_trained_and_answers(tmp_path: Path, case: str) -> None:
    kind, settings = MORE[case]
    model = make_family(tmp_path / "model", kind, **settings)
    assert quietly(short(model, tmp_path / "run", lora={"targets": ["q_proj", "o_proj"]}))["steps"] == 2
    engine, loaded = engine_of(model)
    assert compare(engine, prompts_for(engine, loaded.tokenizer)) < 1e-4


def test_attention_that_is_not_known_is_left_to_the_model_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = transformers.models.llama.modeling_llama.LlamaAttention
    own = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args, **inputs: own(*args, **inputs, tilt=0.5))
    assert quietly(short(make_family(tmp_path / "model", "Llama"), tmp_path / "run"))["steps"] == 2
    assert "attention is the model's own (eager)" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", ["scaling", "values of other tokens", "the end of a document"])
def test_an_attention_that_is_off_is_refused_with_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, dtype: str
) -> None:
    right = packed_attention.packed_attention

    def wrong(module: Any, query: Any, key: Any, value: Any, mask: Any = None, **inputs: Any) -> Any:
        if fault == "scaling":
            inputs["scaling"] = 1.5 * inputs["scaling"]
        elif fault == "values of other tokens":
            value = value.roll(1, dims=2)
        else:
            value = torch.cat([value[:, :, :-20], 0.5 * value[:, :, -20:]], dim=2)
        return right(module, query, key, value, mask, **inputs)

    model = make_family(tmp_path / "model", "Llama")
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, packed_attention.NAME, wrong)
    with pytest.raises(ModelError, match=r"gradient is \d+% off, most of all that of model.layers|see each other"):
        quietly(short(model, tmp_path / "run", load={"dtype": dtype, "device": "cpu"}))


@pytest.mark.parametrize("kind", ["Qwen3", "Granite"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_families_that_are_right_are_trained(tmp_path: Path, kind: str, dtype: str) -> None:
    model = make_family(tmp_path / "model", kind)
    record = quietly(short(model, tmp_path / "run", load={"dtype": dtype, "device": "cpu"}))
    assert record["steps"] == 2
    assert record["uncovered"] == []


def test_frequencies_that_follow_the_longest_document_are_each_documents_own_in_a_pack(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [6.0] * 4,
        "original_max_position_embeddings": 110,
    }  # fmt: skip
    model = make_family(tmp_path / "model", "Llama", rope_parameters=rope)
    alone = {"packing": False, "batch_size": 1, "accumulation": 6}
    losses = []
    for name, train in (("packs", {"pack_length": 2000}), ("alone", alone)):
        quietly(short(model, tmp_path / name, train=train))
        losses.append(metrics_of(tmp_path / name)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_check_changes_nothing_in_the_training(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    quietly(short(tiny_model, tmp_path / "with", lora={"dropout": dropout}))
    monkeypatch.setattr("thinktune.training.train.examine_in_float32", lambda *_, **__: True)
    monkeypatch.setattr("thinktune.training.train.examine_as_set_up", lambda *_, **__: True)
    quietly(short(tiny_model, tmp_path / "without", lora={"dropout": dropout}))
    ours, theirs = adapter_of(tmp_path / "with"), adapter_of(tmp_path / "without")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_measured_leaves_no_gradient_and_no_other_mode(tiny_model: Path, tmp_path: Path) -> None:
    config = short(tiny_model, tmp_path / "run")
    loaded, prepared = BaseModelCache().take(config)
    with adapter_to_train(loaded, config) as model, packed_attention.packed_documents(loaded.model):
        model.train()
        state = torch.get_rng_state()
        gap = measure(ModelWithLoss(model), prepared.train[:2], torch.float32)
        assert gap.loss < 1e-5
        assert gap.gradient < 1e-4
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(module.training for module in model.modules())
        assert loaded.model.config._attn_implementation == packed_attention.NAME


def test_widened_weights_come_back_as_the_same_tensors(tiny_model: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    before = {name: (weight.data_ptr(), weight.clone()) for name, weight in model.named_parameters()}
    with widened(model):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for name, weight in model.named_parameters():
        pointer, value = before[name]
        assert weight.data_ptr() == pointer
        assert torch.equal(weight, value)


def test_a_model_that_is_made_for_one_attention_is_made_anew_for_eager() -> None:
    config = transformers.FalconConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_kv_heads=2, alibi=False,
        new_decoder_architecture=True,
    )  # fmt: skip
    model = transformers.FalconForCausalLM(config).eval()
    ids = torch.arange(3, 20)[None]
    with untouched(model) as own, torch.no_grad():
        assert own.config._attn_implementation == "eager"
        torch.testing.assert_close(own(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
        assert own.lm_head is model.lm_head


def test_a_family_that_was_never_tried_is_said_to_be_untried(tiny_model: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    assert untried(model) is None
    model.config.model_type = "of_tomorrow"
    assert "of_tomorrow are untried" in (untried(model) or "")


def engine_of(folder: Path, dtype: str = "float32") -> tuple[TransformersEngine, Loaded]:
    loaded = load_model(folder, load=Load(device="cpu", dtype=dtype))
    return TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids), loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "settings"), [("Llama", {}), ("Mistral", {"sliding_window": 24})])
def test_an_engine_that_is_right_is_taken(tmp_path: Path, kind: str, settings: dict[str, Any], dtype: str) -> None:
    engine, loaded = engine_of(make_family(tmp_path / "model", kind, **settings), dtype)
    compare(engine, prompts_for(engine, loaded.tokenizer))


def test_an_engine_that_leaves_out_a_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, loaded = engine_of(make_family(tmp_path / "model", "Gemma2", attn_logit_softcapping=5.0))

    def capless(*args: Any, softcap: float | None = None, **inputs: Any) -> Any:
        return plain_attention(*args, **inputs)

    monkeypatch.setattr("thinktune.inference.engines.hf.kv_cache.plain_attention", capless)
    with pytest.raises(ModelError, match="nats off"):
        compare(engine, prompts_for(engine, loaded.tokenizer))


def test_an_engine_whose_positions_are_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, loaded = engine_of(make_family(tmp_path / "model", "Llama"))
    right = Decoder.forward
    monkeypatch.setattr(
        Decoder, "forward", lambda self, ids, mask, positions, cache: right(self, ids, mask, positions * 2, cache)
    )
    with pytest.raises(ModelError, match="nats off"):
        compare(engine, prompts_for(engine, loaded.tokenizer))


def test_an_engine_that_was_found_right_is_not_looked_at_again(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, loaded = engine_of(tiny_model)
    require_faithful(engine, loaded.tokenizer, "these weights")
    monkeypatch.setattr("thinktune.inference.engines.hf.fidelity.compare", lambda *_: pytest.fail("looked at again"))
    require_faithful(engine, loaded.tokenizer, "these weights")
    with pytest.raises(pytest.fail.Exception):
        require_faithful(engine, loaded.tokenizer, "other weights")


def test_what_an_adapter_leaves_out_is_said_and_recorded(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", "Qwen3Moe", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)
    record = quietly(short(folder, tmp_path / "run", lora={"targets": ["q_proj", "o_proj"]}))
    assert record["uncovered"] == ["no adapter on mlp.experts"]


@pytest.mark.parametrize("base", ["nf4", "int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_base_is_trained(tmp_path: Path, base: str, dtype: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = make_family(tmp_path / "model", "Llama", hidden_size=64, head_dim=16)
    record = quietly(short(model, tmp_path / "run", quantize=base, load={"dtype": dtype, "device": "cpu"}))
    assert record["steps"] == 2


@pytest.mark.parametrize("base", ["nf4", "int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_over_a_quantised_base_is_taken(tmp_path: Path, base: Any, dtype: Any) -> None:
    pytest.importorskip("bitsandbytes")
    folder = make_family(tmp_path / "model", "Llama", hidden_size=64, head_dim=16)
    loaded = load_model(folder, load=Load(device="cpu", dtype=dtype), quantize=base)
    engine = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids)
    compare(engine, prompts_for(engine, loaded.tokenizer))


def test_a_result_just_above_a_power_of_two_may_be_rounded_otherwise_too() -> None:
    layer = torch.nn.Linear(1, 3, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[16.125], [31.0], [0.0]]))
    one, seen = torch.ones(1, dtype=torch.bfloat16), []
    for seed in range(40):
        with rounded_otherwise(layer, torch.bfloat16, seed):
            seen.append(layer(one).tolist())
    assert [sorted(set(values)) for values in zip(*seen, strict=True)] == [
        [16.0, 16.125, 16.25], [30.875, 31.0, 31.125], [0.0]
    ]  # fmt: skip
