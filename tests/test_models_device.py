from __future__ import annotations

import pytest
import torch

from thinktune.errors import DeviceError
from thinktune.models.device import choose_device, choose_dtype, describe, describe_hardware, multiplies_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "mps", "meta", "cuda:x", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="auto, cpu, cuda"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_asked_for_and_absent_says_what_to_do() -> None:
    with pytest.raises(DeviceError, match=r"load\.device=auto"):
        choose_device("cuda")
    assert choose_device("auto") == CPU


def test_auto_takes_bfloat16_only_where_it_is_fast() -> None:
    assert choose_dtype(CPU, "auto") == (torch.bfloat16 if multiplies_bfloat16(CPU) else torch.float32)
    assert choose_dtype(CPU, "bfloat16") == torch.bfloat16
    assert choose_dtype(CPU, "float32") == torch.float32


def test_the_hardware_is_described_in_numbers_and_in_a_line() -> None:
    facts = describe_hardware(CPU)
    assert facts["device"] == "cpu"
    assert facts["memory_gib"] > 0
    assert describe(CPU, torch.float32).endswith("GiB, float32")
