"""What is begun beside the imports of a training is nothing that a machine without a GPU would feel."""

import subprocess
import sys
from concurrent.futures import Future
from ctypes.util import find_library

import pytest
import torch

from thinktune.training.head_start import HeadStart, _begun, _layer


@pytest.mark.skipif(find_library("cuda") is not None, reason="there is a driver")
@pytest.mark.parametrize("device", ["cpu", "auto", "cuda", "cuda:7", "nonsense"])
def test_without_a_driver_nothing_is_begun_and_nothing_fails(device: str) -> None:
    pytest.importorskip("triton")
    from triton.runtime import cache

    before = cache.triton_key.cache_info().currsize
    begun = HeadStart(device)
    begun.prepare_libraries()
    assert not begun._opened.result(10)
    assert cache.triton_key.cache_info().currsize == before


def test_work_that_fails_has_no_result() -> None:
    failing: Future[object] = _begun(lambda: 1 / 0)
    assert failing.result(10) is None
    assert _begun(lambda: 2).result(10) == 2


@pytest.mark.parametrize("tokens", [8, 24])
def test_the_layer_whose_kernels_are_loaded_has_a_loss_and_a_gradient(tokens: int) -> None:
    loss = sum(_layer(torch, tokens, torch.device("cpu")))
    loss.backward()
    assert torch.isfinite(loss)


def test_libraries_of_torch_are_loaded_beside_and_without_its_import() -> None:
    code = """
import sys, threading
from thinktune.training.head_start import load_torch_libraries
load_torch_libraries()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join()
assert "torch" not in sys.modules
print("libtorch_cpu" in open("/proc/self/maps").read())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
