"""Our figures against scipy's, statsmodels' and published ones."""

from __future__ import annotations

import math
import random
from itertools import combinations
from statistics import fmean, stdev

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test, sem, t
from scipy.stats import bootstrap as scipy_bootstrap
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from thinktune.evaluation.significance import (
    Difference,
    bootstrap,
    clustered,
    compare,
    holm,
    mcnemar,
    passes_at,
    randomisation,
    sentence,
    wilson,
)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (8, 10), (57, 200), (1, 1000)])
def test_wilson_equals_scipys(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    rate = wilson(successes, n)
    assert (rate.value, rate.low, rate.high) == pytest.approx((successes / n, expected.low, expected.high), abs=1e-12)


def test_the_interval_of_several_samples_has_problems_as_clusters() -> None:
    assert clustered([1, 0, 1, 1], 16) == wilson(3, 4)  # samples of a problem that are all alike say nothing more
    assert clustered([0.5] * 30, 60) == wilson(30, 60)  # problems that are all alike say nothing more than samples do
    means = [0.0, 0.25, 0.5, 0.75, 1.0] * 20
    rate = clustered(means, 400)
    error = stdev(means) / 10
    assert rate.value == 0.5
    assert (rate.low, rate.high) == pytest.approx((0.5 - 1.984 * error, 0.5 + 1.984 * error), abs=1e-3)  # t of 99


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (8, 2), (2, 8), (5, 5), (59, 6), (300, 240), (121, 59)])
def test_mcnemar_equals_statsmodels(gained: int, lost: int) -> None:
    table = [[10, lost], [gained, 10]]
    expected = statsmodels_mcnemar(table, exact=True).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_holm_equals_statsmodels() -> None:
    generator = random.Random(0)
    for count in (1, 2, 7):
        p_values = [generator.random() ** 3 for _ in range(count)]
        assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))
    assert holm([]) == []


def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_sample() -> None:
    for n in range(1, 8):
        for right in range(n + 1):
            for k, found in enumerate(passes_at(n, right, n), start=1):
                subsets = list(combinations([True] * right + [False] * (n - right), k))
                assert found == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_equals_the_published_product() -> None:
    for n, right, k in [(200, 3, 100), (200, 150, 10), (1000, 1, 999), (10, 9, 5)]:
        product = math.prod(1 - k / i for i in range(n - right + 1, n + 1)) if n - right >= k else 0.0
        assert passes_at(n, right, k)[-1] == pytest.approx(1 - product, abs=1e-12)
    with pytest.raises(ValueError, match="not defined"):
        passes_at(3, 1, 4)
    assert passes_at(20_000, 20_000, 20_000) == [1.0] * 20_000  # thousands of samples are no work


def test_the_bootstrap_agrees_with_scipys_and_repeats_itself() -> None:
    generator = random.Random(1)
    values = [float(generator.choice([-1, 0, 0, 0, 1, 1])) for _ in range(300)]
    expected = scipy_bootstrap((values,), lambda x, axis: x.mean(axis=axis), method="percentile", rng=0)
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((expected.confidence_interval.low, expected.confidence_interval.high), abs=0.01)
    assert bootstrap(values) == (low, high)
    assert bootstrap([0.25]) == (0.25, 0.25)
    assert bootstrap([1.0, 0.0] * 2_000_000, resamples=3)[0] == pytest.approx(0.5, abs=0.01)


def test_two_models_are_compared_on_the_problems_they_share() -> None:
    first: dict[object, float] = {n: float(n < 50) for n in range(100)} | {"only first": 1.0}
    second: dict[object, float] = {n: float(n < 45 or 50 <= n < 75) for n in range(100)} | {"only second": 0.0}
    difference = compare(first, second)
    assert (difference.n, difference.gained, difference.lost) == (100, 25, 5)
    assert difference.value == pytest.approx(0.2)
    assert difference.p == pytest.approx(binomtest(5, 30).pvalue)
    assert 0.08 < difference.low < 0.12 < 0.28 < difference.high < 0.32
    assert difference.real
    with pytest.raises(ValueError, match="share no problem"):
        compare({1: 1.0}, {2: 1.0})


@pytest.mark.parametrize(("first", "second", "low", "high"), [(0, 0, -0.49, 0.49), (0, 1, 0.02, 1), (1, 0, -1, -0.02)])
def test_few_problems_that_all_came_out_alike_are_no_proof(first: int, second: int, low: float, high: float) -> None:
    difference = compare(dict.fromkeys(range(4), float(first)), dict.fromkeys(range(4), float(second)))
    assert (difference.low, difference.high) == pytest.approx((low, high), abs=0.001)
    assert not difference.real
    halves = compare(dict.fromkeys(range(4), 0.5), dict.fromkeys(range(4), 0.5))
    assert (halves.low, halves.high) == pytest.approx((-0.49, 0.49), abs=0.001)  # several completions, equal means
    assert compare({1: 0.0}, {1: 1.0}).low < 0  # one problem


@pytest.mark.parametrize("gained", range(1, 6))
def test_fewer_than_six_pairs_that_differ_have_an_interval_about_nothing(gained: int) -> None:
    difference = compare(dict.fromkeys(range(30), 0.0), {at: float(at < gained) for at in range(30)})
    assert not difference.real
    assert difference.low < 0.02 < difference.high


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_few_means_have_students_interval(count: int) -> None:
    values = [0.1 * random.Random(seed).random() + 0.2 for seed in range(count)]
    difference = compare(dict.fromkeys(range(count), 0.2), {at: 0.2 + each for at, each in enumerate(values)})
    expected = t.interval(0.95, count - 1, fmean(values), sem(values))
    assert (difference.low, difference.high) == pytest.approx([max(-1, expected[0]), min(1, expected[1])], abs=1e-3)


def test_a_tie_of_thirds_is_a_tie() -> None:
    difference = compare({1: 1 / 3, 2: 1 / 3}, {1: 2 / 3, 2: 0.0})
    assert (difference.value, difference.gained, difference.lost) == (0, 1, 1)
    assert "cannot be told apart (95% interval" in sentence(difference)


@pytest.mark.parametrize(("gains", "losses", "problems"), [(0.02, 0.01, 30), (0.2, 0.1, 20), (0.05, 0.05, 100)])
def test_intervals_of_right_and_wrong_hold_the_true_difference(gains: float, losses: float, problems: int) -> None:
    generator = np.random.default_rng(0)
    held = 0
    for gained, lost, _ in generator.multinomial(problems, [gains, losses, 1 - gains - losses], size=400):
        second = {at: float(at < gained) for at in range(problems)}
        first = {at: float(gained <= at < gained + lost) for at in range(problems)}
        difference = compare(first, second)
        held += difference.low <= gains - losses <= difference.high
    assert held >= 0.94 * 400


def test_scores_between_right_and_wrong_are_compared_by_randomisation() -> None:
    difference = compare(dict.fromkeys(range(50), 0.2), {n: 0.2 + n / 100 for n in range(50)})
    assert difference.p == pytest.approx(1 / 10_001)  # the least that so many draws can show
    assert difference.real
    assert not compare(dict.fromkeys(range(5), 0.2), {n: 0.3 + n / 100 for n in range(5)}).real  # 2 of 32 signs


def test_the_randomisation_test_agrees_with_scipys() -> None:
    values = [random.Random(seed).gauss(0.1, 0.4) for seed in range(40)]
    expected = permutation_test((values,), fmean, permutation_type="samples", n_resamples=10_000, rng=1).pvalue
    assert randomisation(values) == pytest.approx(expected, abs=0.01)
    assert randomisation([0.0, 0.0]) == 1.0
    assert randomisation([1.0] * 10) == pytest.approx(2 / 2**10, abs=1e-3)  # as McNemar's, where all are right or wrong


def test_a_difference_is_put_into_words() -> None:
    worse = compare(dict.fromkeys(range(40), 1.0), {n: float(n > 9) for n in range(40)})
    assert sentence(worse).startswith("tuned is worse than base by 25.0 points (95% interval 10.1 to 37.5; p = 0.002")
    luck = compare(dict.fromkeys(range(9), 0.0), {n: float(n < 2) for n in range(9)})
    assert "tuned is 22.2 points above base, which may be luck" in sentence(luck)
    assert "may be luck" in sentence(worse, p=0.08)
    same = compare({1: 1.0}, {1: 1.0})
    assert sentence(same, "r=4", "r=8").startswith("r=8 and r=4 cannot be told apart (95% interval -79.3 to 79.3;")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (dict.fromkeys(range(1000), 1.0), dict.fromkeys(range(1000), 1.0)),
        ({n: float(n % 2) for n in range(40)}, {n: float(n % 2 == 0) for n in range(40)}),
        (dict.fromkeys(range(30), 0.5), dict.fromkeys(range(30), 0.5)),
        ({n: float(n < 5) for n in range(9)}, {n: float(n < 7) for n in range(9)}),
        ({1: 0.0}, {1: 1.0}),
    ],
)
def test_no_interval_around_nothing_is_called_equality(first: dict[int, float], second: dict[int, float]) -> None:
    said = sentence(compare(first, second))
    assert "cannot be told apart" in said
    assert "equal" not in said


def test_an_end_of_an_interval_that_rounds_to_nothing_has_no_sign() -> None:
    assert "95% interval 0.0 to 10.0" in sentence(Difference(30, -0.03, -0.1, 0.0001, 0.06, 0, 1))
