"""The plan: what memory and time depend on, what is chosen where memory is short, and what the command prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from thinktune.cli import app
from thinktune.config import Config, Lora, parse_config
from thinktune.data.packing import packs_of
from thinktune.errors import ConfigError, UsageError
from thinktune.files import write_json_lines
from thinktune.planner import hardware as hardware_module
from thinktune.planner.cost_model import CostModel, cost_model_of
from thinktune.planner.dealing import waiting_seconds
from thinktune.planner.hardware import GIB, Hardware, find_gpu
from thinktune.planner.known_models import TABLE, known_config
from thinktune.planner.memory_model import Batch
from thinktune.planner.model_shape import ModelShape, shape_of
from thinktune.planner.pack_lengths import PackLengths, read_packs
from thinktune.planner.plan import Plan, fit, lighter, plan_as_configured
from thinktune.planner.policy_choice import choose
from thinktune.planner.recompute_policy import Level, RecomputePolicy

BATCH = Batch(tokens=12_000, trained=12_000, attended=8 * 1500**2)
PACKS = PackLengths((Batch(1500, 1400, 1500**2),) * 100, 100, "made up")


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    """Qwen2.5-3B's."""
    from transformers import Qwen2Config

    return shape_of(
        Qwen2Config(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )


def config_with(**train: Any) -> Config:
    return parse_config({"data": {"max_length": 1500}, "lora": {"r": 8}, "train": {"packing": False, **train}})


def cost_on(shape: ModelShape, **changes: Any) -> CostModel:
    return replace(cost_model_of(config_with(), shape, card(80), width=2), **changes)


def card(gib: float, name: str = "h100") -> Hardware:
    return replace(find_gpu(name), memory=int(gib * GIB))


def test_an_adapter_that_training_goes_on_with_counts_by_its_own_rank_and_targets(
    shape: ModelShape, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lora = LoraConfig(r=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), lora).save_pretrained(tmp_path / "adapter")

    def adapter_bytes(lora: dict[str, Any]) -> int:
        return plan_as_configured(parse_config({"lora": lora}), shape, PACKS, card(80), width=2).parts["adapter"]

    same = adapter_bytes({"r": 64, "targets": ["q_proj", "v_proj"]})
    assert adapter_bytes({"r": 8, "init": str(tmp_path / "adapter")}) == same
    assert adapter_bytes({"r": 8}) != same


def test_a_shape_has_the_parameters_of_the_model_it_stands_for(shape: ModelShape) -> None:
    assert shape.parameters == 3_085_938_688  # Qwen2.5-3B's own count
    assert (shape.q, shape.kv, len(shape.linears)) == (2048, 256, 36 * 7)


def test_the_adapter_is_counted_over_its_targets(shape: ModelShape) -> None:
    every, some = cost_on(shape), cost_on(shape, targets=("q_proj", "v_proj"))
    assert every.trained_parameters == 14_966_784  # what PEFT counts for rank 8
    assert some.trained_parameters == 36 * 8 * (2048 + 2048 + 2048 + 256)


@pytest.mark.parametrize("target", ["q_projx", "mlp.q_proj", "lm_head", "proj"])
def test_a_target_that_no_layer_has_is_refused_with_those_they_have(shape: ModelShape, target: str) -> None:
    config = parse_config({"lora": {"targets": ["self_attn.q_proj", target]}})
    with pytest.raises(ConfigError, match=rf"have no {target}\n") as refused:
        cost_model_of(config, shape, card(80), width=2)
    assert refused.value.hint == "they have down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


def test_an_adapter_that_goes_on_has_targets_of_its_own(shape: ModelShape) -> None:
    cost_model_of(parse_config({"lora": {"targets": ["c_attn"], "init": "runs/other"}}), shape, card(80), width=2)


def test_a_quantised_base_takes_the_bytes_of_its_format_and_leaves_the_embeddings(shape: ModelShape) -> None:
    sizes = {name: cost_on(shape, quantize=name).weights() for name in ("none", "fp8", "nf4")}
    assert sizes["none"] == 2 * shape.parameters
    assert sizes["fp8"] == pytest.approx(shape.linear_weights + 2 * shape.others, rel=0.01)
    assert sizes["nf4"] == pytest.approx(shape.linear_weights * 0.516 + 2 * shape.others, rel=0.01)


def test_recomputing_more_takes_less_memory_and_more_time(shape: ModelShape) -> None:
    cost = cost_on(shape)
    peaks, seconds = [], []
    for level in ("none", "mlp", "full"):
        memory = RecomputePolicy((level,) * 36)
        peaks.append(cost.memory(BATCH, memory)["peak"])
        seconds.append(cost.seconds(BATCH, memory))
    assert peaks == sorted(peaks, reverse=True)
    assert seconds == sorted(seconds)
    chunked = cost.memory(BATCH, RecomputePolicy(("full",) * 36, mlp_chunks=4))["peak"]
    offloaded = cost.memory(BATCH, RecomputePolicy(("full",) * 36, mlp_chunks=4, offload=True))["peak"]
    assert peaks[-1] > chunked > offloaded


def test_small_steps_are_run_from_graphs_where_there_is_room_and_large_ones_are_not(shape: ModelShape) -> None:
    policy = RecomputePolicy(("none",) * 36)
    small, large = (Batch(tokens, tokens, tokens * 500) for tokens in (500, 12_000))
    assert cost_on(shape).graphed(small, policy)
    assert not cost_on(shape).graphed(large, policy)
    needed = cost_on(shape).memory(small, policy)["peak"] / GIB
    assert not replace(cost_on(shape), hardware=card(1.05 * needed)).graphed(small, policy)
    assert not cost_on(shape).graphed(small, RecomputePolicy(("full",) * 36, offload=True))
    assert not cost_on(shape, may_graph=False).graphed(small, policy)


@pytest.mark.parametrize(
    ("base", "rank", "dropout", "level", "peak", "rate"),
    [
        ("none", 16, 0.0, "none", 31.30, 20_722),
        ("none", 16, 0.05, "full", 8.67, 8_938),
        ("nf4", 8, 0.0, "full", 4.44, 8_992),
    ],
)
def test_layers_that_are_not_fused_take_what_they_took_on_an_h100(
    shape: ModelShape, base: Any, rank: int, dropout: float, level: Level, peak: float, rate: float
) -> None:
    cost = cost_on(shape, quantize=base, rank=rank, dropout=dropout > 0, may_fuse=False)
    batch, memory = Batch(6000, 6000, 4 * 1500**2), RecomputePolicy((level,) * 36)
    planned = 6000 / (cost.seconds(batch, memory) + cost.optimizer_seconds())
    assert planned == pytest.approx(rate, rel=0.15)
    assert 0.97 * peak < cost.memory(batch, memory)["peak"] / GIB < 1.1 * peak


@pytest.mark.parametrize(
    ("sizes", "rate"),  # of decoder layers alone, not fused, 12 rows of 1,500 tokens, on an H200: bench/families.py
    [((4096, 32, 8, 14336, 32), 13_852), ((2048, 16, 4, 11008, 36), 27_101), ((5120, 40, 10, 17920, 40), 7_431)],
)
def test_layers_of_other_families_that_are_not_fused_take_what_they_took(sizes: tuple[int, ...], rate: float) -> None:
    from transformers import LlamaConfig

    hidden, heads, groups, wide, layers = sizes
    config = LlamaConfig(
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=groups, head_dim=128,
        intermediate_size=wide, num_hidden_layers=layers, vocab_size=1000,
    )  # fmt: skip
    cost = cost_on(shape_of(config), rank=16, may_fuse=False, hardware=card(140, "h200"))
    level: Level = "none"
    seconds = cost.seconds(Batch(18_000, 0, 12 * 1500**2), RecomputePolicy((level,) * layers))
    assert 18_000 / seconds == pytest.approx(rate, rel=0.1)


def test_experts_take_what_qwen3_30b_with_attention_fused_took_on_an_h100() -> None:
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(
        hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
        moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, vocab_size=151936,
    )  # fmt: skip
    lora = parse_config({"lora": {"r": 16, "targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}})
    cost = cost_model_of(lora, shape_of(config), card(80), width=2)
    seconds = cost.seconds(Batch(3000, 3000, 2 * 1500**2), RecomputePolicy(("none",) * 48)) + cost.optimizer_seconds()
    assert 3000 / seconds == pytest.approx(8_931, rel=0.1)


def test_small_steps_without_graphs_take_as_long_as_their_kernels_take_to_start(shape: ModelShape) -> None:
    cost = replace(cost_on(shape), may_fuse=False)
    small, double, large = (
        cost.seconds(Batch(tokens, tokens, tokens * 500), RecomputePolicy(("none",) * 36))
        for tokens in (300, 600, 30_000)
    )
    assert small == pytest.approx(double, rel=0.05)
    assert large > 2 * double


@pytest.mark.parametrize("gib", [60, 24, 12, 9])
def test_what_is_chosen_fits_and_one_layer_less_recomputed_would_not(shape: ModelShape, gib: float) -> None:
    cost = cost_on(shape, hardware=card(gib))
    memory = choose(cost, BATCH, checkpointing="auto")
    assert cost.memory(BATCH, memory)["peak"] <= cost.hardware.memory
    if gib == 60:
        assert memory == RecomputePolicy(("none",) * 36)
    else:
        assert "none" not in memory.levels or memory.levels[-1] == "none"  # recomputed layers come first
        seconds = cost.seconds(BATCH, memory)
        bolder = RecomputePolicy(("none",) * 36)
        assert cost.memory(BATCH, bolder)["peak"] > cost.hardware.memory
        assert seconds > cost.seconds(BATCH, bolder)


def test_what_the_config_says_of_recomputation_holds(shape: ModelShape) -> None:
    cost = cost_on(shape)
    assert choose(replace(cost, hardware=card(70)), BATCH, checkpointing=True).levels == ("full",) * 36
    assert choose(replace(cost, hardware=card(7)), BATCH, checkpointing=False).levels == ("none",) * 36


def test_checkpoints_wait_in_main_memory_where_nothing_else_makes_it_fit(shape: ModelShape) -> None:
    arguments: Any = {"shape": shape, "packs": PACKS, "width": 2}

    def offloaded(gib: float, **train: Any) -> tuple[bool, bool]:
        config = config_with(batch_size=8, **train).model_copy(update={"quantize": "nf4"})
        plan = plan_as_configured(config, hardware=card(gib), **arguments)
        return plan.memory.offload, plan.fits

    assert offloaded(4) == (True, True)
    assert offloaded(7) == (False, True)
    assert offloaded(4, offload_checkpoints=False) == (False, False)
    assert offloaded(7, offload_checkpoints=True) == (True, True)


def test_layers_that_are_not_fused_are_recomputed_all_or_not_at_all(shape: ModelShape) -> None:
    cost = cost_on(shape, may_fuse=False)
    assert not cost.fused
    assert choose(replace(cost, hardware=card(20)), BATCH, checkpointing="auto") == RecomputePolicy(("full",) * 36)
    cpu = replace(cost, hardware=replace(card(20), kind="cpu"))
    assert choose(cpu, BATCH, checkpointing="auto") == RecomputePolicy(("none",) * 36)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"whole": True, "may_fuse": False}, ""),
        ({"hardware": Hardware("a CPU", 20 * GIB, 1e12, 0, 1e11, "", kind="cpu")}, "as on every CPU"),
        ({"width": 4}, "for bfloat16 (load.dtype)"),
        ({"rank": 300}, "for ranks up to 256 (lora.r)"),
        ({"may_fuse": False}, "cannot run its layers"),
    ],
)
def test_what_keeps_layers_from_being_fused_is_said_of_the_config(
    shape: ModelShape, changes: dict[str, Any], why: str
) -> None:
    said = replace(cost_on(shape), **changes).why_not_fused
    assert why in said
    assert bool(why) == bool(said)
    other = replace(cost_on(shape), shape=replace(shape, model_type="gpt2")).why_not_fused
    assert other.startswith("gpt2 is none of the ")


def test_a_cpu_takes_time_for_what_it_moves_and_not_for_products_alone(shape: ModelShape) -> None:
    def seconds(rate: float, bandwidth: float, width: int = 2) -> float:
        hardware = replace(card(80), kind="cpu", bf16=rate, bandwidth=bandwidth)
        return cost_on(shape, hardware=hardware, width=width).seconds(BATCH, RecomputePolicy(("none",) * 36))

    alone = seconds(1e12, 1e20)
    assert 1.3 * alone < seconds(1e12, 1e10) < 2.5 * alone
    assert 1.8 * alone < seconds(0.5e12, 1e20) < 2.01 * alone
    assert seconds(1e12, 2e9, width=4) > seconds(1e12, 2e9)  # attention is in float32 anyway


def test_a_cpu_counts_attention_beside_the_products(shape: ModelShape) -> None:
    cost, policy = (
        cost_on(shape, hardware=replace(card(80), kind="cpu", bandwidth=1e20)),
        RecomputePolicy(("none",) * 36),
    )
    short = cost.seconds(replace(BATCH, attended=0), policy)
    longer = cost.seconds(BATCH, policy) - short
    at_the_rate_of_products = (cost.flops(BATCH) - cost.flops(replace(BATCH, attended=0))) / cost.hardware.bf16
    assert longer > 5 * at_the_rate_of_products


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot share a core on purpose")
def test_a_cpu_that_others_use_is_measured_without_them_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    core = min(cores)
    busy = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"])
    try:
        os.sched_setaffinity(0, [core])
        torch.set_num_threads(1)
        hardware_module._measure.__wrapped__(torch.device("cpu"), torch.float32)
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
        busy.kill()
        busy.wait()
    assert "of this CPU's time was to be had" in caplog.text


def test_an_accumulation_is_folded_as_far_as_it_fits(shape: ModelShape) -> None:
    config = config_with(accumulation=4)
    arguments: Any = {"shape": shape, "packs": PACKS, "width": 2}
    assert plan_as_configured(config, hardware=card(70), **arguments).packs == 4
    assert plan_as_configured(config, hardware=card(5), **arguments).packs == 1  # fits no way: the smallest
    tight = plan_as_configured(config_with(accumulation=64), hardware=card(30), **arguments)
    assert 1 < tight.packs < 64
    assert tight.packs * tight.accumulation == 64


def test_fit_keeps_the_packs_of_a_step_and_takes_the_fastest_base_that_fits(shape: ModelShape) -> None:
    config = config_with(batch_size=8, accumulation=2)
    wide = fit(config, shape, PACKS, card(70), width=2)
    assert (wide.quantize, wide.packs * wide.accumulation, wide.fits) == ("fp8", 16, True)
    ampere = fit(config, shape, PACKS, card(70, "a100"), width=2)
    assert (ampere.quantize, ampere.packs) == ("none", 16)
    small = fit(config, shape, PACKS, card(4, "a100"), width=2)
    assert (small.quantize, small.fits) == ("nf4", True)
    assert "quantize=nf4" in small.overrides(config)
    assert not fit(config, shape, PACKS, card(1), width=2).fits


@pytest.mark.parametrize("train", [{"fused": False}, {"fused": True}])
def test_fit_takes_fp8_only_where_its_products_run_in_fp8(shape: ModelShape, train: dict[str, Any]) -> None:
    config = config_with(batch_size=8, **train)
    hopper, ada = (fit(config, shape, PACKS, card(70, name), width=2) for name in ("h100", "rtx4090"))
    assert hopper.fused == ada.fused == train["fused"]
    assert hopper.quantize == ("fp8" if train["fused"] else "none")
    assert ada.quantize == "none"


def test_an_fp8_base_whose_weights_are_made_whole_is_slower_than_none(shape: ModelShape) -> None:
    def speed(quantize: Any, gpu: str, **lora: Any) -> float:
        config = config_with(batch_size=8).model_copy(update={"quantize": quantize})
        config = config.model_copy(update={"lora": Lora(**{"r": 8, **lora})})
        return plan_as_configured(config, shape, PACKS, card(70, gpu), width=2).tokens_per_second or 0.0

    assert speed("fp8", "h100") > speed("none", "h100")
    assert speed("fp8", "rtx4090") < speed("none", "rtx4090")
    assert speed("fp8", "h100", r=512) < speed("none", "h100", r=512)


def test_dropout_and_large_ranks_stay_fused_and_cost_a_little(shape: ModelShape) -> None:
    def cost(**changes: Any) -> tuple[float, int]:
        changed = cost_on(shape, **changes)
        assert changed.fused
        memory = RecomputePolicy(("none",) * 36)
        return changed.seconds(BATCH, memory), changed.memory(BATCH, memory)["peak"]

    seconds, peak = cost(rank=16)
    dropped, with_dropout = cost(rank=16, dropout=True)
    assert seconds < dropped < 1.1 * seconds
    assert with_dropout == peak
    slower, larger = cost(rank=256)
    assert seconds < slower < 1.3 * seconds
    assert peak < larger
    assert cost(rank=256, dropout=True)[0] > slower
    assert not cost_on(shape, rank=257).fused


@pytest.mark.parametrize("half", ["qwen3_moe", "qwen3_5_text"])
def test_a_model_with_half_of_its_layers_fused_lies_between_both(shape: ModelShape, half: str) -> None:
    policy = RecomputePolicy()
    costs = [cost_on(replace(shape, model_type=each)) for each in ("qwen3", half, "gpt2")]
    times = [cost.seconds(BATCH, policy) for cost in costs]
    kept = [cost.memory(BATCH, policy)["activations"] for cost in costs]
    assert times == sorted(set(times))
    assert kept == sorted(set(kept))
    assert not costs[1].graphed(Batch(100, 100, 100**2), policy)


def test_norms_on_what_halves_add_keep_more(shape: ModelShape) -> None:
    usual, normed = (cost_on(replace(shape, model_type=each)).saved for each in ("qwen3", "olmo3"))
    assert all(normed[level] > usual[level] for level in usual)


def test_examples_that_are_too_long_are_not_counted_as_steps(tiny_model: Path, tmp_path: Path) -> None:
    row = {"prompt": "1 + 1?", "completion": "<think>It is 2.</think> <answer>2</answer>"}
    rows = [{**row, "prompt": "1 + 1? " * (100 if number % 4 else 1) + str(number)} for number in range(80)]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    data = {"source": str(tmp_path / "rows.jsonl"), "max_length": 100}
    config = parse_config({"model": str(tiny_model), "data": data, "train": {"packing": False}})
    assert read_packs(config).count == 20


def test_the_longest_batch_has_the_longest_packs_and_a_sample_stands_for_all() -> None:
    packs = PackLengths((Batch(30, 23, 10**2 + 20**2), Batch(50, 40, 50**2), Batch(5, 4, 5**2)), 30, "")
    assert packs.longest(2) == Batch(80, 63, 10**2 + 20**2 + 50**2)
    assert packs.longest(4).tokens == 85 + 50  # more packs than are known: the longest again
    assert packs.mean(3) == Batch(85, 67, 10**2 + 20**2 + 50**2 + 5**2)


def test_packs_hold_every_example_once() -> None:
    config = parse_config({"data": {"max_length": 64}})
    packs = packs_of([60, 30, 30, 2], config)
    assert sorted(index for pack in packs for index in pack) == [0, 1, 2, 3]
    assert len(packs) == 2
    assert packs_of([60, 30], config_with()) == [[0], [1]]


def test_lighter_plans_come_in_the_promised_order_and_keep_the_packs_of_a_step(shape: ModelShape) -> None:
    first = plan_as_configured(config_with(batch_size=6, accumulation=2), shape, PACKS, card(80), width=2)
    first = replace(first, memory=RecomputePolicy(("none", "none")), packs=6, accumulation=2)
    plan: Plan | None = first
    steps = []
    while plan is not None:
        steps.append((plan.memory.levels[0], plan.memory.mlp_chunks, plan.memory.offload, plan.packs))
        assert plan.packs * plan.accumulation == 12
        plan = lighter(plan)
    assert steps == [
        ("none", 1, False, 6),
        ("mlp", 1, False, 6),
        ("full", 1, False, 6),
        *[("full", chunks, False, 6) for chunks in (2, 4, 8)],
        *[("full", 8, True, rows) for rows in (6, 3, 1)],
    ]
    plain = lighter(replace(first, fused=False, packs=2, accumulation=1))
    assert plain is not None
    assert plain.memory == RecomputePolicy(("full",) * 2)
    assert lighter(plain) == replace(plain, packs=1, accumulation=2)
    assert lighter(replace(first, graphed=True)) == first


def test_a_gpu_is_named_or_sized() -> None:
    assert find_gpu("H100").bf16 == 989e12
    assert find_gpu("16GiB").memory == find_gpu("16").memory < 16 * GIB
    assert not find_gpu("24gb").rated
    with pytest.raises(UsageError, match="not known") as raised:
        find_gpu("h1000")
    assert "rtx4090" in raised.value.hint


@pytest.mark.slow
def test_the_table_of_common_models_has_the_parameters_that_are_published() -> None:
    for entry in json.loads(TABLE.read_text()):
        for name in (entry["names"][0], f"ms:{entry['names'][-1].upper()}"):
            assert shape_of(known_config(name)).parameters == entry["parameters"], name


def test_a_common_model_is_planned_without_a_network_and_by_its_own_config_where_that_is_here(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("qwen.yaml").write_text("model: Qwen/Qwen2.5-3B-Instruct\n")
    told = CliRunner().invoke(app, ["plan", "qwen.yaml", "--gpu", "h100", "--json"])
    assert told.exit_code == 0, told.output
    assert "built-in table" in told.stderr
    plan = json.loads(told.stdout)
    assert plan["parts"]["weights"] == 2 * 3_085_938_688
    assert plan["data"].startswith("not read")
    copytree(tiny_model, "Qwen/Qwen2.5-3B-Instruct")
    own = CliRunner().invoke(app, ["plan", "qwen.yaml", "--gpu", "h100", "--json"])
    assert "built-in table" not in own.stderr
    assert json.loads(own.stdout)["parts"]["weights"] < 10**6
    Path("unknown.yaml").write_text("model: Qwen/Qwen2.5-4B-Instruct\n")
    assert CliRunner().invoke(app, ["plan", "unknown.yaml", "--gpu", "h100"]).exit_code != 0


def test_the_command_reads_the_lengths_of_the_data_and_prints_json(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"model: {tiny_model}\ndata: {{sample: 30, max_length: 512}}\ntrain: {{accumulation: 2}}\n")
    printed = CliRunner().invoke(app, ["plan", str(file), "--gpu", "h100", "--json"])
    assert printed.exit_code == 0, printed.output
    plan = json.loads(printed.stdout)
    assert plan["fits"]
    assert plan["longest"] <= 2 * 512
    assert plan["data"].startswith("30 examples")
    assert plan["parts"]["peak"] < GIB
    assert plan["tokens_per_second"] > 0


def test_the_command_tells_what_several_gpus_are_worth_and_what_to_change(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "Count.", "completion": f"<think>{'1 ' * 30 * 2 ** (at % 6)}</think> 1"} for at in range(60)]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    data = f"{{source: {tmp_path / 'rows.jsonl'}, max_length: 4096}}"
    file = tmp_path / "tiny.yaml"
    file.write_text(f"model: {tiny_model}\ndata: {data}\ntrain: {{batch_size: 1, accumulation: 8, packing: false}}\n")
    call = ["plan", str(file), "--gpu", "h100", "--gpus"]
    plans = [json.loads(CliRunner().invoke(app, [*call, gpus, "--json"]).stdout) for gpus in ("1", "4")]
    assert [plan["gpus"] for plan in plans] == [1, 4]
    assert [plan["packs"] * plan["accumulation"] for plan in plans] == [8, 2]
    assert plans[0]["step_tokens"] == plans[1]["step_tokens"]
    assert plans[1]["efficiency"] < 0.95
    said = CliRunner().invoke(app, [*call, "4"]).stdout
    assert "each of 4 GPUs" in said
    assert f"4 GPUs: {plans[1]['efficiency']:.1%} of 4 times one" in said
    assert "raise train.accumulation" in said


def test_the_command_says_what_to_set_and_what_does_not_fit(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"model: {tiny_model}\ndata: {{source: no/where, sample: 30}}\n")
    table = CliRunner().invoke(app, ["plan", str(file), "--gpu", "1GiB", "--fit"])
    assert table.exit_code == 0, table.output
    assert "not read" in table.stdout
    assert "use: " in table.stdout
    assert "name a GPU" in table.stdout
    small = CliRunner().invoke(app, ["plan", str(file), "--gpu", "1GiB", "train.memory=0.01"])
    assert "does not fit" in small.stdout


def test_several_gpus_take_the_step_of_one_and_equal_packs_cost_only_the_sum_of_gradients(shape: ModelShape) -> None:
    config = config_with(batch_size=8, accumulation=8)
    plans = {gpus: plan_as_configured(config, shape, PACKS, card(80), width=2, gpus=gpus) for gpus in (1, 2, 4)}
    one = plans[1]
    assert (one.efficiency, one.waits) == (1.0, (0.0, 0.0))
    for gpus, plan in plans.items():
        assert (plan.step_tokens, plan.steps, plan.gpus) == (one.step_tokens, one.steps, gpus)
        assert plan.packs * plan.accumulation * gpus == 64
        assert plan.waits[0] == pytest.approx(0, abs=1e-9)
        assert plan.tokens_per_second == pytest.approx(gpus * plan.efficiency * (one.tokens_per_second or 0), rel=0.01)
    assert 0.97 < plans[4].efficiency < plans[2].efficiency < 1.0
    assert plans[4].waits[1] > plans[2].waits[1] > 0


def test_a_step_lasts_as_long_as_its_slowest_gpu() -> None:
    packs = [Batch(tokens, tokens, 0.0) for tokens in (100, 100, 100, 900)]
    assert waiting_seconds(packs, (0.01, 0.0), 4, 2) == pytest.approx(10 - 6)  # 900 and 100 beside 100 and 100
    assert waiting_seconds(packs, (0.01, 0.0), 4, 4) == pytest.approx(9 - 3)


@pytest.mark.parametrize(("kinds", "fused"), [(["attention"] * 2, True), (["mamba", "attention"], False)])
def test_layers_with_a_part_that_is_not_fused_are_not_planned_as_fused(kinds: list[str], fused: bool) -> None:
    from transformers import GraniteMoeHybridConfig

    config = GraniteMoeHybridConfig(
        hidden_size=64, intermediate_size=64, shared_intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=0, layer_types=kinds, mamba_n_heads=4, mamba_d_head=32, vocab_size=99,
    )  # fmt: skip
    settings = parse_config({"lora": {"targets": "auto"}})
    assert cost_model_of(settings, shape_of(config), card(80), width=2).fused == fused


def test_scores_of_a_soft_cap_are_planned_where_no_kernel_does_without_them() -> None:
    from transformers import Gemma2Config

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    kinds = (Gemma2Config(**sizes, head_dim=32, attn_logit_softcapping=cap) for cap in (50.0, None))
    capped, plain = (cost_on(shape_of(kind), hardware=replace(card(80), kind="cpu")) for kind in kinds)
    assert capped.workspace(1000, "none", 1) - plain.workspace(1000, "none", 1) == 24 * 2 * 512 * 1000
    assert capped.saved == plain.saved
