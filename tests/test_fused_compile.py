"""Triton's interpreter takes more than its compiler does: every kernel is compiled for the GPUs it is meant for. That
needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.uint8: "*u8",
         torch.int8: "*i8", torch.int32: "*i32", torch.float8_e4m3fn: "*fp8e4nv"}
target = GPUTarget("cuda", int(sys.argv[1]), 32)
compiled = []

def compile_only(self, *args, grid, warmup, num_warps=4, **named):
    bound = dict(zip((p.name for p in self.params), args)) | named
    constants, signature = {}, {}
    for parameter in self.params:
        value = bound[parameter.name]
        if parameter.is_constexpr or value is None:
            constants[parameter.name], signature[parameter.name] = value, "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(self, signature, constants)
    shared = triton.compile(source, target=target, options={"num_warps": num_warps}).metadata.shared
    compiled.append((self.__name__, shared))

JITFunction.run = compile_only

from thinktune.training.fused.kernels.qkv_rotary import Heads, Positions, rotate, rotate_grad
from thinktune.training.fused.kernels.common import quantise as to_fp8
from thinktune.training.fused.kernels.cross_entropy import cross_entropy
from thinktune.training.fused.kernels.swiglu import plain_swiglu, swiglu, swiglu_grad
from thinktune.training.fused.kernels.dropout import Dropout, dropped, threshold_of
from thinktune.training.fused.kernels.rmsnorm_lora import add_norm_project, input_grad, output_grad
from thinktune.training.fused.kernels.low_rank import LowRank
from thinktune.training.fused.kernels.dequantize import restore, transpose

def rows(*shape, dtype=torch.bfloat16):
    return torch.zeros(*shape, dtype=dtype)

def floats(*shape):
    return torch.zeros(*shape)

T, H, F, rank = 70, 256, 512, int(sys.argv[2])
fp8 = int(sys.argv[1]) >= 90
drawn = Dropout(torch.zeros(1, dtype=torch.int32), torch.zeros(T, dtype=torch.int32), 3, threshold_of(0.1))

def low_rank(slots, inputs, outputs, dropout=None, low=rows):
    return LowRank(rows(slots, rank, inputs), rows(outputs, rank), 2.0, True, dropout, low(T, slots * rank),
                   floats(slots, rank, inputs), floats(outputs, rank), floats(T, slots * rank))

for in_fp8, dropout in [(False, None), (True, drawn)] if fp8 else [(False, None), (False, drawn)]:
    norm, o = (rows(H), 1e-6), low_rank(1, H, H, dropout)
    qkv, wide, down = low_rank(3, H, 512, dropout), low_rank(2, H, 2 * F, dropout), low_rank(1, F, H, dropout, floats)
    add_norm_project(rows(T, H), norm=norm, lora=qkv, in_fp8=in_fp8)
    add_norm_project(rows(T, H), lora=o, write=in_fp8, in_fp8=in_fp8)
    add_norm_project(rows(T, H), update=(rows(T, H), o, 0.5), norm=norm, lora=wide, in_fp8=in_fp8)
    add_norm_project(rows(T, H), update=(rows(T, H), o, 1.0), lora=wide, write=in_fp8, in_fp8=in_fp8)
    add_norm_project(rows(T, H), update=(rows(T, H), o, 1.0), write=False)
    add_norm_project(rows(T, H), update=(rows(T, H), None, 1.0), norm=norm)
    output_grad(rows(T, H), o)
    for gelu, wide in [(False, wide), (True, wide), (False, low_rank(1, H, 2 * F, dropout))]:
        swiglu(rows(T, 2 * F), wide, down, gelu=gelu)
        swiglu_grad(rows(T, 2 * F), rows(T, F), wide, down, gelu=gelu)
    input_grad(rows(T, H), rows(T, H), qkv, norm=norm, residual=rows(T, H))
    input_grad(rows(T, H), rows(T, H), qkv, residual=rows(T, H))
    input_grad(rows(T, H), rows(T, H), o)
LAYOUTS = [
    (Heads(4, 2, 64, bias=rows(512)), 64, 3), (Heads(4, 2, 128, norms=(rows(128), rows(128), 1e-6)), 128, 3),
    (Heads(4, 2, 128), 96, 1), (Heads(4, 2, 64), None, 3), (Heads(4, 2, 128, turn=False), 128, 3),
    (Heads(4, 2, 128, norms=(rows(512), rows(256), 1e-6)), 128, 3),
    (Heads(4, 2, 256, norms=(floats(256), floats(256), 1e-6)), 256, 3),
]
for heads, turned, slots in LAYOUTS:
    W, D = heads.width, heads.dim
    grads = (rows(T, 4, D), rows(T, 2, D), rows(T, 2, D))
    raw = rows(T, W) if heads.norms else None
    table = None if turned is None else rows(T, turned) if turned < 128 else floats(T, turned)
    positions = Positions(table, table, None if heads.norms else floats(T))
    for lora in (low_rank(slots, H, W), None):
        rotate(rows(T, W), lora, positions, heads)
        rotate_grad(grads, raw, lora, positions, heads)
input_grad(rows(T, H), rows(T, H), None, norm=(rows(H), 1e-6), residual=rows(T, H))
input_grad(rows(T, H), rows(T, H), None, norm=(floats(H), 1e-6))
plain_swiglu(rows(T, 2 * F))
plain_swiglu(rows(T, 2 * F), rows(T, F), gelu=True)
dropped(rows(T, H), drawn)
dropped(rows(T, H), drawn, add_to=rows(T, H))
cross_entropy(rows(8, 151936), torch.zeros(8, dtype=torch.int64), grad=True)
cross_entropy(rows(8, 151936), torch.zeros(8, dtype=torch.int64), grad=False)
transpose(rows(256, 128, dtype=torch.uint8))
restore(rows(256, 128, dtype=torch.int8), floats(256), rows(256, 128))
restore(rows(256, 128, dtype=torch.uint8), floats(256), rows(256, 128))
if fp8:
    to_fp8(rows(T, 22016))
print(json.dumps(compiled))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "rank"), [(80, 32), (90, 8), (90, 32)])
def test_every_kernel_compiles_for_the_gpus_it_is_meant_for(capability: int, rank: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, str(capability), str(rank)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    compiled = json.loads(run.stdout)
    assert len(compiled) >= 30
    for name, shared in compiled:
        assert shared <= 99 * 1024, f"{name} wants {shared} bytes of shared memory, more than an RTX card has"
