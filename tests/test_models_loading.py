"""Every kind of model reference, from folders on this machine, and every way in which a folder can be broken."""

from __future__ import annotations

import json
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from conftest import make_tiny_model, make_tiny_tokenizer
from families import make_model
from thinktune.config import Load
from thinktune.errors import ModelError, RunFolderError, ThinktuneError
from thinktune.models import load_model, load_tokenizer, resolve, write_settings
from thinktune.models.adapters import require_fit
from thinktune.models.folder import adapter_sha256, read_safetensors_header
from thinktune.models.fp8_linear import Fp8Linear, quantise_to_fp8
from thinktune.models.tokenizer import set_pad_token

FLOAT32 = Load(dtype="float32", device="cpu")
IDS = torch.tensor([[5, 6, 7, 8, 9]])


def make_adapter(base: Path, folder: Path, *, settings: dict[str, Any] | None = None, seed: int = 1) -> Path:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder)
    if settings is not None:
        write_settings(folder, {"base_model": str(base), **settings})
    return folder


def make_run(base: Path, folder: Path, **settings: Any) -> Path:
    make_adapter(base, folder / "adapter", settings={"system": None, **settings})
    make_tiny_tokenizer().save_pretrained(folder / "adapter")
    (folder / "run.json").write_text("{}")
    return folder


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(IDS).logits
    return result


def test_a_model_folder_is_loaded_with_all_that_belongs_to_it(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = load_model(tiny_model, load=FLOAT32)
    assert loaded.dtype == next(loaded.model.parameters()).dtype == torch.float32
    assert not loaded.model.training
    assert not loaded.tuned
    assert loaded.base == loaded.reference == str(tiny_model)
    assert loaded.chat.system_text == "You are a tiny model."
    assert loaded.chat.stop_ids == {2}
    assert "float32" in caplog.messages[-1]


def test_models_may_be_loaded_in_several_threads(tiny_model: Path) -> None:
    """transformers switches weight tying off for all models of a process while it loads one."""
    with ThreadPoolExecutor(3) as threads:
        loaded = list(threads.map(lambda _: load_model(tiny_model, load=FLOAT32), range(24)))
    assert all(each.model.lm_head.weight is each.model.model.embed_tokens.weight for each in loaded)


def test_the_stop_ids_of_the_generation_config_count(model_copy: Path) -> None:
    file = model_copy / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [2, 7]}))
    assert load_model(model_copy, load=FLOAT32).chat.stop_ids == {2, 7}


def test_an_adapter_is_merged_or_left_as_asked(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")  # of others: base from adapter_config.json
    merged = load_model(adapter, load=FLOAT32)
    apart = load_model(adapter, load=FLOAT32, merge_adapter=False)
    plain = load_model(tiny_model, load=FLOAT32)
    assert type(apart.model).__name__ == "PeftModelForCausalLM"
    assert type(merged.model) is type(plain.model)
    assert merged.tuned
    assert merged.adapter == adapter
    assert merged.base == str(tiny_model)
    torch.testing.assert_close(logits(merged.model), logits(apart.model), atol=1e-5, rtol=1e-5)
    assert (logits(merged.model) - logits(plain.model)).abs().max() > 0.01


def test_an_adapter_is_loaded_by_its_own_names_where_peft_takes_them_for_old_ones(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = make_model("laguna", tmp_path / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["shared_experts.down_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter", load=FLOAT32, merge_adapter=False)
    torch.testing.assert_close(logits(loaded.model), logits(model.eval()))


def test_a_run_folder_brings_its_recorded_system_text(tiny_model: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model, tmp_path / "run", system="Be brief.")
    assert load_model(run, load=FLOAT32).chat.system_text == "Be brief."
    assert resolve(run, FLOAT32).kind == "run"


def test_a_run_trained_without_system_text_is_asked_without_one(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(make_run(tiny_model, tmp_path / "run", system=None), load=FLOAT32)
    assert loaded.chat.system_text is None


def test_the_merged_model_of_a_run_is_used_only_while_it_belongs_to_the_adapter(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tiny_model, tmp_path / "run")
    shutil.copytree(tiny_model, run / "merged")
    digest = adapter_sha256(run / "adapter")
    write_settings(run / "merged", {"base_model": str(tiny_model), "system": None, "adapter_sha256": digest})
    assert resolve(run, FLOAT32).folder == run / "merged"
    assert resolve(run, FLOAT32, prefer_merged=False).adapter == run / "adapter"
    make_adapter(tiny_model, run / "adapter", settings={"system": None}, seed=2)
    assert resolve(run, FLOAT32).adapter == run / "adapter"
    assert "older than the adapter" in caplog.messages[0]


def test_an_adapter_on_a_run_is_put_on_the_runs_own_adapter(tiny_model: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model, tmp_path / "run")
    second = make_adapter(tiny_model, tmp_path / "second", settings={}, seed=5)
    write_settings(second, {"base_model": str(run)})
    assert resolve(second, FLOAT32).adapters == (run / "adapter", second)
    both, first = load_model(second, load=FLOAT32), load_model(run, load=FLOAT32)
    assert (logits(both.model) - logits(first.model)).abs().max() > 0.01


def test_the_base_of_an_adapter_is_found_from_any_working_folder(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    adapter = make_adapter(Path(tiny_model.name), tmp_path / "adapter", settings={})
    monkeypatch.chdir(tmp_path)
    assert resolve(adapter, FLOAT32).folder == tiny_model


def test_a_tokenizer_is_loaded_without_weights(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    assert load_tokenizer(model_copy).pad_token == "<|endoftext|>"


def test_an_adapter_of_another_model_does_not_fit(tmp_path: Path, tiny_model: Path) -> None:
    wide = make_tiny_model(tmp_path / "wide", hidden_size=64)
    adapter = make_adapter(wide, tmp_path / "adapter", settings={})
    write_settings(adapter, {"base_model": str(tiny_model)})
    with pytest.raises(ModelError, match="does not fit its base"):
        load_model(adapter, load=FLOAT32)


def test_an_adapter_for_more_layers_does_not_fit(tmp_path: Path, tiny_model: Path) -> None:
    shallow = make_tiny_model(tmp_path / "shallow", num_hidden_layers=1)
    adapter = make_adapter(shallow, tmp_path / "adapter", settings={})
    write_settings(adapter, {"base_model": str(tiny_model)})
    with pytest.raises(ModelError, match="does not fit its base"):
        load_model(adapter, load=FLOAT32)


def test_an_adapter_of_tokens_that_the_model_has_not_does_not_fit(tmp_path: Path, tiny_model: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter", settings={})
    told = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"trainable_token_indices": [10**9]}))
    with pytest.raises(ModelError, match="does not fit its base"):
        load_model(adapter, load=FLOAT32)


def _drop(folder: Path, part: str) -> None:
    weights = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if part not in name}, weights)


def _add(folder: Path, name: str) -> None:
    weights = folder / "adapter_model.safetensors"
    save_file({**load_file(weights), name: torch.zeros(2, 32)}, weights)


LAYER = "base_model.model.model.layers"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: _drop(folder, "layers.1.mlp"),
            r"it lacks model\.layers\.1\.mlp\.down_proj\.lora_A",
        ),
        (lambda folder: _add(folder, f"{LAYER}.2.self_attn.q_proj.lora_A.weight"), r"no place for model\.layers\.2"),
        (lambda folder: _add(folder, f"{LAYER}.0.self_attn.k_proj.lora_A.weight"), r"layers\.0\.self_attn\.k_proj"),
        (lambda folder: _add(folder, "_orig_mod.lm_head.lora_A.weight"), "no place for"),
        (lambda folder: _add(folder, f"{LAYER}.0.block_sparse_moe.gate.lora_A.weight"), "no place for"),
    ],
)
@pytest.mark.parametrize("merge", [True, False])
def test_an_adapters_weights_without_a_place_are_as_bad_as_missing_ones(
    tmp_path: Path, tiny_model: Path, change: Any, message: str, merge: bool
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    change(adapter)
    with pytest.raises(ModelError, match=message):
        load_model(adapter, load=FLOAT32, merge_adapter=merge)


def test_an_adapter_of_a_deeper_model_is_refused_by_the_first_layer_too_many(tmp_path: Path, tiny_model: Path) -> None:
    adapter = make_adapter(make_tiny_model(tmp_path / "deep", num_hidden_layers=4), tmp_path / "adapter")
    write_settings(adapter, {"base_model": str(tiny_model)})
    with pytest.raises(ModelError, match=r"no place for model\.layers\.2\.mlp\.down_proj\.lora_A\.weight and 7 more"):
        load_model(adapter, load=FLOAT32)
    with pytest.raises(ModelError, match=r"no place for model\.layers\.2"):  # without weights, for vLLM
        require_fit(resolve(adapter, FLOAT32), adapter, FLOAT32)
    right = make_adapter(tiny_model, tmp_path / "right")
    require_fit(resolve(right, FLOAT32), right, FLOAT32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "repeats layers"),
        ({"peft_type": "PREFIX_TUNING"}, "no change of weights"),
    ],
)
def test_adapters_that_are_no_sum_with_weights_are_refused(
    tmp_path: Path, tiny_model: Path, changes: dict[str, Any], message: str
) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        load_model(adapter, load=FLOAT32)


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00\x01")


def _lose_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _lose_layer(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 3}))


def _unknown_architecture(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": "nonesuch"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"model\.safetensors is cut off"),
        (_cut_header, "not a whole safetensors file"),
        (_lose_shard, r"model-00002-of-00002\.safetensors of 2"),
        (_pickle, r"pytorch_model\.bin: pickled files can run code"),
        (_lose_layer, "lacks 9 of its model's weights"),
        (_unknown_architecture, "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), r"no config\.json; found there: chat_template\.jinja"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no safetensors weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer .* cannot be read"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
    ],
)
def test_a_broken_model_folder_says_what_is_wrong(model_copy: Path, damage: Any, message: str) -> None:
    damage(model_copy)
    with pytest.raises(ModelError, match=message):
        load_model(model_copy, load=FLOAT32)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("./nothing", "there is no nothing"),
        ("/no/such/folder", "is not there either"),
        ("runs/typo", "runs is not there either"),
        ("missing.gguf", r"there is no missing\.gguf"),
        ("builtin:gpt", "there is builtin:smollm2"),
        ("two words", "not a model reference"),
        ("ms:", "not a model reference"),
        ("", "name a model folder|not a model folder"),
    ],
)
def test_a_reference_to_nothing_is_refused(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ThinktuneError, match=message):
        load_model(reference, load=FLOAT32)


def test_a_typo_below_an_existing_folder_is_not_taken_for_a_hub_id(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent.parent)
    with pytest.raises(ModelError, match=rf"in {tiny_model.parent.name}: tiny"):
        load_model(f"{tiny_model.parent.name}/tny", load=FLOAT32)


def test_a_run_whose_training_has_not_ended_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: x")
    with pytest.raises(RunFolderError, match="--resume"):
        load_model(tmp_path, load=FLOAT32)


def test_an_adapter_with_pickled_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        load_model(adapter, load=FLOAT32)


def test_an_fp8_layer_keeps_no_whole_weight_for_the_backward_pass() -> None:
    torch.manual_seed(0)
    layer = Fp8Linear(torch.nn.Linear(32, 16).requires_grad_(False))
    x = torch.randn(4, 32, requires_grad=True)

    def refuse(tensor: torch.Tensor) -> None:
        raise AssertionError(f"kept: {tuple(tensor.shape)}")

    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda _: x):
        out = layer(x)
    weight = layer.dense_weight(torch.float32)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, weight, layer.bias))
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(4, 16) @ weight)


def test_fp8_holds_every_linear_layer_but_the_head_in_one_byte_a_weight(tiny_model: Path) -> None:
    plain, small = (load_model(tiny_model, load=FLOAT32, quantize=name).model for name in ("none", "fp8"))
    projection = small.model.layers[0].self_attn.q_proj
    assert projection.weight.dtype == torch.uint8
    assert small.get_output_embeddings().weight.dtype == torch.float32
    original = plain.model.layers[0].self_attn.q_proj.weight
    error = (projection.dense_weight(torch.float32) - original).abs()
    assert (error <= original.abs() / 16 + original.abs().amax(1, keepdim=True) / 2**16).all()  # e4m3's half steps
    assert torch.cosine_similarity(logits(small).flatten(), logits(plain).flatten(), dim=0) > 0.99


def test_fp8_weights_are_made_one_by_one_as_they_are_read(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinktune.models.fp8_linear.quantise_to_fp8", lambda model: None)  # of the whole model at once
    read = load_model(tiny_model, load=FLOAT32, quantize="fp8").model
    monkeypatch.undo()
    at_once = load_model(tiny_model, load=FLOAT32).model
    quantise_to_fp8(at_once)
    assert [type(module) for module in read.modules()] == [type(module) for module in at_once.modules()]
    expected = at_once.state_dict()
    assert read.state_dict().keys() == expected.keys()
    for name, tensor in read.state_dict().items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    assert read.config.to_dict() == at_once.config.to_dict()


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"])
def test_fp8_refuses_weights_of_another_shape_than_the_config_has(model_copy: Path, name: str) -> None:
    file = model_copy / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, name: weights[name][:-8].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(model_copy, load=FLOAT32, quantize="fp8")


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_quantised_weights_of_another_shape_than_the_config_has_are_refused(model_copy: Path, quantize: Any) -> None:
    pytest.importorskip("bitsandbytes")
    config = json.loads((model_copy / "config.json").read_text())
    config["intermediate_size"] += 64
    (model_copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"mlp\.gate_proj\.weight is .*, and should be"):
        load_model(model_copy, load=FLOAT32, quantize=quantize)


def test_int8_weights_are_those_that_bitsandbytes_makes(tiny_model: Path) -> None:
    quantised = pytest.importorskip("bitsandbytes").nn.Int8Params
    loaded = load_model(tiny_model, load=Load(dtype="float32"), quantize="int8").model
    for name, weight in load_file(tiny_model / "model.safetensors").items():
        if "proj" in name:
            own = loaded.get_parameter(name)
            theirs = quantised(weight, requires_grad=False).to(own.device)
            assert torch.equal(own.data, theirs.data)
            assert torch.equal(own.SCB, theirs.SCB)
            assert own.CB.data_ptr() == own.data_ptr()


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantised_model_still_trains_an_adapter_after_an_evaluation(tiny_model: Path, quantize: Any) -> None:
    pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model

    loaded = load_model(tiny_model, load=Load(device="cpu", dtype="bfloat16"), quantize=quantize)
    assert loaded.model.model.layers[0].self_attn.q_proj.weight.dtype in (torch.int8, torch.uint8)
    model = get_peft_model(loaded.model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    model.eval()
    logits(model)
    model.train()
    model(IDS, labels=IDS).loss.backward()
    gradients = [weight.grad for name, weight in model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_pad_token_that_ends_no_turn_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tiny_tokenizer()
    set_pad_token(tokenizer, {2})
    assert not caplog.messages
    assert tokenizer.pad_token == "<|endoftext|>"


def test_a_pad_token_that_ends_turns_is_replaced_without_adding_one(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.pad_token = "<|im_end|>"
    size = len(tokenizer)
    set_pad_token(tokenizer, {2})
    assert not caplog.messages
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer) == size


def test_a_vocabulary_without_another_token_pads_with_the_end_of_turn_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.pad_token = None
    set_pad_token(tokenizer, {0, 1, 2})
    assert tokenizer.pad_token == tokenizer.eos_token
    assert "no token for padding" in caplog.messages[0]


def test_adapters_that_stand_on_each_other_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_adapter(tiny_model, first, settings={"base_model": str(second)})
    make_adapter(tiny_model, second, settings={"base_model": str(first)})
    for folder in (first, second):
        with pytest.raises(ModelError, match="stands on itself"):
            load_model(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"num_hidden_layers": 10**8}, "asks for 100000000 layers"),
        ("config.json", {"num_hidden_layers": 0}, "asks for 0 layers"),
        ("generation_config.json", {"eos_token_id": [[2]]}, "not a token id"),
        ("generation_config.json", {"eos_token_id": "2"}, "not a token id"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "not a number"),
        ("thinktune.json", {"system": ["x"]}, "system is"),
        ("thinktune.json", {"system": "\ud800"}, "surrogate"),
        ("thinktune.json", {"format": 5}, "format is"),
        ("model.safetensors.index.json", {"weight_map": [1]}, "does not say which file"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../../x"}}, "does not say which file"),
    ],
)
def test_a_file_of_a_model_that_holds_something_else_is_named(
    model_copy: Path, file: str, content: dict[str, Any], message: str
) -> None:
    before = json.loads((model_copy / file).read_text()) if (model_copy / file).exists() else {}
    (model_copy / file).write_text(json.dumps({**before, **content}))
    with pytest.raises(ModelError, match=message):
        load_model(model_copy)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "XX", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 8]}},
        {"a": 5},
        ["a"],
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        read_safetensors_header(tmp_path / "x.safetensors")
