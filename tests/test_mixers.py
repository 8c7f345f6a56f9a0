"""The plan knows what layers with a state keep: many times what attention does, in plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM, FalconH1Config, Lfm2Config, LlamaConfig, Qwen3NextConfig

from thinktune.config import parse_config
from thinktune.planner.cost_model import cost_model_of
from thinktune.planner.hardware import find_gpu
from thinktune.planner.memory_model import Batch
from thinktune.planner.mixers import Mixers, mixers_of
from thinktune.planner.model_shape import shape_of
from thinktune.planner.pack_lengths import PackLengths
from thinktune.planner.plan import plan_as_configured
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.planner.table import _remarks as remarks

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}


def make(config: object, device: str) -> torch.nn.Module:
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def test_a_trace_without_numbers_tells_what_a_state_keeps_of_each_token() -> None:
    config = Qwen3NextConfig(**SMALL, **HEADS, **DELTA, num_experts=4, moe_intermediate_size=32)
    mixers = mixers_of(make(config, "meta"), 64)
    state = make(config, "cpu").model.layers[0].linear_attn
    weights = {parameter.data_ptr() for parameter in state.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    alive: list[object] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        state(torch.randn(1, 640, 64, dtype=torch.bfloat16, requires_grad=True))
    assert abs(mixers.most / (sum(kept.values()) / 640) - 1) < 0.02
    assert mixers.attending == 0.25  # three layers of four have the state in its place
    assert mixers.kept == 0.75 * mixers.most


def test_a_layer_may_have_a_state_beside_its_attention() -> None:
    mixers = mixers_of(make(FalconH1Config(**SMALL, **HEADS, **MAMBA), "meta"), 64)
    assert mixers.attending == 1
    assert mixers.kept == mixers.most > 0


def test_layers_without_such_a_state_count_as_attention() -> None:
    assert mixers_of(make(Lfm2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2), "meta"), 64) == Mixers()


def test_a_delta_rule_in_plain_pytorch_is_planned_slower_than_attention_and_starts_more_for_longer_documents() -> None:
    config = Qwen3NextConfig(**SMALL, **HEADS, **DELTA, num_experts=4, moe_intermediate_size=32)
    shape, policy = shape_of(config), RecomputePolicy(("none",) * 4)
    plain = parse_config({"model": "m", "data": {"source": "d"}, "lora": {"targets": "auto"}})
    cost = cost_model_of(plain, shape, find_gpu("h100"), width=2)
    attention = replace(cost, shape=replace(shape, mixers=Mixers()))
    short, long = Batch(2048, 2048, 2048 * 256), Batch(2048, 2048, 2048 * 2048)
    assert cost.seconds(short, policy) > 1.5 * attention.seconds(short, policy)
    assert cost.seconds(long, policy) > 1.5 * cost.seconds(short, policy)  # a loop over chunks, one after another
    assert attention.seconds(long, policy) < 1.1 * attention.seconds(short, policy)


class Kernel(torch.nn.Module):
    """A state of another package, whose kernel wants a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = torch.nn.Parameter(torch.zeros(1, device="meta"))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no GPU")


def test_a_state_that_cannot_be_traced_is_named_by_the_plan() -> None:
    layer = torch.nn.ModuleDict({"state": Kernel()})
    mixers = mixers_of(torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])}), 64)
    assert mixers == Mixers(unknown=("Kernel",))
    shape = replace(shape_of(LlamaConfig(**SMALL, num_attention_heads=4)), mixers=mixers)
    config = parse_config({"model": "m", "data": {"source": "d"}})
    batch = Batch(512, 512, 512 * 512)
    plan = plan_as_configured(config, shape, PackLengths((batch,), 1, "given"), find_gpu("h100"), width=2)
    assert "what Kernel takes is not known" in plan.line()
    assert plan.not_known() in list(remarks(plan, [], False))
