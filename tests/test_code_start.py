# ruff: noqa: E501 - tests as they are written elsewhere
"""What is compiled and imported for a trial in advance, or only where it is needed, changes nothing in the trial."""

from __future__ import annotations

import sys

import pytest

from thinktune.scoring.sandbox import jail
from thinktune.scoring.sandbox.run import run_trial

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process limits")

PROGRAM = """
import datetime, decimal, fractions, pathlib, uuid, zoneinfo

def f(x: int):
    return [
        fractions.Fraction(1, 2), decimal.Decimal("1.5"), datetime.time(1, 2), zoneinfo.ZoneInfo("Asia/Tokyo"),
        uuid.UUID(int=5), pathlib.PurePath("a"), datetime.date,
    ]

def annotated():
    return f.__annotations__["x"] is int
"""
VALUES = """
half, money, hour, zone, five, path, date = f(1)
assert half * 2 == 1 and half.denominator == 2
assert money + 1 == 2.5
assert hour.isoformat() == "01:02:00"
assert str(zone) == "Asia/Tokyo"
assert five.int == 5
assert path.name == "a"
assert date(2020, 1, 2).year == 2020 and isinstance(date, type)
"""
ANNOTATIONS = """
def own(x: int): ...
assert annotated() is True
assert own.__annotations__["x"] is int
"""


@pytest.mark.parametrize("test", [VALUES, ANNOTATIONS])
def test_values_cross_without_an_import_in_the_tests_and_code_means_what_it_says(test: str) -> None:
    assert run_trial(PROGRAM, test, "f").note is None


@pytest.mark.parametrize(
    ("head", "passes"),
    [
        ("def check(candidate, times=2, *, more=None):", True),
        ("def check(candidate, *rest, **named):", True),
        ("def check(*, candidate):", True),
        ("import functools\n\ndef same(g):\n    return functools.wraps(g)(lambda *a, **k: g(*a, **k))\n\n@same\ndef check(candidate):", True),
        ("def check(first, second):", False),  # a helper: nothing calls it
    ],
)  # fmt: skip
def test_a_check_is_handed_the_program_whatever_else_it_takes(head: str, passes: bool) -> None:
    for result, expected in ((3, passes), (4, False)):
        verdict = run_trial(f"def add(a, b):\n    return {result}", f"{head}\n    assert add(1, 2) == 3", "add")
        assert verdict.equal == expected


def test_code_that_another_python_compiled_is_refused() -> None:
    with pytest.raises(RuntimeError, match="compiled by Python 2"):
        jail.modules_of({"version": "2", "compiled": ""})
