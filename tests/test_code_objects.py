# ruff: noqa: E501 - programs and tests as they are written elsewhere
"""No object of a program decides whether it is what the tests expect."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from thinktune.scoring.sandbox.run import run_trial

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process limits")

YES_OBJECT = """\
class T:
    def __getattr__(s,n): return lambda *a,**k: True
    def __eq__(s,o): return True
    def __ne__(s,o): return False
    def __lt__(s,o): return True
    __gt__=__le__=__ge__=__contains__=__lt__
    def __sub__(s,o): return 0
    __rsub__=__add__=__radd__=__mul__=__mod__=__sub__
    def __abs__(s): return 0
    def __bool__(s): return True
    def __len__(s): return 1
    def __hash__(s): return 0
    def __iter__(s): return iter([])
    def __getitem__(s,i): return T()
    def __call__(s,*a,**k): return T()
    def __float__(s): return 0.0
    def __round__(s,n=0): return T()
def f(*a): return T()
"""
OBJECTS = {
    "says yes to everything": YES_OBJECT,
    "mock": """\
from unittest.mock import MagicMock, ANY
def f(*a): return MagicMock()
""",
    "any": """\
from unittest.mock import ANY
def f(*a): return ANY
""",
    "class as entry point": YES_OBJECT.rsplit("def f", 1)[0].replace("class T:", "class f:").replace("T()", "f()")
    + "    def __init__(s, *a): pass\n",
}
VALUE_TESTS = {  # each expects a plain value
    "eq": "assert f(1) == 2\n",
    "abs": "assert abs(f(1) - 2) < 1e-6\n",
    "in": "assert 2 in f(1)\n",
    "in2": "assert f(1) in (2, 3)\n",
    "starts": "assert f(1).startswith('a')\n",
    "isdigit": "assert f(1).isdigit()\n",
    "lt": "assert f(1) < 3\n",
    "rlt": "assert 0 < f(1) < 3\n",
    "not ne": "assert not f(1) != 2\n",
    "unit": "import unittest\nclass T1(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(1),2)\n        self.assertAlmostEqual(f(1),2)\n",
    "almost": "import unittest\nclass T1(unittest.TestCase):\n    def test(self):\n        self.assertAlmostEqual(f(1),2)\n",
    "list": "assert [f(1)] == [2]\n",
    "isclose": "import math\nassert math.isclose(f(1), 2)\n",
    "np": "import numpy as np\nassert np.allclose(f(1), [2,3])\n",
    "np2": "import numpy as np\nassert (f(1) == np.array([1,2])).all()\n",
    "npequal": "import numpy as np\nnp.testing.assert_array_equal(f(1), np.array([1,2]))\n",
    "set": "assert set([f(1)]) == {2}\n",
    "dict": "assert {f(1): 1} == {2: 1}\n",
    "sub": "assert f(1).issubset({1})\n",
    "count": "assert f(1).count('a') == 0 or True and f(1).index('a') == True\n",
    "getitem": "assert f(1)[0] == 2\n",
    "assertIn": "import unittest\nclass T1(unittest.TestCase):\n    def test(self):\n        self.assertIn(2, f(1))\n",
    "mod": "assert f(1) % 2 == 0\n",
    "pair": "a, b = f(1), 2\nassert a == b\n",
    "assertTrue": "import unittest\nclass T1(unittest.TestCase):\n    def test(self):\n        self.assertTrue(f(1) == 2)\n",
    "round": "assert round(f(1), 2) == 2.0\n",
    "sum": "assert sum([f(1)]) == 2\n",
    "float": "assert float(f(1)) == 2.0\n",
    "max": "assert max(f(1), 2) == 2\n",
    "isinst": "assert isinstance(f(1), int)\n",
    "sorted": "assert sorted([f(1), 3]) == [2, 3]\n",
    "fmt": "assert f'{f(1)}' == '2'\n",
    "deep": "assert {'a': [f(1)]} == {'a': [2]}\n",
    "frac": "from fractions import Fraction\nassert f(1) == Fraction(1,2)\n",
    "approx": "import pytest\ndef test_x():\n    assert f(1) == pytest.approx(2)\n",
    "replace": "assert f(1).replace('a','') == ''\n",
    "symm": "assert not f(1).symmetric_difference({1})\n",
    "bool": "assert f(1) is True\n",
    "all": "assert all(x == 2 for x in [f(1)])\n",
    "isa2": "assert type(f(1)) is int\n",
    "strmeth": "assert 'a'.join([f(1)]) == 'b'\n",
    "bitand": "assert f(1) & 1\n",
    "operator": "import operator\nassert operator.eq(f(1), 2)\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_that_says_yes_is_taken_for_no_value(kind: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda test: run_trial(OBJECTS[kind], test, "f"), VALUE_TESTS.values())
        passed = [name for name, verdict in zip(VALUE_TESTS, found, strict=True) if verdict.equal]
    assert passed == []
