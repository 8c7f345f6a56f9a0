"""What only a GPU can show: its kernels, its memory. `make test-gpu` runs these; CI has no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import make_tiny_model, make_tiny_tokenizer
from test_dpo import dpo_config, pair_rows
from test_engine_hybrids import FAMILIES, make, requests_of
from test_engine_hybrids import answers as tokens_of
from test_engine_sampling import Row
from test_fidelity import make_family
from test_fused_families import FAMILIES as FUSED_FAMILIES
from test_fused_families import SIZES
from test_fused_layers import gradients_of
from test_reinforce import reinforced
from thinktune.config import Load, Sampling
from thinktune.data import prepare
from thinktune.files import write_json_lines
from thinktune.inference.engines import EngineSettings, Request, open_engine
from thinktune.inference.engines.hf.cuda_graph import Recorder
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.hf.sampler import Sampler, row_noise
from thinktune.models import load_model
from thinktune.planner.cost_model import CostModel
from thinktune.planner.pack_lengths import measure_packs
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.adapter import adapter_to_train
from thinktune.training.collator import PackedCollator
from thinktune.training.fused import flex_attention
from thinktune.training.fused.kernels.decode_attention import decode_attention
from thinktune.training.fused.packed_attention import packed_attention, packed_documents
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.out_of_memory import free_memory_of_the_past
from thinktune.training.plan import resolve_plan
from thinktune.training.prepare_model import set_up
from training import adapter_of, make_config, metrics_of, quietly

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
BFLOAT16 = {"dtype": "bfloat16", "device": DEVICE}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small, and of a width that every kernel takes."""
    folder = tmp_path_factory.mktemp("models") / "small"
    return make_tiny_model(folder, hidden_size=256, intermediate_size=512, num_hidden_layers=4)


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in metrics_of(run) if "loss" in line]


@pytest.mark.parametrize("quantize", ["none", "fp8", "int8", "nf4"])
def test_a_training_over_any_base_is_fused_learns_and_keeps_its_adapter_in_float32(
    model: Path, tmp_path: Path, quantize: str
) -> None:
    run = tmp_path / "run"
    quietly(make_config(model, run, load=BFLOAT16, quantize=quantize, train={"epochs": 4}))
    assert json.loads((run / "plan.json").read_text())["plan"]["fused"]
    losses = losses_of(run)
    assert losses[-1] < losses[0] - 0.1
    assert {weight.dtype for weight in adapter_of(run).values()} == {torch.float32}
    ids = torch.arange(3, 60, device=DEVICE)[None]
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(DEVICE)
    plain = base(ids).logits
    tuned = PeftModel.from_pretrained(base, run / "adapter")(ids).logits
    # In bfloat16 a single position may be 16% from float32 in either of them.
    merged = load_model(run, load=Load(dtype="float32", device=DEVICE)).model(ids).logits
    assert (merged - tuned).norm() < 1e-3 * (tuned - plain).norm()


@pytest.mark.parametrize("family", sorted(FUSED_FAMILIES))
def test_a_family_is_fused_agrees_with_its_own_layers_and_learns(family: str, tmp_path: Path) -> None:
    kind, own = FUSED_FAMILIES[family]
    tokenizer = make_tiny_tokenizer()
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes | own)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    train = {"epochs": 4, "packing": family != "qwen3_5"}
    quietly(make_config(tmp_path, tmp_path / "run", load=BFLOAT16, lora={"targets": "auto"}, train=train))
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["plan"]["fused"]
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("recomputed", [False, True])
def test_experts_with_adapters_learn_within_the_memory_that_was_planned(tmp_path: Path, recomputed: bool) -> None:
    sizes = {"hidden_size": 1024, "head_dim": 64, "num_experts": 32, "num_experts_per_tok": 2, "num_hidden_layers": 4}
    model = make_family(tmp_path / "model", "Qwen3Moe", **sizes, moe_intermediate_size=512)
    lora = {"targets": "auto", "experts": True}
    train = {"epochs": 4, "learning_rate": 1e-3, "gradient_checkpointing": recomputed}
    record = quietly(make_config(model, tmp_path / "run", load=BFLOAT16, lora=lora, train=train))
    losses = losses_of(tmp_path / "run")
    assert losses[-1] < losses[0]
    print(f"{record['peak_memory_gib']} GiB, {record['predicted_memory_gib']} predicted, {record['tokens_per_second']}")
    assert record["peak_memory_gib"] < 1.25 * record["predicted_memory_gib"]


@pytest.mark.parametrize("lengths", [[96] * 4, [19, 2, 300, 64], [1500, 1500], [700, 1, 1300]])
def test_packed_documents_get_the_hidden_states_they_get_alone(model: Path, lengths: list[int]) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(DEVICE)
    ids = torch.randint(3, 300, (1, sum(lengths)), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    batch = {
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None].to(DEVICE),
        "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32),
        "max_length_q": max(lengths),
        "document_lengths": lengths,
        "repeats": len(set(lengths)) == 1,
    }
    with packed_documents(loaded):
        together = loaded.model(ids, use_cache=False, **batch).last_hidden_state[0].split(lengths)
    for document, states in zip(ids[0].split(lengths), together, strict=True):
        alone = loaded.model(document[None]).last_hidden_state[0]
        assert (states - alone).norm() < 0.02 * alone.norm()


@pytest.mark.parametrize("size", [64, 256, 512])
@pytest.mark.parametrize(
    "asked",
    [{}, {"sliding_window": 100}, {"sinks": 1.0}, {"sliding_window": 100, "sinks": 1.0}, {"softcap": 3.0}],
    ids=str,
)
def test_attention_that_asks_for_more_is_what_it_is_in_float32(asked: dict[str, Any], size: int) -> None:
    lengths = [130, 7, 700]
    generator = torch.Generator(DEVICE).manual_seed(0)
    drawn = [torch.randn(1, sum(lengths), heads, size, generator=generator, device=DEVICE) for heads in (8, 2, 2, 8)]
    seen = []
    for dtype in (torch.float32, torch.bfloat16):
        *inputs, weights = (tensor.bfloat16().to(dtype).transpose(1, 2).requires_grad_() for tensor in drawn)
        given = dict(asked)
        if given.pop("sinks", None):
            given["s_aux"] = torch.linspace(-2, 3, 8, device=DEVICE).to(dtype).requires_grad_()
        out, _ = packed_attention(
            torch.nn.Identity(), inputs[0], inputs[1], inputs[2], max_length_q=700,
            cu_seq_lens_q=torch.tensor([0, 130, 137, 837], dtype=torch.int32, device=DEVICE),
            document_lengths=lengths, **given,
        )  # fmt: skip
        inputs += [given["s_aux"]] if "s_aux" in given else []
        seen.append([out, *torch.autograd.grad((out * weights.detach().transpose(1, 2)).sum(), inputs)])
    for exact, rounded in zip(*seen, strict=True):
        assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize(("heads", "capped"), [((8, 4, 256), True), ((16, 8, 128), True), ((8, 2, 512), False)])
def test_soft_caps_and_wide_heads_have_a_kernel(heads: tuple[int, int, int], capped: bool) -> None:
    query, key = (torch.empty(1, count, 8, heads[2], dtype=torch.bfloat16, device=DEVICE) for count in heads[:2])
    assert flex_attention.is_taken(query, key, key, capped=capped)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Gemma3", {"sliding_window": 64}),
        ("Gemma2", {"sliding_window": 64, "attn_logit_softcapping": 5.0}),
        ("GptOss", {"sliding_window": 64, "num_local_experts": 2, "num_experts_per_tok": 1}),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    ],
)
def test_families_whose_layers_ask_for_more_are_trained(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    folder = make_family(tmp_path / "model", kind, hidden_size=64, head_dim=16, **settings)
    run = make_config(
        folder, tmp_path / "run", load=BFLOAT16, data={"sample": 6, "eval_fraction": 0}, lora={"targets": "auto"},
        train={"max_steps": 2, "save_every": 2},
    )  # fmt: skip
    assert quietly(run)["steps"] == 2


def test_checkpoints_in_main_memory_change_no_gradient(model: Path, tmp_path: Path) -> None:
    config = make_config(model, tmp_path / "run", load=BFLOAT16)
    loaded = load_model(config.model, load=config.load)
    examples = prepare(config, loaded.chat).train
    inputs = PackedCollator(examples)([{"documents": list(range(len(examples)))}])
    inputs = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in inputs.items()}

    def gradients(tuned: Any, memory: RecomputePolicy) -> Iterator[torch.Tensor]:
        with set_up(tuned, loaded, replace(plan, memory=memory)):
            ModelWithLoss(tuned)(**inputs).backward()
        for parameter in tuned.parameters():
            if parameter.grad is not None:
                yield parameter.grad.flatten()
                parameter.grad = None

    with adapter_to_train(loaded, config) as tuned:
        packs = measure_packs(examples, [[index] for index in range(len(examples))])
        plan = resolve_plan(tuned, config, loaded, packs)
        kept = torch.cat([*gradients(tuned, RecomputePolicy(("full",)))])
        offloaded = torch.cat([*gradients(tuned, RecomputePolicy(("full",), offload=True))])
    assert kept.norm() > 0
    assert (offloaded - kept).norm() < 1e-3 * kept.norm()


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_losses_of_log_probabilities_are_the_same_on_fused_layers(model: Path, tmp_path: Path, method: str) -> None:
    config = make_config(model, tmp_path / "run", load=BFLOAT16, data={"eval_fraction": 0})
    loaded = load_model(config.model, load=config.load)
    examples = prepare(config, loaded.chat).train
    inputs = PackedCollator(examples)([{"documents": list(range(len(examples)))}])
    inputs = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in inputs.items()}
    with adapter_to_train(loaded, config) as tuned:
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        plan = resolve_plan(tuned, config, loaded, measure_packs(examples, [[index] for index in range(len(examples))]))
        assert plan.fused
        found = []
        for fused in (False, True):
            with set_up(tuned, loaded, replace(plan, fused=fused)):
                found.append(gradients_of(ModelWithLoss(tuned), inputs, method))
    (expected, gradients), (loss, ours) = found
    assert loss == pytest.approx(expected, rel=0.02)
    assert 0 < (ours - gradients).norm() < 0.05 * gradients.norm()


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_preferences_and_rewards_are_trained_on_fused_layers(model: Path, tmp_path: Path, method: str) -> None:
    train = {"max_steps": 2, "learning_rate": 1e-3, "pack_length": 512}
    if method == "dpo":
        write_json_lines(tmp_path / "pairs.jsonl", pair_rows())
        run = dpo_config(model, tmp_path / "run", tmp_path / "pairs.jsonl", load=BFLOAT16, train=train)
    else:
        run = reinforced(model, tmp_path / "run", steps=2, load=BFLOAT16)
    quietly(run)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["plan"]["fused"]
    first, last = metrics_of(tmp_path / "run")[:2]
    if method == "dpo":
        assert first["loss"] == pytest.approx(0.6931, abs=0.02)
        assert abs(first["dpo/chosen"]) < 0.05
    else:
        assert first["rl/mismatch"] < 0.05
        assert first["rl/groups"] == last["rl/groups"] == 2


@pytest.mark.parametrize(("quantize", "dropout"), [("none", 0.0), ("none", 0.1), ("fp8", 0.0), ("nf4", 0.0)])
def test_a_training_of_small_steps_is_run_from_graphs_to_the_same_losses(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    quantize: str,
    dropout: float,
) -> None:
    caplog.set_level("INFO", "thinktune")

    def train(run: Path) -> tuple[bool, list[float]]:
        settings = {"lora": {"r": 4, "alpha": 8, "dropout": dropout}, "train": {"packing": False, "batch_size": 3}}
        quietly(make_config(model, run, load=BFLOAT16, quantize=quantize, **settings))
        return json.loads((run / "plan.json").read_text())["plan"]["graphed"], losses_of(run)

    graphed, from_graphs = train(tmp_path / "graphs")
    assert "without CUDA graphs" not in caplog.text
    monkeypatch.setattr(CostModel, "graphed", lambda *_: False)
    plain, one_by_one = train(tmp_path / "kernels")
    assert (graphed, plain) == (True, False)
    assert from_graphs == pytest.approx(one_by_one, rel=0.01)


def test_a_training_for_which_memory_is_short_goes_on_with_less(model: Path, tmp_path: Path) -> None:
    # So many rows that most of the memory is theirs, and not that of cuBLAS.
    settings = {
        "data": {"sample": 160},
        "train": {"packing": False, "batch_size": 128, "max_steps": 4, "on_oom": "retry"},
    }
    torch.cuda.reset_peak_memory_stats()
    ample = quietly(make_config(model, tmp_path / "ample", load=BFLOAT16, **settings))
    enough = torch.cuda.max_memory_allocated()
    free_memory_of_the_past()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * enough / total)
    try:
        short = quietly(make_config(model, tmp_path / "short", load=BFLOAT16, **settings))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert short["setup"] != ample["setup"]
    assert short["steps"] == ample["steps"] == 4
    assert losses_of(tmp_path / "short") == pytest.approx(losses_of(tmp_path / "ample"), rel=0.01)


def answers(model: Path, device: str, sampling: Sampling) -> dict[str, tuple[int, ...]]:
    with open_engine(model, EngineSettings("transformers", Load(dtype="float32", device=device))) as opened:
        texts = [f"{at} + {at * at}" for at in range(30)]
        asked = [Request(text, opened.chat.prompt_ids([{"role": "user", "content": text}]), sampling) for text in texts]
        return {each.request_id: tuple(each.token_ids) for each in opened.engine.generate(asked)}


@pytest.mark.parametrize(("temperature", "different"), [(0.0, 0), (0.8, 2)])
def test_the_transformers_engine_writes_what_it_writes_on_a_cpu(
    model: Path, temperature: float, different: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to noise that falls between two tokens where rounding differs."""
    caplog.set_level("INFO", logger="thinktune")
    sampling = Sampling(temperature=temperature, top_p=0.9, repetition_penalty=1.1, max_tokens=90, stop=())
    ours, expected = answers(model, DEVICE, sampling), answers(model, "cpu", sampling)
    assert ours.keys() == expected.keys()
    assert sum(ours[name] != expected[name] for name in ours) <= different
    assert "without a CUDA graph" not in caplog.text


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_state_is_carried_by_a_graph_as_by_single_kernels(kind: str, model: Path) -> None:
    engine = TransformersEngine(make(kind, **FAMILIES[kind]).to(DEVICE), AutoTokenizer.from_pretrained(model), [])
    requests = requests_of([1, 40, 17, 17, 3], max_tokens=70)
    found, recorder = tokens_of(engine.generate(requests)), engine.decoder.recorder
    assert recorder is not None
    assert recorder.works == ("num_experts" not in FAMILIES[kind])  # the loop over experts asks the GPU for numbers
    engine._decoder = replace(engine.decoder, recorder=None)
    assert tokens_of(engine.generate(requests)) == found


def test_a_model_that_asks_the_gpu_for_a_number_decodes_without_a_graph(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rotary = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}  # their frequencies follow the longest row
    model = make_tiny_model(tmp_path / "model", rope_parameters=rotary)
    sampling = Sampling(max_tokens=16, stop=())
    with caplog.at_level("DEBUG", logger="thinktune"):
        ours = answers(model, DEVICE, sampling)
    assert caplog.text.count("without a CUDA graph") == 1
    assert ours == answers(model, "cpu", sampling)


def test_a_wide_nucleus_is_drawn_from_as_on_a_cpu() -> None:
    logits = torch.randn(64, 50_000, generator=torch.Generator().manual_seed(0))

    def pick(device: str) -> torch.Tensor:
        rows = [Row(Sampling(temperature=0.8, top_p=0.9), row_noise(0, f"r{at}", 0)) for at in range(len(logits))]
        ids, sound = Sampler(rows, logits.shape[1], torch.device(device)).pick(logits.to(device, copy=True))
        assert sound.all()
        return ids.cpu()

    assert (pick(DEVICE) != pick("cpu")).sum() <= 2


def test_attention_of_a_decoded_token_is_replayed_for_the_columns_that_follow() -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    drawn = torch.randn(300, 15, 64, generator=generator, device=DEVICE).bfloat16()
    cache = torch.randn(2, 300, 3, 200, 64, generator=generator, device=DEVICE).bfloat16()
    keys, values = cache.clone()
    query, key, value = (each.transpose(0, 1) for each in drawn.split([9, 3, 3], 1))
    starts, column = torch.randint(0, 90, (300,), generator=generator, device=DEVICE), torch.tensor([99], device=DEVICE)

    def attend() -> torch.Tensor:
        return decode_attention(query, key, value, keys, values, starts, column, 0.125)

    recorded = Recorder(torch.device(DEVICE)).record(attend)
    assert recorded is not None
    graph, found = recorded
    for at in (99, 100, 101, 180):
        column.fill_(at)
        graph.replay()
        cache[:, :, :, at] = torch.stack(drawn.split([9, 3, 3], 1)[1:])
        mask = (torch.arange(at + 1, device=DEVICE) >= starts[:, None])[:, None, None]
        own_keys, own_values = cache[..., : at + 1, :].float().repeat_interleave(3, 2)
        expected = torch.nn.functional.scaled_dot_product_attention(
            drawn[:, :9, None].float(), own_keys, own_values, attn_mask=mask, scale=0.125
        )[:, :, 0]
        assert (found.float() - expected).norm() < 0.01 * expected.norm()
