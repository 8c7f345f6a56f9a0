"""Drawing tokens: the right ones, as often as they should be."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from thinktune.config import Sampling
from thinktune.inference.engines.hf.sampler import NgramBlocker, Sampler, row_noise

VOCABULARY = 1000


@dataclass
class Row:
    sampling: Sampling
    noise: random.Random
    ngrams: NgramBlocker | None = None
    ids: list[int] = field(default_factory=list)

    def all_ids(self) -> list[int]:
        return self.ids


def draw(logits: torch.Tensor, sampling: Sampling, times: int) -> torch.Tensor:
    """How often each token is drawn, as shares."""
    rows = [Row(sampling, row_noise(0, f"r{index}", 0)) for index in range(times)]
    picked, sound = Sampler(rows, len(logits), torch.device("cpu")).pick(logits.repeat(times, 1))
    assert sound.all()
    return torch.bincount(picked, minlength=len(logits)) / times


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 0.8, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.9},  # wider than the first candidates
        {"temperature": 2.5, "top_p": 0.3},  # and more often rejected than kept
        {"temperature": 3.0, "top_p": 0.9, "min_p": 0.2},
        {"temperature": 0.4, "top_p": 0.6},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.7, "top_k": 300, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_shares_are_those_of_transformers_filters(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(VOCABULARY)
    sampling = Sampling(**settings)
    filters = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(MinPLogitsWarper(sampling.min_p))
    expected = filters(torch.zeros(1, 1, dtype=torch.long), logits[None].clone())[0].softmax(-1)
    times = 20_000
    shares = draw(logits, sampling, times)
    assert not shares[expected == 0].any()
    counts, hoped = shares * times, expected * times
    often = hoped >= 5  # the rare ones together make one more bin
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([hoped[often], hoped[~often].sum()[None].clamp(min=1e-3)])
    chi_square = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_presence_and_frequency_penalties_look_at_what_was_written() -> None:
    logits = torch.tensor([[3.0, 2.9, 1.0, 0.0]])

    def pick(ids: list[int], **penalties: float) -> int:
        row = Row(Sampling(**penalties), random.Random(0), ids=ids)
        return int(Sampler([row], 4, torch.device("cpu")).pick(logits.clone())[0])

    assert pick([0]) == 0
    assert pick([0], presence_penalty=0.2) == 1
    assert pick([0, 0, 1], presence_penalty=2) == 0  # both are written: once or twice is the same
    assert pick([0, 0, 1], frequency_penalty=0.2) == 1
    assert pick([0, 1], frequency_penalty=-1.0) == 0
    assert pick([], presence_penalty=2) == 0
    rows = [Row(Sampling(frequency_penalty=0.06), random.Random(0), ids=[0]), Row(Sampling(), random.Random(0))]
    sampler = Sampler(rows, 4, torch.device("cpu"))
    steps = [sampler.pick(logits.repeat(2, 1))[0].tolist() for _ in range(3)]
    assert steps == [[0, 0], [1, 0], [0, 0]]


def test_equal_scores_are_drawn_by_token_id_not_by_chance() -> None:
    sampling = Sampling(temperature=1.0, top_p=0.5)
    row = [Row(sampling, row_noise(3, "a", 0)), Row(sampling, row_noise(3, "a", 0))]
    picked, _ = Sampler(row, VOCABULARY, torch.device("cpu")).pick(torch.zeros(2, VOCABULARY))
    assert picked[0] == picked[1]


@pytest.mark.parametrize("top_k", [2, 127, 128])
def test_what_scores_as_much_as_the_last_token_kept_is_kept_too(top_k: int) -> None:
    """As transformers' TopKLogitsWarper has it; which of them it were would be chance otherwise."""
    logits = torch.full((VOCABULARY,), -0.1)
    logits[: top_k - 1] = 1.0
    logits[500:900] = 0.0
    for top_p in (1.0, 0.999):
        shares = draw(logits, Sampling(temperature=1.0, top_k=top_k, top_p=top_p), 2000)
        assert (shares[500:900] > 0).sum() > 200
        assert shares[top_k - 1 : 500].sum() == shares[900:].sum() == 0


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}])
def test_a_temperature_next_to_nothing_is_greedy(filters: dict[str, float]) -> None:
    logits = torch.linspace(-2, 20, VOCABULARY).roll(300)
    assert draw(logits, Sampling(temperature=1e-40, **filters), 5)[299] == 1


def test_what_is_left_out_is_not_drawn_by_rounding_either() -> None:
    """Noise right at the bounds between the tokens that are kept, where running sums are a matter of rounding."""

    class At(random.Random):
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    torch.manual_seed(0)
    for _ in range(20):
        kept = torch.randperm(40_000)[:6].sort().values
        logits = torch.zeros(40_000).index_fill(0, kept, 8.0) + torch.rand(40_000)
        bounds = logits[kept].double().softmax(-1).cumsum(0)[:-1].float()
        noises = [float(bound) + step * 2**-25 for bound in bounds for step in range(-6, 7)]
        rows = [Row(Sampling(temperature=1.0, top_k=6), At(noise)) for noise in noises]
        picked, _ = Sampler(rows, len(logits), torch.device("cpu")).pick(logits.repeat(len(rows), 1))
        assert set(picked.tolist()) <= set(kept.tolist())


def test_noise_differs_by_seed_id_and_sample_and_repeats() -> None:
    draws = {row_noise(*key).random() for key in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "\ud800", 0)]}
    assert len(draws) == 5
    assert row_noise(None, "a", 0).random() == row_noise(0, "a", 0).random()


def test_an_ngram_is_blocked_only_where_it_would_repeat() -> None:
    blocker = NgramBlocker(3, [1, 2, 3, 1])
    assert blocker.blocked() == set()
    blocker.add(2)
    assert blocker.blocked() == {3}
    assert NgramBlocker(1, [4, 5]).blocked() == {4, 5}


def test_a_top_k_beyond_the_vocabulary_is_all_of_it() -> None:
    logits = torch.linspace(-2, 2, VOCABULARY)
    everything = Sampling(temperature=1.0)
    beyond = everything.changed(top_k=10**6)
    assert torch.equal(draw(logits, beyond, 50), draw(logits, everything, 50))
