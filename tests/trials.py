"""Tables of trials: which of them the quick suite runs, and all that are asked for run side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from thinktune.scoring.base import Verdict
from thinktune.scoring.sandbox.run import Limits, run_trial


def slow_but(quick: Collection[str], names: Iterable[str]) -> list[Any]:
    """Parameters of a test: the names, those that are not quick marked `slow`."""
    all_names = list(names)
    assert set(quick) <= set(all_names), "a quick one is not in the table"
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in all_names]


def verdicts_on(table: Mapping[str, tuple[str, str, str]], request: pytest.FixtureRequest) -> dict[str, Verdict]:
    """Of the programs, tests and entry points that this session's tests of a module ask for as `kind`: a trial mostly
    waits, so that several at once take little longer than one."""
    items: list[Any] = [item for item in request.session.items if item.getparent(pytest.Module) is request.node]
    asked = {item.callspec.params.get("kind") for item in items if hasattr(item, "callspec")}
    trials = {name: trial for name, trial in table.items() if name in asked}
    limits = Limits(cpu_seconds=5, seconds=60)
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda trial: run_trial(trial[0], trial[1], trial[2], limits), trials.values())
        return dict(zip(trials, found, strict=True))
