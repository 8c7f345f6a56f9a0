"""What a training on a GPU needs and no Python has to run for, begun in threads while libraries are imported.

Nothing depends on it: what was not begun, or failed, is done where it is needed, and fails there as it would have.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

_OF_A_CONFIG = ("csv", "hashlib", "mmap", "pickle", "pydantic.main", "yaml")
_TOKENS = (8, 24)  # some kernels are others for so few
_WIDTH, _HEADS = 64, 4


def load_torch_libraries() -> None:
    """Begin to load PyTorch's libraries of C++, which its import waits for: a third of a second.

    Those that a config needs come first: wanted meanwhile, they would wait for PyTorch's.
    """
    for module in _OF_A_CONFIG:
        import_module(module)
    _begun(_load)


def _load() -> None:
    spec = find_spec("torch")
    for folder in (spec and spec.submodule_search_locations) or ():
        found = [file for name in ("cpu", "cuda") if (file := Path(folder, "lib", f"libtorch_{name}.so")).is_file()]
        for file in found:
            ctypes.CDLL(str(file))  # other threads run meanwhile


class HeadStart:
    """Begins, when it is made, to open the CUDA context of the GPU that `load.device` names, which libraries find then:
    it takes longer, the more GPUs a host has."""

    def __init__(self, device: str) -> None:
        found = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
        self._gpu = int(found[1] or os.environ.get("LOCAL_RANK", "0")) if found else None
        self._opened = _begun(self._open_context)

    def prepare_libraries(self) -> None:
        """Begin, if there is a GPU, to load the kernels of a decoder layer, and to compute the digest of Triton (half a
        gigabyte) that names its kernels in the cache of files. torch is imported already."""
        try:
            from triton.runtime.cache import triton_key  # here: threads should not import the same modules
        except ImportError:
            return
        for work in (triton_key, self._load_kernels):
            _begun(partial(self._once_opened, work))

    def _once_opened(self, work: Callable[[], object]) -> None:
        if self._opened.result():
            work()

    def _open_context(self) -> bool:
        if self._gpu is None:
            return False
        driver = ctypes.CDLL("libcuda.so.1")  # other threads run during its calls
        device, context = ctypes.c_int(), ctypes.c_void_p()
        begun = driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), self._gpu) == 0
        return begun and bool(driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0)

    def _load_kernels(self) -> None:
        import torch

        torch.cuda.set_device(self._gpu)  # of this thread
        for tokens in _TOKENS:
            loss = sum(_layer(torch, tokens, torch.device("cuda")))
            loss.backward()
        torch.cuda.synchronize()


def _layer(torch: Any, tokens: int, device: Any) -> Iterator[Any]:
    """Compute what a decoder layer, its head and the loss do, each operation as transformers has it: a GPU loads a
    kernel when it is first called, up to a quarter of a second for one."""
    F = torch.nn.functional
    ids = torch.arange(tokens, device=device)[None]
    weight = torch.zeros(_WIDTH, _WIDTH, device=device, dtype=torch.bfloat16)
    low = torch.zeros(4, _WIDTH, device=device, requires_grad=True)
    states = F.embedding(ids, weight)
    states = states + (states.float() @ low.T @ low).to(states.dtype)
    wide = states.float()
    states = weight[0] * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(states.dtype)
    width = _WIDTH // _HEADS
    angles = (torch.ones(1, width // 2, 1, device=device) @ ids[:, None].float()).transpose(1, 2)
    angles = torch.cat((angles, angles), dim=-1)
    query = F.linear(states, weight, weight[0]).view(1, tokens, _HEADS, width).transpose(1, 2)
    turned = torch.cat((-query[..., width // 2 :], query[..., : width // 2]), dim=-1)
    query = query * angles.cos().to(query.dtype) + turned * angles.sin().to(query.dtype)
    key = query[:, :2, None].expand(1, 2, _HEADS // 2, tokens, width).reshape(1, _HEADS, tokens, width)
    yield F.scaled_dot_product_attention(query, key, key, is_causal=True).float().sum()
    mask = torch.where(ids[..., None] >= ids[:, None], 0.0, torch.finfo(torch.bfloat16).min).to(query.dtype)
    scores = (query @ key.transpose(2, 3) * 0.5 + mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    states = states + (scores @ key).transpose(1, 2).reshape(1, tokens, _WIDTH).contiguous()
    states = F.linear(F.silu(F.linear(states, weight)) * states, weight)
    yield wide.norm() + torch.allclose(wide, wide) + weight.view(torch.int16).sum(dtype=torch.int64)  # our checks'
    yield F.cross_entropy(F.linear(states, weight)[0].float(), ids[0], reduction="sum")


def _begun(work: Callable[[], object]) -> Future[object]:
    """Begin some work in a thread, which an exit waits for: PyTorch does not outlive Python."""
    future: Future[object] = Future()

    def run() -> None:
        with suppress(Exception):
            future.set_result(work())
            return
        future.set_result(None)

    Thread(target=run).start()
    return future
