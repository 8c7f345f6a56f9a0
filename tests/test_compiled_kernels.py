"""Kernels are compiled before they are needed: Triton with a driver that starts nothing needs no GPU for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, threading
from array import array
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def launcher_cls(self, source, metadata): return lambda *arguments: None
    class utils:
        def load_binary(*_): return 0, 0, 0, 0, 1024
        def get_device_properties(device): return {"max_shared_mem": 232448}

driver.set_active(Driver())
torch.cuda.set_device = lambda device: None
compiled = []
knobs.runtime.jit_post_compile_hook = lambda *, fn, **_: compiled.append((fn.name, threading.current_thread().name))

from thinktune.data import Tokens
from thinktune.data.examples import Example
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.compiled_kernels import compile_kernels
from thinktune.training.fused.fuse_model import fuse_layers
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.model_with_loss import ModelWithLoss

config = Qwen2Config(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=160)
base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"))
for name, parameter in model.named_parameters():
    if "lora" in name:
        parameter.data = parameter.data.float()
model.eval()
nobody = Example(messages=(), think="", answer="", row=1, source="")
examples = [Tokens(array("i", range(1, length)), 1, nobody) for length in (90, 40)]
with_loss = ModelWithLoss(model)
random = torch.get_rng_state()
with packed_documents(base):
    fuse_layers(model, RecomputePolicy(("mlp",)))
    compile_kernels(with_loss, examples)
    first = list(compiled)
    compile_kernels(with_loss, examples)  # now they are started
print(json.dumps({
    "first": first, "again": compiled[len(first):], "hook": str(knobs.runtime.jit_cache_hook),
    "untouched": not any(module.training for module in model.modules())
    and all(parameter.grad is None for parameter in model.parameters()) and torch.equal(random, torch.get_rng_state()),
}))
"""


@pytest.mark.slow
def test_the_kernels_of_a_step_are_compiled_side_by_side_and_not_again(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    kernels = [name for name, _ in seen["first"]]
    assert {"_rows_kernel", "_rotate_grad_kernel", "_swiglu_grad_kernel", "_input_grad_kernel"} <= set(kernels)
    assert kernels.count("_swiglu_kernel") == 2  # without dropout in the check, with it in training
    assert all("ThreadPool" in thread for _, thread in seen["first"])
    assert seen["again"] == []
    assert seen["hook"] == "None"
    assert seen["untouched"]
