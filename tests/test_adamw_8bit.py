"""The optimizer with states in 8 bits is bitsandbytes' own, without its waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes")

from bitsandbytes.optim import AdamW
from transformers import TrainingArguments

from thinktune.training.adamw_8bit import AdamW8bit
from thinktune.training.trainer import ThinkTrainer


def trained(kind: Any) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Step five times on two parameters, one of them too small for 8 bits, resumed from its state after two steps."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(128, 64, generator=draw), torch.randn(10, generator=draw), torch.randn(8, generator=draw)]
    parameters = [torch.nn.Parameter(weight) for weight in weights]
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}]
    optimizer = kind(groups, lr=1e-2, optim_bits=8)
    for step in range(5):
        for parameter in parameters[: 2 if step < 4 else 3]:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
        if step == 1:
            state = optimizer.state_dict()
            optimizer = kind(groups, lr=1e-2, optim_bits=8)
            optimizer.load_state_dict(state)
    return [parameter.detach() for parameter in parameters], optimizer.state[parameters[0]]


def test_steps_are_those_of_bitsandbytes_and_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, expected_state = trained(AdamW)
    waits: list[torch.Tensor] = []
    monkeypatch.setattr("bitsandbytes.optim.optimizer.sync_gpu", waits.append)
    found, state = trained(AdamW8bit)
    assert not waits
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert state["state1"].dtype == torch.uint8
    assert torch.equal(state["state1"], expected_state["state1"])


def test_training_takes_it_for_adamw_8bit_alone(tmp_path: Path) -> None:
    def kind(optim: str) -> Any:
        return ThinkTrainer.get_optimizer_cls_and_kwargs(TrainingArguments(str(tmp_path), optim=optim))[0]

    assert kind("adamw_8bit") is AdamW8bit
    assert kind("paged_adamw_8bit") is AdamW
    assert kind("adamw_torch_fused") is torch.optim.AdamW
