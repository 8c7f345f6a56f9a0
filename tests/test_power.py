"""How many samples settle a comparison: the number named finds the difference about as often as it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from thinktune.evaluation.power import Needed, needed

Z = (1.959963985 + 0.841621234) ** 2


Completions = dict[int, list[float]]


def draw(seed: int, problems: int, completions: int, gain: float) -> tuple[Completions, Completions]:
    """Draw the completions of two models whose chances differ by `gain` on every problem."""
    generator = np.random.default_rng(seed)
    chances = generator.uniform(0.1, 0.9, problems)
    ours, theirs = (generator.random((completions, problems)) < p for p in (chances, chances + gain))
    return dict(enumerate(ours.T.astype(float).tolist())), dict(enumerate(theirs.T.astype(float).tolist()))


def found(problems: int, completions: int, gain: float, trials: int = 1000) -> float:
    """Return the share of trials in which a test of the paired differences finds the gain."""
    generator = np.random.default_rng(0)
    chances = generator.uniform(0.1, 0.9, (trials, problems)).clip(0, 1 - gain)
    ours, theirs = (generator.binomial(completions, p) / completions for p in (chances, chances + gain))
    differences = theirs - ours
    errors = differences.std(axis=1, ddof=1) / math.sqrt(problems)
    return float((abs(differences.mean(axis=1)) > 1.96 * errors).mean())


def test_so_many_problems_find_the_difference_four_times_out_of_five() -> None:
    first, second = draw(1, 100, 1, 0.1)
    settled = needed(first, second)
    assert settled is not None
    assert settled.problems is not None
    spread = np.var([second[at][0] - first[at][0] for at in first], ddof=1)
    assert 100 + settled.problems == math.ceil(Z * spread / settled.difference**2)
    assert settled.completions is None  # with one completion a problem, nothing is known of more
    assert 0.65 < found(100 + settled.problems, 1, settled.difference) < 0.9


def test_so_many_completions_of_the_same_problems_find_it_too() -> None:
    first, second = draw(2, 40, 8, 0.05)
    settled = needed(first, second)
    assert settled is not None
    assert settled.completions is not None
    assert 0.68 < found(40, settled.completions, settled.difference) < 0.92
    assert settled.problems is not None


def test_where_problems_differ_more_than_completions_only_problems_help() -> None:
    first = {at: [0.0, 0.0] for at in range(20)}
    second = {at: [1.0, 1.0] if at % 5 == 0 else [0.0, 0.0] for at in range(20)} | {1: [0.0, 1.0]}
    settled = needed(first, second)
    assert settled is not None
    assert settled.difference == pytest.approx(0.225)
    assert (settled.problems, settled.completions) == (7, None)  # so many that six differ


def test_no_difference_is_planned_for_as_one_point_and_what_nobody_would_ask_has_no_number() -> None:
    same = {at: [float(at % 2)] for at in range(10)}
    other = {at: [float(at % 2 == 0)] for at in range(10)}
    settled = needed(same, other)
    assert settled == Needed(0.01, 87_200, None)
    assert str(settled) == "87,200 more problems would show a difference of 1.0 points"
    assert "no number of samples" in str(Needed(0.01, None, None))
    assert needed({1: [1.0]}, {1: [0.0]}) is None
    assert needed(same, same) is not None
