from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import make_base_model, make_tiny_model
from families import make_model
from test_models_loading import FLOAT32, logits, make_adapter, make_run
from thinktune.config import Load
from thinktune.errors import DiskFull, ModelError, RunFolderError
from thinktune.export.agreement import gap_of
from thinktune.export.merge import Merged, _require_close, merge
from thinktune.models import load_model, write_settings
from thinktune.models.cache import space_required
from thinktune.models.folder import check_model_folder, generation_ends, stored_dtype


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path) -> Path:
    return make_run(tiny_model, tmp_path / "run", system="Be brief.", format={"clean_prompt": True})


def merged(run: Path, **arguments: object) -> Merged:
    return merge(run, load=FLOAT32, max_tokens=4, **arguments)  # type: ignore[arg-type]


def test_the_merged_model_answers_as_the_adapter_does(run: Path) -> None:
    result = merged(run)
    assert result.folder == str(run / "merged")
    assert result.max_difference < 1e-4
    assert result.greedy_agreement == 1
    assert result.adapter_effect > 100 * result.mean_difference
    assert result.positions > 100
    apart = load_model(run, load=FLOAT32, merge_adapter=False)
    whole = load_model(run / "merged", load=FLOAT32)
    torch.testing.assert_close(logits(whole.model), logits(apart.model), atol=1e-5, rtol=1e-5)


def test_it_brings_everything_that_later_verbs_need(run: Path) -> None:
    merged(run)
    names = {path.name for path in (run / "merged").iterdir()}
    needed = {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json", "thinktune.json"}
    assert needed <= names
    loaded = load_model(run, load=FLOAT32)
    assert loaded.adapter is None
    assert loaded.tuned
    assert loaded.chat.system_text == "Be brief."
    assert loaded.settings["format"] == {"clean_prompt": True}


def test_it_says_to_other_programs_what_ends_a_reply(tmp_path: Path) -> None:
    run = make_run(make_base_model(tmp_path / "base"), tmp_path / "run")
    merged(run)
    assert generation_ends(run / "merged") == {0, 2}


def test_the_weights_keep_the_dtype_of_the_base_and_are_rounded_once(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = make_tiny_model(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    run = make_run(base, tmp_path / "run")
    result = merged(run)
    assert result.dtype == "bfloat16"
    assert result.compared_in == "float32"
    assert stored_dtype(check_model_folder(run / "merged")) == "BF16"
    exact = load_model(run / "adapter", load=FLOAT32).model
    saved = load_model(run / "merged", load=FLOAT32).model
    pairs = zip(exact.parameters(), saved.parameters(), strict=True)
    assert all(torch.equal(one.bfloat16().float(), other) for one, other in pairs)


def test_routers_that_their_family_holds_in_float32_are_not_rounded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = make_model("ernie4_5_moe", tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    run = make_run(base, tmp_path / "run")
    assert merged(run).dtype == "bfloat16"
    router, attention = "model.layers.1.mlp.gate.weight", "model.layers.1.self_attn.k_proj.weight"
    before, after = load_file(base / "model.safetensors"), load_file(run / "merged" / "model.safetensors")
    assert before[router].dtype == after[router].dtype == torch.float32
    assert torch.equal(before[router], after[router])
    assert after[attention].dtype == torch.bfloat16


def test_an_unchanged_merge_is_skipped_and_a_changed_adapter_is_not(run: Path, tiny_model: Path) -> None:
    first = merged(run)
    again = merged(run)
    assert again.skipped
    assert again.max_difference == first.max_difference
    assert not merged(run, overwrite=True).skipped
    make_adapter(tiny_model, run / "adapter", settings={"system": None}, seed=9)
    assert not merged(run).skipped


def test_a_damaged_merged_model_is_made_again(run: Path) -> None:
    merged(run)
    weights = run / "merged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert not merged(run).skipped
    check_model_folder(run / "merged")


def test_left_overs_of_a_killed_merge_are_cleared_and_never_used(run: Path) -> None:
    left_over = run / ".merged.4711.tmp"
    left_over.mkdir()
    (left_over / "config.json").write_text("{}")
    merged(run)
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["adapter", "merged"]


def test_a_merge_that_fails_leaves_no_folder(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = run / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ModelError, match="NaN"):
        merged(run)
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["adapter"]


def test_another_folder_is_never_replaced(run: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError, match="no merged model"):
            merged(run, out=precious, overwrite=overwrite)
    assert (precious / "thesis.tex").exists()


def test_an_adapter_folder_is_merged_beside_itself(tiny_model: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_model, tmp_path / "lora")
    assert merged(adapter).folder == str(tmp_path / "lora-merged")


def test_a_model_without_adapter_has_nothing_to_merge(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no adapter"):
        merged(tiny_model)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    adapter = make_adapter(make_tiny_model(tmp_path / "wide", hidden_size=64), tmp_path / "lora", settings={})
    write_settings(adapter, {"base_model": str(tiny_model)})
    with pytest.raises(ModelError, match="does not fit"):
        merged(adapter)
    assert not (tmp_path / "lora-merged").exists()


def test_a_quantised_base_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor.to(torch.int8) for name, tensor in weights.items()}, base / "model.safetensors")
    adapter = make_adapter(tiny_model, tmp_path / "lora", settings={})
    write_settings(adapter, {"base_model": str(base)})
    with pytest.raises(ModelError, match="stored as I8"):
        merged(adapter)


def tuned(base: Path, folder: Path, **lora: Any) -> Path:
    """An adapter of any kind, every part of it far from zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "down_proj"], **lora}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


KINDS: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both, tied": {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "new tokens": {"trainable_token_indices": [5, 6, 7]},
    "embeddings with DoRA": {"target_modules": ["embed_tokens"], "use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 32}},
    "DoRA, rank-stabilised": {"use_dora": True, "use_rslora": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind_are_merged_into_the_same_model(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Head and embeddings of the tiny model are tied: the sum of one must not reach the other."""
    adapter = tuned(tiny_model, tmp_path / "lora", **KINDS[kind])
    apart = logits(load_model(adapter, load=FLOAT32, merge_adapter=False).model)
    plain = logits(load_model(tiny_model, load=FLOAT32).model)
    assert (apart - plain).abs().mean() > 0.01
    torch.testing.assert_close(logits(load_model(adapter, load=FLOAT32).model), apart, atol=1e-4, rtol=1e-4)
    folder = merged(adapter).folder
    torch.testing.assert_close(logits(load_model(folder, load=FLOAT32).model), apart, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "tied"), [("head", False), ("embeddings", False), ("patterns", True)])
def test_the_config_says_whether_head_and_embeddings_are_still_one(
    kind: str, tied: bool, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(merged(tuned(tiny_model, tmp_path / "lora", **KINDS[kind])).folder)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is tied


@pytest.mark.parametrize("kind", ["head", "embeddings", "DoRA, rank-stabilised"])
def test_a_sum_is_rounded_once_wherever_the_adapter_lies(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    adapter = tuned(tiny_model, tmp_path / "lora", **KINDS[kind])
    exact = load_model(adapter, load=FLOAT32).model.state_dict()
    rounded = load_model(adapter, load=Load(device="cpu", dtype="bfloat16")).model.state_dict()
    unlike = sum(int((exact[name].bfloat16() != rounded[name]).sum()) for name in exact if name in rounded)
    # The tiny model is stored in float32: loaded in bfloat16 its own weights are rounded first.
    assert unlike < 0.5 * sum(weight.numel() for weight in exact.values())


def test_the_merged_weights_may_be_kept_in_float32(run: Path) -> None:
    assert merged(run).dtype == "float32"
    assert merged(run, dtype="bfloat16").dtype == "bfloat16"
    assert stored_dtype(check_model_folder(run / "merged")) == "BF16"
    assert merged(run).skipped  # whatever it is, where no dtype is asked for
    result = merged(run, dtype="float32")
    assert (result.skipped, result.dtype) == (False, "float32")


def test_a_sum_that_is_another_model_is_refused() -> None:
    one = [torch.randn(4, 50, generator=torch.Generator().manual_seed(0))]
    effect = 0.5
    _require_close(gap_of(one, [one[0] + 0.004]), effect, one, torch.float32, "the sum")
    with pytest.raises(ModelError, match="the sum is another model than the adapter"):
        _require_close(gap_of(one, [one[0] + 0.006]), effect, one, torch.float32, "the sum")
    _require_close(gap_of(one, [one[0] + 0.4]), effect, one, torch.bfloat16, "the sum")
    with pytest.raises(ModelError, match="another model"):
        _require_close(gap_of(one, [one[0] + 0.6]), effect, one, torch.bfloat16, "the sum")


def test_an_adapter_that_peft_cannot_merge_is_refused_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    adapter = tuned(tiny_model, tmp_path / "lora", lora_bias=True)  # the base has no bias to add it to
    with pytest.raises(ModelError, match="cannot be merged: Impossible to merge"):
        merged(adapter)
    assert not (tmp_path / "lora-merged").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
        {"do_sample": False, "top_k": 20, "min_p": 0.1},
        {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
        {"pad_token_id": -1},
        {"eos_token_id": [2, 0], "temperature": 0.7},
        {"do_sample": True, "temperature": 0.6, "repetition_penalty": 1.05},
    ],
)
def test_the_generation_config_of_the_base_is_carried_as_it_is(
    changes: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    file = base / "generation_config.json"
    told = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps(told))
    run = make_run(base, tmp_path / "run")
    merged(run)
    assert json.loads((run / "merged" / "generation_config.json").read_text()) == told


def test_settings_of_generation_in_an_old_config_are_carried_too(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "generation_config.json").unlink()
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_sample": False, "temperature": 0.9}))
    run = make_run(base, tmp_path / "run")
    merged(run)
    assert json.loads((run / "merged" / "generation_config.json").read_text())["temperature"] == 0.9
    assert "temperature" not in json.loads((run / "merged" / "config.json").read_text())


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match=r"needs 1048576\.0 GiB"), space_required(tmp_path / "new", 2**50, "the model"):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="while writing the model to"), space_required(tmp_path, 1, "the model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_record_in_the_merged_folder_is_the_result(run: Path) -> None:
    result = merged(run)
    record = json.loads((run / "merged" / "thinktune.json").read_text())
    assert record["merge"]["max_difference"] == result.max_difference
    assert record["merge"]["question"] == result.question


def test_a_question_that_cannot_be_answered_costs_no_merge(tmp_path: Path) -> None:
    run = make_run(make_tiny_model(tmp_path / "base", max_position_embeddings=4), tmp_path / "run")
    result = merged(run)
    assert (result.answer, result.well_formed) == ("", False)
    assert "not asked: " in result.summary()
    assert "context" in (result.unanswered or "")
    assert merged(run).skipped
