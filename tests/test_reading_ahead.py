"""Weights that are read ahead are those that would have been read, in the same order."""

from functools import partial
from pathlib import Path
from threading import current_thread

import pytest
import torch
from transformers import AutoModelForCausalLM, core_model_loading

from thinktune.models.reading_ahead import _Queue, reading_ahead


def test_a_model_is_the_same_read_ahead(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # one weight after another, as where they are quantised
    usual, readers = core_model_loading._materialize_copy, set()

    def read(*args: object) -> object:
        readers.add(current_thread().name)
        return usual(*args)

    monkeypatch.setattr(core_model_loading, "_materialize_copy", read)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert readers == {"MainThread"}
    readers.clear()
    with reading_ahead():
        ahead = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    assert "MainThread" not in readers
    assert plain.keys() == ahead.keys()
    assert all(torch.equal(plain[name], ahead[name]) for name in plain)


def test_few_weights_are_read_before_they_are_asked_for_and_an_error_comes_where_its_weight_is() -> None:
    from concurrent.futures import ThreadPoolExecutor

    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise torch.OutOfMemoryError("no room")
        return number

    with ThreadPoolExecutor(1) as pool:
        queue = _Queue(pool)
        takes = [queue.add(partial(read, number)) for number in range(20)]
        assert [takes[0](), takes[1]()] == [0, 1]
        assert max(begun) < 8
        with pytest.raises(torch.OutOfMemoryError):
            takes[2]()
        assert [take() for take in takes[3:]] == list(range(3, 20))
    assert begun == list(range(20))
