# ruff: noqa: E501 - programs and tests, a line each
"""References in the shapes of HumanEval, MBPP and BigCodeBench score right by their own tests, and no mutant of them does."""

from __future__ import annotations

import ast
import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from thinktune.scoring import TASKS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process limits")

PROGRAMS = {  # name: program, calls and what they give
    "total": ("def total(xs):\n    s = 0\n    for x in xs:\n        s += x\n    return s", {"total([1, 2, 3])": "6", "total([])": "0"}),
    "longest": ("def longest(words):\n    return max(words, key=len) if words else None", {"longest(['a', 'bcd', 'ef'])": "'bcd'", "longest([])": "None"}),
    "divide": ("def divide(a, b):\n    q, r = divmod(a, b)\n    return q, r", {"divide(7, 2)": "(3, 1)", "divide(-7, 2)": "(-4, 1)"}),
    "mean": ("def mean(xs):\n    return sum(xs) / len(xs)", {"mean([1, 2, 4])": "7 / 3", "mean([5])": "5.0"}),
    "counts": ("from collections import Counter\n\ndef counts(text):\n    return Counter(text.lower())", {"counts('aAb')": "{'a': 2, 'b': 1}", "counts('')": "{}"}),
    "half": ("from fractions import Fraction\n\ndef half(n):\n    return Fraction(n, 2)", {"half(3)": "__import__('fractions').Fraction(3, 2)", "half(4)": "2"}),
    "later": ("import datetime\n\ndef later(day, n):\n    return day + datetime.timedelta(days=n)", {"later(__import__('datetime').date(2024, 2, 28), 2)": "__import__('datetime').date(2024, 3, 1)"}),
    "apply": ("def apply(f, xs):\n    return [f(x) for x in xs if x is not None]", {"apply(lambda x: x * x, [1, None, 3])": "[1, 9]", "apply(str, [])": "[]"}),
    "pairs": ("def pairs(xs):\n    return {(a, b) for a in xs for b in xs if a < b}", {"pairs([1, 2, 3])": "{(1, 2), (1, 3), (2, 3)}"}),
    "power": ("def power(base, n):\n    return base ** n", {"power(7, 6000)": "7 ** 6000", "power(2, 0)": "1"}),
    "flatten": ("def flatten(xs):\n    found = []\n    for x in xs:\n        found.extend(flatten(x) if isinstance(x, list) else [x])\n    return found", {"flatten([1, [2, [3]], []])": "[1, 2, 3]"}),
}  # fmt: skip


def humaneval(name: str, calls: dict[str, str]) -> dict[str, Any]:
    lines = [f"    assert {call.replace(f'{name}(', 'candidate(')} == {value}" for call, value in calls.items()]
    return {"test": "METADATA = {}\n\n\ndef check(candidate):\n" + "\n".join(lines), "entry_point": name}


def mbpp(_: str, calls: dict[str, str]) -> dict[str, Any]:
    listed = [f"assert {call} == {value}" for call, value in calls.items()]
    return {"test_list": listed, "test_setup_code": "", "test_imports": []}


def bigcodebench(name: str, calls: dict[str, str]) -> dict[str, Any]:
    methods = [
        f"    def test_case_{number}(self):\n        self.assertEqual({call}, {value})"
        for number, (call, value) in enumerate(calls.items())
    ]
    return {
        "test": "import unittest\n\nclass TestCases(unittest.TestCase):\n" + "\n".join(methods),
        "entry_point": name,
    }


def mutants(program: str, name: str) -> list[str]:
    """The program with another result, with one that is wrapped, and with none."""
    tree = ast.parse(program)
    made = []
    for change in ("[{}]", "({}, None)", "None", "{!r}"):
        mutant = copy.deepcopy(tree)
        for node in ast.walk(mutant):
            if isinstance(node, ast.Return):
                result = ast.unparse(node.value) if node.value else "None"
                node.value = ast.parse(change.format(result), mode="eval").body
        made.append(ast.unparse(mutant))
    return [
        *made,
        f"def check(*_): pass\n\n{made[0]}",
        f"class {name}:\n    def __init__(self, *_): pass\n    def __eq__(self, _): return True",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [humaneval, mbpp, bigcodebench])
def test_references_score_right_and_mutants_do_not(shape: Any) -> None:
    jobs = [
        (name, kind, code, shape(name, calls))
        for name, (program, calls) in PROGRAMS.items()
        for kind, code in [
            ("right", program),
            *((f"mutant {n}", each) for n, each in enumerate(mutants(program, name))),
        ]
    ]

    def judge(job: tuple[str, str, str, dict[str, Any]]) -> bool:
        text = f"<think>a</think> <answer>```python\n{job[2]}\n```</answer>"
        return bool(TASKS["code-generate"].score(text, job[3], "stop").correct)

    with ThreadPoolExecutor(4) as pool:
        right = {job[:2] for job, correct in zip(jobs, pool.map(judge, jobs), strict=True) if correct}
    assert right == {(name, "right") for name in PROGRAMS}
