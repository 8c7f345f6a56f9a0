"""Packed attention computes what a layer asks for, and each document of a pack is trained as if it were alone."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import create_block_mask
from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

from thinktune.data import Example, Tokens
from thinktune.errors import ModelError
from thinktune.planner.adapter_targets import auto_targets
from thinktune.training.collator import PackedCollator
from thinktune.training.fidelity import documents_are_isolated, measure
from thinktune.training.fused import attention_by_document, flex_attention, packed_attention
from thinktune.training.fused.flash_attention import flash_attention
from thinktune.training.fused.package_kernels import kernels_that_train
from thinktune.training.fused.packed_attention import NAME, Local, packed_documents
from thinktune.training.model_with_loss import ModelWithLoss

LENGTHS = [5, 1, 40, 23]
WINDOW = 7
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_heads() -> Heads:
    generator = torch.Generator().manual_seed(0)
    drawn = [2 * torch.randn(1, heads, sum(LENGTHS), 8, generator=generator) for heads in (4, 2, 2)]
    query, key, value = (tensor.requires_grad_() for tensor in drawn)
    return query, key, value


def attend(heads: Heads, mask: Any = None, module: Any = None, **asked: Any) -> torch.Tensor:
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    out, _ = packed_attention.packed_attention(
        module or torch.nn.Identity(), *heads, mask, cu_seq_lens_q=ends, max_length_q=max(LENGTHS),
        document_lengths=LENGTHS, **asked,
    )  # fmt: skip
    return out


def expected(heads: Heads, window: int = 10**6, block: int = 10**6, scaling: float = 8**-0.5, **asked: Any) -> Any:
    """All scores of the pack at once, [1, tokens, heads, size]."""
    query, key, value = heads
    key, value = (tensor.repeat_interleave(2, 1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if (cap := asked.get("softcap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    document = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    place = torch.cat([torch.arange(length) for length in LENGTHS])
    ahead = place[:, None] - place
    seen = (
        (document[:, None] == document) & (ahead >= 0) & (ahead < window) & (place[:, None] // block == place // block)
    )
    weights = scores.masked_fill(~seen, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if (sinks := asked.get("s_aux")) is not None:
        total = total + sinks.exp()[None, :, None, None]
    return (weights / total @ value).transpose(1, 2)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, inputs: Any) -> None:
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


ASKED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a scale": {"scaling": 0.3},
    "a window": {"sliding_window": WINDOW},
    "a window of one": {"sliding_window": 1},
    "a soft cap": {"softcap": 2.0},
    "sinks": {"s_aux": torch.tensor([1.0, -2.0, 0.0, 4.0])},
    "all of it": {"sliding_window": WINDOW, "softcap": 2.0, "s_aux": torch.ones(4), "scaling": 0.3},
}


@pytest.mark.parametrize("part", [512, 8], ids=["whole documents", "parts of documents"])
@pytest.mark.parametrize("case", ASKED)
def test_attention_is_that_of_all_scores_with_its_gradient(
    case: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_by_document, "_PART", part)
    heads, asked = make_heads(), dict(ASKED[case])
    inputs: list[torch.Tensor] = list(heads)
    if "s_aux" in asked:
        asked["s_aux"] = asked["s_aux"].clone().requires_grad_()
        inputs.append(asked["s_aux"])
    formula = {**asked, "window": asked.get("sliding_window", 10**6)}
    assert_same(attend(heads, **asked), expected(heads, **formula), inputs)


def test_a_window_that_only_the_mask_tells_is_kept() -> None:
    heads = make_heads()
    assert_same(attend(heads, Local(WINDOW)), expected(heads, window=WINDOW), heads)


def test_a_layer_and_a_mask_that_disagree_are_refused() -> None:
    with pytest.raises(ModelError, match="window of 7 tokens and a mask of 9"):
        attend(make_heads(), Local(9), sliding_window=7)


def test_a_layer_that_attends_in_blocks_starts_them_with_each_document() -> None:
    config = transformers.Llama4TextConfig(num_hidden_layers=1, layer_types=["chunked_attention"])
    layer = SimpleNamespace(layer_idx=0, config=config)
    heads = make_heads()
    assert_same(attend(heads, Local(WINDOW), layer), expected(heads, block=WINDOW), heads)


@contextmanager
def reference_kernels() -> Iterator[None]:
    """Give the operators of flash attention, which are for GPUs, the CPU kernels that their contract describes.

    The backward one knows of the forward pass its output and the logarithm of its sums alone.
    """

    def scores(query: Any, key: Any, ends: Any, scale: float, left: int) -> Any:
        grouped = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        document = torch.bucketize(torch.arange(len(query)), ends[1:].long(), right=True)
        ahead = torch.arange(len(query))[:, None] - torch.arange(len(query))
        seen = (document[:, None] == document) & (ahead >= 0) & (ahead <= (left if left >= 0 else len(query)))
        return torch.einsum("qhd,khd->hqk", query, grouped).mul(scale).masked_fill(~seen, -torch.inf)

    def forward(q, k, v, ends, _, __, ___, dropout, causal, debug, *, scale, window_size_left, window_size_right, **no):  # type: ignore[no-untyped-def]
        assert (dropout, causal, debug, window_size_right) == (0.0, window_size_left < 0, False, 0)
        all_scores = scores(q, k, ends, scale, window_size_left)
        out = torch.einsum("hqk,khd->qhd", all_scores.softmax(-1), v.repeat_interleave(q.shape[1] // k.shape[1], 1))
        empty = torch.empty(0)
        return out, all_scores.logsumexp(-1), empty.clone(), empty.clone(), empty.clone()

    def backward(g, q, k, v, out, lse, ends, _, __, ___, dropout, causal, rng, no, *, scale, window_size_left, **__k):  # type: ignore[no-untyped-def]
        groups = q.shape[1] // k.shape[1]
        shares = (scores(q, k, ends, scale, window_size_left) - lse[..., None]).exp()
        g_shares = torch.einsum("qhd,khd->hqk", g, v.repeat_interleave(groups, 1))
        g_scores = shares * (g_shares - (g * out).sum(-1).t()[..., None]) * scale
        of_keys = torch.einsum("hqk,qhd->khd", g_scores, q), torch.einsum("hqk,qhd->khd", shares, g)
        g_k, g_v = (each.unflatten(1, (-1, groups)).sum(2) for each in of_keys)
        return torch.einsum("hqk,khd->qhd", g_scores, k.repeat_interleave(groups, 1)), g_k, g_v

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_flash_attention_takes_sinks_into_its_output_and_its_sums(window: int | None, with_sinks: bool) -> None:
    heads = make_heads()
    sinks = torch.tensor([1.0, -2.0, 0.0, 4.0], requires_grad=True) if with_sinks else None
    ends = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    with reference_kernels():
        q, k, v = (tensor[0].transpose(0, 1) for tensor in heads)
        out = flash_attention(q, k, v, ends, max(LENGTHS), window=window, sinks=sinks, scaling=0.3)
        inputs = [*heads, *([] if sinks is None else [sinks])]
        assert_same(out[None], expected(heads, window=window or 10**6, scaling=0.3, s_aux=sinks), inputs)


CAPS: dict[str, dict[str, Any]] = {
    "a soft cap": {"softcap": 2.0},
    "all of it": {"window": WINDOW, "softcap": 2.0, "scaling": 0.3},
    "wide heads": {"scaling": 0.3},
}


@pytest.mark.parametrize("case", CAPS)
def test_flex_attention_is_told_masks_and_scores_with_their_gradient(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)  # trains on GPUs alone
    heads, asked = make_heads(), {"window": None, "softcap": None, "scaling": None} | CAPS[case]
    out = flex_attention.attend(*heads, LENGTHS, **asked).transpose(1, 2)
    assert_same(out, expected(heads, **CAPS[case]), heads)


@pytest.mark.parametrize("window", [None, 7, 128, 200])
def test_blocks_that_flex_attention_leaves_out_or_takes_whole_are_those_of_the_mask(window: int | None) -> None:
    lengths = (5, 300, 128, 1, 270)
    ours = flex_attention.block_mask(lengths, window, torch.device("cpu"))
    theirs = create_block_mask(ours.mask_mod, None, None, sum(lengths), sum(lengths), device="cpu")
    for kind in ("kv", "full_kv"):
        assert chosen_blocks(ours, kind) == chosen_blocks(theirs, kind)


def chosen_blocks(mask: Any, kind: str) -> list[set[int]]:
    counts, indices = (getattr(mask, f"{kind}_{name}")[0, 0].tolist() for name in ("num_blocks", "indices"))
    return [set(row[:count]) for count, row in zip(counts, indices, strict=True)]


# Families, each for a mechanism of its own; documents are longer than every window.

LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [6.0] * 4,
    "original_max_position_embeddings": 40,
}  # fmt: skip
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip
TWO_KINDS = ["sliding_attention", "full_attention"]
LINEAR = ["linear_attention", "full_attention"]
EXAMPLE = Example((), "", "", 1, "")
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a window": ("Mistral", {"sliding_window": 24}, NAME),
    "windows in some layers": ("Gemma3", {"sliding_window": 24, "layer_types": TWO_KINDS}, NAME),
    "a soft cap": ("Gemma2", {"sliding_window": 24, "layer_types": TWO_KINDS, "attn_logit_softcapping": 3.0}, NAME),
    "sinks": ("GptOss", {"sliding_window": 24, "layer_types": TWO_KINDS, **EXPERTS}, NAME),
    "blocks": ("Llama4", {"attention_chunk_size": 24, "layer_types": ["chunked_attention", "full_attention"],
                          "no_rope_layers": [1, 0], "moe_layers": [], "intermediate_size_mlp": 64}, NAME),
    "queries scaled by position": ("Llama4", {"floor_scale": 20, "layer_types": ["full_attention"] * 2,
                                              "no_rope_layers": [1, 0], "moe_layers": [], "intermediate_size_mlp": 64},
                                   NAME),
    "ends that layers do not pass on": ("StableLm", {}, NAME),
    "two sets of frequencies": ("Llama", {"rope_parameters": LONG_ROPE}, NAME),
    "frequencies by length": ("Llama", {"rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 50}, NAME),
    "short convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"]}, NAME),
    "Mamba beside attention": ("FalconH1", {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5, **MAMBA}, NAME),
    "a gated delta rule": ("Qwen3_5", {"layer_types": LINEAR, "linear_num_value_heads": 2, "linear_num_key_heads": 2,
                                       "linear_key_head_dim": 8, "linear_value_head_dim": 8}, NAME),
    "linear attention": ("MiniMax", {"layer_types": LINEAR, "block_size": 16, "sliding_window": None, **EXPERTS}, NAME),
    "a recurrent unit": ("RecurrentGemma", {"lru_width": 32, "attention_window_size": 24,
                                            "block_types": ["recurrent", "attention"]}, NAME),
    "masks from the states": ("Doge", {"sliding_window": None}, "eager"),
    "positions in the scores": ("Bloom", {"n_layer": 2, "n_head": 4}, "eager"),
    "attention of its own": ("Falcon", {"head_dim": None, "num_kv_heads": 2, "new_decoder_architecture": True}, "sdpa"),
}  # fmt: skip


def make_model(kind: str, settings: dict[str, Any]) -> Any:
    """A tiny random model with an adapter, with weights so large that every part matters."""
    sizes = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "vocab_size": 300,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    names = [f"{kind}TextConfig", f"{kind}Config"]
    config_class = next(found for name in names if (found := getattr(transformers, name, None)) is not None)
    told = {**sizes, **settings}
    config = config_class(**{name: value for name, value in told.items() if name != "head_dim" or value is not None})
    generator = torch.Generator().manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.3 / weight.shape[-1] ** 0.5)
            elif name.endswith("sinks"):
                weight.copy_(torch.randn(weight.shape, generator=generator))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=list(auto_targets(model))))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def make_documents(lengths: list[int]) -> list[Tokens]:
    generator = torch.Generator().manual_seed(2)
    drawn = [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]
    return [Tokens(array("i", ids), len(ids) // 3, EXAMPLE) for ids in drawn]


@pytest.mark.parametrize("case", FAMILIES)
def test_a_pack_is_trained_as_its_documents_alone_in_the_untouched_model(case: str) -> None:
    kind, settings, attention = FAMILIES[case]
    model = make_model(kind, settings)
    documents = make_documents([30, 61, 20, 75])
    with_loss = ModelWithLoss(model)
    before = model.config._attn_implementation
    with packed_documents(model.get_base_model()) as chosen:
        assert chosen == attention
        assert documents_are_isolated(model, documents)
        for pack in (documents, documents[1:2]):
            gap = measure(with_loss, pack, torch.float32)
            assert gap.loss < 1e-5, case
            assert gap.gradient < 5e-5, case
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("case", ["short convolutions", "a soft cap", "ends that layers do not pass on"])
def test_layers_computed_again_run_on_the_documents_that_they_ran_on(case: str) -> None:
    model = make_model(*FAMILIES[case][:2])
    inputs = PackedCollator(make_documents([30, 61, 20]))([{"documents": [0, 1, 2]}])
    with_loss = ModelWithLoss(model)
    model.train()
    seen = []
    with packed_documents(model.get_base_model()):
        for again in (False, True):
            if again:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            seen.append(torch.autograd.grad(with_loss(**inputs), with_loss.trained))
    torch.testing.assert_close(*seen)


def test_a_layer_with_a_state_takes_documents_of_like_length_together() -> None:
    model = make_model(*FAMILIES["short convolutions"][:2])
    shapes: list[tuple[int, ...]] = []
    projection = next(module for name, module in model.named_modules() if name.endswith("conv.in_proj"))
    projection.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[:2])))
    inputs = PackedCollator(make_documents([30, 61, 20, 75]))([{"documents": [0, 1, 2, 3]}])
    with_loss = ModelWithLoss(model)
    with packed_documents(model.get_base_model()):
        shapes.clear()
        with_loss(**inputs)
    assert shapes == [(2, 75), (2, 30)]


class Untrainable(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(_: Any, __: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("incorrect results with this Triton\nand more")


@pytest.mark.parametrize("trains", [True, False])
def test_a_kernel_of_a_package_that_does_not_train_is_put_aside_and_that_is_said(
    trains: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(*FAMILIES["a gated delta rule"][:2])
    modeling = sys.modules[type(model.get_base_model()).__module__]
    plain = modeling.torch_chunk_gated_delta_rule
    package = SimpleNamespace(
        chunk_gated_delta_rule=lambda q, k, v, *_, **__: (v.clone() if trains else Untrainable.apply(v), None)
    )
    fla = SimpleNamespace(ops=SimpleNamespace(gated_delta_rule=package))
    monkeypatch.setitem(sys.modules, "fla", fla)
    taken = use_kernel_func_from_hub_with_fallback("chunk_gated_delta_rule", "fla")(plain)
    monkeypatch.setattr(modeling, plain.__name__, taken)
    with kernels_that_train(model):
        assert modeling.torch_chunk_gated_delta_rule is (taken if trains else plain)
    assert modeling.torch_chunk_gated_delta_rule is taken
    assert ("do not train here" in caplog.text) == ("with this Triton" in caplog.text) == (not trains)


def test_layers_that_run_a_document_at_a_time_do_so_or_fail_where_no_lengths_are_told() -> None:
    model = make_model(*FAMILIES["short convolutions"][:2]).get_base_model()
    documents = {"cu_seq_lens_q": torch.tensor([0, 4, 8]), "max_length_q": 4, "document_lengths": []}
    with packed_documents(model), pytest.raises(RuntimeError, match="CUDA graph"):
        model.base_model(input_ids=torch.arange(3, 11)[None], use_cache=False, **documents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_that_leaks_into_a_long_document_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinktune.training.fused.document_by_document._has_state", lambda _: False)
    kind, settings, _ = FAMILIES["short convolutions"]
    model = make_model(kind, settings).to(dtype)
    with packed_documents(model.get_base_model()):
        assert not documents_are_isolated(model, make_documents([60, 400]))


def test_what_many_layers_make_of_a_rounding_is_no_leak() -> None:
    model = make_model("Qwen2", {"num_hidden_layers": 48}).to(torch.bfloat16)

    def round_packs_otherwise(_: object, __: object, states: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(states.shape, generator=torch.Generator().manual_seed(0)) - 0.5
        return (states * (1 + noise / 2**7)).to(states.dtype) if states.shape[1] > 400 else states

    base = model.get_base_model()
    base.model.layers[0].register_forward_hook(round_packs_otherwise)
    with packed_documents(base):
        assert documents_are_isolated(model, make_documents([60, 400]))
