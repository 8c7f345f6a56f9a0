"""Packs: every example once, none over capacity, little padding, the same each time."""

from __future__ import annotations

import random
import time

import pytest

from thinktune.data import pack


def lengths_like_stratos(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [min(8192, max(60, int(draw.lognormvariate(8, 0.7)))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_every_example_is_packed_once_and_no_pack_overflows(seed: int) -> None:
    draw = random.Random(seed)
    capacity = draw.randint(1, 60)
    lengths = [draw.randint(1, capacity) for _ in range(draw.randint(1, 200))]
    packs = pack(lengths, capacity)
    assert sorted(index for indexes in packs for index in indexes) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in indexes) <= capacity for indexes in packs)


def test_each_goes_into_the_fullest_pack_that_has_room() -> None:
    lengths = [7, 6, 3, 4]
    assert pack(lengths, 10) == [[0, 2], [1, 3]]


def test_real_lengths_leave_less_than_two_percent_padding() -> None:
    lengths = lengths_like_stratos(2000, seed=1)
    packs = pack(lengths, 8192)
    assert 1 - sum(lengths) / (len(packs) * 8192) < 0.02


def test_the_same_lengths_give_the_same_packs() -> None:
    lengths = lengths_like_stratos(500, seed=2)
    assert pack(lengths, 8192) == pack(list(lengths), 8192)


def test_seventeen_thousand_examples_pack_in_a_moment() -> None:
    lengths = lengths_like_stratos(17_000, seed=3)
    started = time.perf_counter()
    pack(lengths, 16_384)
    assert time.perf_counter() - started < 2


def test_nothing_gives_no_packs() -> None:
    assert pack([], 8) == []


def test_an_example_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="example 1 has 9 tokens"):
        pack([3, 9], 8)
