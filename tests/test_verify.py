"""Adapter, merged model and engine are held against each other, and what differs is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from conftest import make_tiny_model
from test_models_loading import FLOAT32, make_adapter, make_run
from thinktune.cli import app
from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.export import verify as verify_module
from thinktune.export.agreement import wrong_weights
from thinktune.export.checks import alike, real_ends
from thinktune.export.compared_models import Prompt
from thinktune.export.merge import merge
from thinktune.export.verify import Verified, _room, _said, verify
from thinktune.inference.engines import Completion, EngineSettings, open_engine
from thinktune.models import load_model


@pytest.fixture(scope="module")
def merged_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tiny_model, tmp_path_factory.mktemp("runs") / "run")
    merge(run, load=FLOAT32, max_tokens=4)
    return run


@pytest.fixture
def run(merged_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged_run, tmp_path / "run"))


def verified(run: Path, load: Load = FLOAT32, **settings: Any) -> Verified:
    with open_engine(run, EngineSettings(load=load)) as opened:
        return verify(opened, run, prompts=2, max_tokens=6, **settings)


def test_three_ways_of_running_a_run_agree(run: Path) -> None:
    result = verified(run)
    assert result.agrees
    assert [check.passed for check in result.checks[:-2]] == [True] * 8
    assert [check.found for check in result.checks if "greedy" in check.name] == ["100.0% the same"] * 2


def test_an_untrained_model_has_not_learnt_to_end_its_turn(run: Path) -> None:
    result = verified(run)
    assert not result.stops
    assert not result.passed
    assert "0% of replies" in result.checks[-2].found


def test_stopping_is_judged_by_what_the_model_writes_by_itself() -> None:
    ended = Completion("a", 0, "<think>a</think> <answer>1</answer>", (1,), "stop")
    ran_on = Completion("b", 0, "<think>a</think> <answer>1</answer> and <think>", (1,), "length")
    thinking = Completion("c", 0, "<think>a", (1,), "length")
    assert real_ends([ended] * 9 + [ran_on]).passed
    assert not real_ends([ended] * 8 + [ran_on]).passed
    assert real_ends([ended, thinking]).passed
    assert real_ends([ended, ran_on, thinking]).found == "1 end, 1 run on after it, 1 come to none"


def test_a_model_may_write_twice_what_it_was_taught_to_see_whether_it_ends() -> None:
    def room(tokens: int, *, whole: bool = True, limit: int = 48) -> int:
        return _room([Prompt([], "", whole=whole)] * 2, [[1] * 9, [1] * tokens], limit)

    assert (room(10), room(48), room(85), room(5000)) == (96, 96, 192, 384)
    assert room(10, whole=False) == 384  # how long a reply should be is not known
    assert room(300, limit=256) == 768


def test_the_end_of_a_long_reply_is_judged_apart_and_is_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_engine(run, EngineSettings(load=FLOAT32)) as opened:
        ids, reply = opened.chat.prompt_ids([{"role": "user", "content": "2 + 2?"}]), opened.chat.reply_ids("4 is it")
        together = _said(opened.engine, ids, reply)
        monkeypatch.setattr(verify_module, "_ONE_PASS", 0)
        apart = _said(opened.engine, ids, reply)
    assert together[0] == pytest.approx(apart[0], abs=1e-4)
    assert together[1] == pytest.approx(apart[1], abs=1e-6)


def test_a_weight_that_is_no_number_is_wrong_although_both_sides_have_it() -> None:
    one = torch.tensor([1.0, float("inf")])
    assert dict(wrong_weights({"w": one}, {"w": one.bfloat16()}, rounded=False)) == {"w": 0.5}


def test_the_command_says_no_by_its_exit_status(run: Path) -> None:
    done = CliRunner().invoke(app, ["verify", str(run), "--prompts", "1", "--max-tokens", "2", "--json"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["passed"], report["stops"]) == (False, False)


def test_other_weights_than_the_adapters_are_found(run: Path) -> None:
    file = run / "merged" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "down_proj" in name)
    weights[name] = weights[name] + 0.5 * torch.randn_like(weights[name])
    save_file(weights, file, metadata={"format": "pt"})
    result = verified(run)
    assert not result.agrees
    # The engine runs the same other weights: it agrees with the merged model, which does not agree with the adapter.
    assert [check.passed for check in result.checks if "log-prob" in check.name] == [False, True]
    assert f"1 of 21 are not the sum, {name}" in found(result, "merged model: weights")


# What a merge may get wrong, on a base in bfloat16: each maps a weight's name, its base, the adapter's change of it and
# that of another adapter to the weight that a wrong merge would have stored.
WRONG: dict[str, Callable[[str, Tensor, Tensor, Tensor], Tensor]] = {
    "2% less of the adapter": lambda name, base, change, other: base + 0.98 * change,
    "2% more of the adapter": lambda name, base, change, other: base + 1.02 * change,
    "nothing of it": lambda name, base, change, other: base,
    "twice": lambda name, base, change, other: base + 2 * change,
    "not the last layer": lambda name, base, change, other: base + change * (".1." not in name),
    "not one projection": lambda name, base, change, other: base + change * ("0.self_attn.q_proj" not in name),
    "another run's adapter": lambda name, base, change, other: base + other,
    "a base of 8 bits": lambda name, base, change, other: in_bits(base, 8) + change,
    "a base of 4 bits": lambda name, base, change, other: in_bits(base, 4) + change,
    "cut, not rounded": lambda name, base, change, other: cut(base + change),
    "change rounded before it was added": lambda name, base, change, other: (
        base + (change.bfloat16().float() / 8).round() * 8
    ),
    "the wrong sign": lambda name, base, change, other: base - change,
}


def in_bits(weight: Tensor, bits: int) -> Tensor:
    if weight.ndim < 2:
        return weight
    scale = weight.abs().amax(-1, keepdim=True).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (weight / scale).round() * scale


def cut(weight: Tensor) -> Tensor:
    return (weight.float().view(torch.int32) & ~0xFFFF).view(torch.float32)


@pytest.fixture(scope="module")
def coarse_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a base in bfloat16, and beside it an adapter of another."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("coarse")
    base = make_tiny_model(folder / "base")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    make_adapter(base, folder / "other", seed=9)
    run = make_run(base, folder / "run")
    merge(run, load=FLOAT32, max_tokens=4)
    return run


@pytest.fixture(scope="module")
def sums(coarse_run: Path) -> dict[str, Tensor]:
    model = load_model(coarse_run / "adapter", load=FLOAT32).model
    return {name: weight.detach() for name, weight in model.named_parameters()}


def wrongly_merged(fault: str, run: Path) -> dict[str, Tensor]:
    base = load_file(run.parent / "base" / "model.safetensors")
    one, other = changes(run / "adapter"), changes(run.parent / "other")
    nothing = torch.zeros(())
    return {
        name: WRONG[fault](name, weight.float(), one.get(name, nothing), other.get(name, nothing)).to(weight.dtype)
        for name, weight in base.items()
    }


@pytest.mark.parametrize("fault", WRONG)
def test_a_merge_that_went_wrong_in_any_of_these_ways_is_noticed(
    fault: str, coarse_run: Path, sums: dict[str, Tensor]
) -> None:
    right = load_file(coarse_run / "merged" / "model.safetensors")
    assert dict(wrong_weights(sums, right, rounded=False)) == {}
    assert dict(wrong_weights(sums, wrongly_merged(fault, coarse_run), rounded=False)) != {}
    rounded = {name: weight.bfloat16() for name, weight in sums.items()}  # where float32 does not fit into memory
    assert dict(wrong_weights(rounded, right, rounded=True)) == {}
    assert dict(wrong_weights(rounded, wrongly_merged(fault, coarse_run), rounded=True)) != {}


def test_weights_that_are_missing_or_have_another_shape_are_wrong(sums: dict[str, Tensor]) -> None:
    name = "model.norm.weight"
    for other in ({}, {name: sums[name][:-1]}, {name: sums[name] * float("nan")}):
        assert dict(wrong_weights({name: sums[name]}, other, rounded=False)) == {name: 1.0}
    assert dict(wrong_weights({}, {name: sums[name]}, rounded=False)) == {name: 1.0}


def test_verify_says_which_weights_are_not_the_sum(coarse_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(coarse_run, tmp_path / "run"))
    weights = wrongly_merged("2% less of the adapter", coarse_run)
    save_file(weights, run / "merged" / "model.safetensors", metadata={"format": "pt"})
    result = verified(run)
    assert result.agrees is False
    assert "4 of 21 are not the sum" in found(result, "merged model: weights")


def changes(adapter: Path) -> dict[str, Tensor]:
    """What an adapter adds to each weight, computed without PEFT."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    scaling = config["lora_alpha"] / config["r"]
    return {
        key.removeprefix("base_model.model.").replace(".lora_A", ""): scaling * weights[key.replace("_A", "_B")] @ a
        for key, a in weights.items()
        if "lora_A" in key
    }


def found(result: Verified, name: str) -> str:
    return next(check.found for check in result.checks if check.name == name)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 1)) for seed in range(40)])
def test_a_right_merge_is_never_taken_for_a_wrong_one(seed: int, tmp_path: Path) -> None:
    """Models of other shapes, number formats and adapters, from faint to loud."""
    from transformers import AutoModelForCausalLM

    dtype = (torch.bfloat16, torch.float16, torch.float32)[seed % 3]
    base = make_tiny_model(
        tmp_path / "base",
        seed=seed,
        hidden_size=(32, 64, 48)[seed % 3],
        num_hidden_layers=1 + seed % 4,
        tie_word_embeddings=seed % 2 == 0,
    )
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    run = make_run(base, tmp_path / "run")
    fainter = 10.0 ** -(seed % 5)
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    loud = {name: weight * fainter if "lora_B" in name else weight for name, weight in weights.items()}
    save_file(loud, run / "adapter" / "adapter_model.safetensors")
    load = FLOAT32 if seed % 4 else Load(device="cpu", dtype="bfloat16")
    merge(run, load=load, max_tokens=4)
    result = verified(run, load)
    assert [check for check in result.checks[:-2] if check.passed is False] == []
    if fainter >= 0.1 and load is FLOAT32:
        assert result.agrees


@pytest.mark.slow
def test_an_adapter_that_does_next_to_nothing_cannot_be_told_from_its_base(coarse_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(coarse_run, tmp_path / "run"))
    file = run / "adapter" / "adapter_model.safetensors"
    faint = {name: weight * 1e-4 if "lora_B" in name else weight for name, weight in load_file(file).items()}
    save_file(faint, file)
    merge(run, load=FLOAT32, max_tokens=4)
    result = verified(run)
    assert result.agrees is None, result.checks
    assert not result.passed
    assert found(result, "merged model: weights") == "all 21 are the sum, as BF16"
    none = {name: weight * 0 for name, weight in faint.items()}
    save_file(none, file)
    merge(run, load=FLOAT32, max_tokens=4)
    assert verified(run).agrees is None


def test_an_engine_that_runs_other_weights_is_noticed(coarse_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(coarse_run, tmp_path / "run"))
    for wrong in (coarse_run.parent / "base", coarse_run.parent / "other"):
        right, other = (open_engine(each, EngineSettings(load=FLOAT32)) for each in (run, wrong))
        opened = replace(right, engine=other.engine)
        opened.fingerprint = str(wrong)
        result = verify(opened, run, prompts=2, max_tokens=6)
        assert {check.name: check.passed for check in result.checks}["engine: log-probabilities"] is False
        assert {check.passed for check in result.checks if "merged" in check.name} == {True}


def test_a_single_changed_layer_is_not_hidden_by_an_earlier_record(run: Path) -> None:
    """The record belongs to every byte of the weights, not to a sample of them."""
    assert verified(run).agrees
    file = run / "merged" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = bytes([0, 0, 0, 63])
    file.write_bytes(data)
    assert verified(run).agrees is False


def test_another_prompt_template_is_found(run: Path) -> None:
    template = run / "merged" / "chat_template.jinja"
    template.write_text(
        template.read_text(encoding="utf-8").replace("['content'] +", "['content'] + ' ' +"), encoding="utf-8"
    )
    result = verified(run)
    assert [check.passed for check in result.checks if "rendered" in check.name] == [False, False]


def test_what_is_verified_is_not_verified_again_until_it_changes(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = verified(run)
    caplog.clear()
    assert verified(run) == first
    assert caplog.messages == [f"{run} is verified"]
    (run / "verify.json").write_text("{}")
    assert verified(run) == first  # anew


def test_a_run_without_merged_model_is_told_to_merge(tiny_model: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model, tmp_path / "run")
    for reference in (run, run / "adapter", tiny_model):
        with pytest.raises(ModelError, match="no merged model to verify"):
            verified(reference)


def test_tokens_count_up_to_where_two_texts_part() -> None:
    assert alike([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert alike([1, 2, 3, 4], [1, 9, 3, 4]) == (1, 2)
    assert alike([1, 2], [1, 2, 3]) == (2, 3)
