"""What is begun beside the imports of a training is nothing that a machine without a GPU would feel."""

from concurrent.futures import Future
from ctypes.util import find_library

import pytest

from thinktune.training.head_start import HeadStart, _begun


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
