"""What a training on a GPU needs and no Python has to run for, begun in threads while libraries are imported.

Nothing depends on it: what was not begun, or failed, is done where it is needed, and fails there as it would have.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from threading import Thread


class HeadStart:
    """Begins, when it is made, to open the CUDA context of the GPU that `load.device` names, which libraries find then:
    it takes longer, the more GPUs a host has."""

    def __init__(self, device: str) -> None:
        found = re.fullmatch(r"auto|cuda(?::(\d+))?", device)
        self._gpu = int(found[1] or os.environ.get("LOCAL_RANK", "0")) if found else None
        self._opened = _begun(self._open_context)

    def prepare_libraries(self) -> None:
        """Begin, if there is a GPU, to start the library of matrix products, and to compute the digest of Triton (half
        a gigabyte) that names its kernels in the cache of files. torch is imported already."""
        try:
            from triton.runtime.cache import triton_key  # here: threads should not import the same modules
        except ImportError:
            return
        for work in (triton_key, self._multiply):
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

    def _multiply(self) -> None:
        import torch

        torch.cuda.set_device(self._gpu)  # of this thread
        for dtype in (torch.bfloat16, torch.float32):
            factor = torch.zeros(64, 64, device="cuda", dtype=dtype)
            factor @ factor


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
