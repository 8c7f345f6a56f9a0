"""Nothing that a program says or returns passes for what the tests expect."""

from __future__ import annotations

import sys

import pytest

from thinktune.scoring.base import Verdict
from trials import slow_but, verdicts_on

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process limits")

HUMANEVAL = """\
def check(candidate):
    assert candidate(1) == 2
    assert candidate(5) == 6
"""
TABLE = {  # program, tests, entry point
    "skip": (
        """\
import unittest
def f(x): raise unittest.SkipTest('x')
""",
        """\
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1),2)
""",
        "f",
    ),
    "skip sub": (
        """\
import unittest
class S(unittest.SkipTest): pass
def f(x): raise S('x')
""",
        """\
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1),2)
""",
        "f",
    ),
    "pytest skip": (
        """\
import pytest
def f(x): pytest.skip('x')
""",
        """\
def test_a(): assert f(1)==2
""",
        "f",
    ),
    "stop in map": (
        """\
def f(x): raise StopIteration
""",
        """\
assert all(map(lambda i: f(i)==i+1,[1,2]))
""",
        "f",
    ),
    "shouldstop": (
        """\
class E(Exception): pass
E.__name__='_ShouldStop'; E.__module__='unittest.case'
def f(x): raise E
""",
        """\
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1),2)
""",
        "f",
    ),
    "real shouldstop": (
        """\
import unittest.case as c
def f(x): raise c._ShouldStop()
""",
        """\
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1),2)
""",
        "f",
    ),
    "unexpected": (
        """\
import unittest.case as c
def f(x): raise c._UnexpectedSuccess()
""",
        """\
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1),2)
""",
        "f",
    ),
    "unittest shadowed": (
        """\
import unittest
class TestCase: pass
unittest.TestCase=TestCase
def f(x): return -1
""",
        """\
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1),2)
""",
        "f",
    ),
    "name unittest": (
        """\
unittest=None
pytest=None
def f(x): return -1
""",
        """\
import unittest
class T(unittest.TestCase):
    def test(self): self.assertEqual(f(1),2)
""",
        "f",
    ),
    "defines helper of the tests": (
        """\
def expected(x): return -1
def f(x): return -1
""",
        """\
def expected(x): return x+1
assert f(1)==expected(1)
""",
        "f",
    ),
    "defines helper late": (
        """\
def expected(x): return -1
def f(x): return -1
""",
        """\
def check(candidate):
    assert candidate(1)==expected(1)
def expected(x): return x+1
""",
        "f",
    ),
    "candidate": (
        """\
def candidate(x): return x+1
def f(x): return -1
""",
        HUMANEVAL,
        "f",
    ),
    "shadow print assert": (
        """\
def AssertionError(*a): pass
def Exception(*a): pass
def f(x): return -1
""",
        HUMANEVAL,
        "f",
    ),
    "globals via callback": (
        """\
def f(g):
    for n in ('__globals__','__code__','__builtins__','__closure__','__wrapped__'):
        try:
            v=getattr(g,n)
            if n=='__globals__': v['abs']=lambda x:0
            return 2
        except AttributeError: pass
    return -1
""",
        """\
assert abs(f(lambda x:x)-2)<1e-6
""",
        "f",
    ),
    "raw ask": (
        """\
import sys
def f(g):
    fr=sys._getframe()
    while fr:
        p=fr.f_locals.get('self')
        if p is not None and hasattr(p,'ask'):
            try: return p.ask('get',g,'__globals__') and 2
            except AttributeError: return -1
        fr=fr.f_back
""",
        """\
assert f(lambda x:x)==2
""",
        "f",
    ),
    "change expected": (
        """\
import sys
def f(g):
    return [9]
""",
        """\
want=[1]
assert f(want) == want or f(want)==[1]
""",
        "f",
    ),
    "raise in eq arg": (
        """\
def f(x): raise AssertionError
""",
        """\
try:
    assert f(1)==2
except ValueError: pass
""",
        "f",
    ),
    "exit thread": (
        """\
import threading, os, time
def f(x):
    threading.Thread(target=lambda:(time.sleep(.2),os._exit(0))).start()
    return -1
""",
        HUMANEVAL,
        "f",
    ),
    "kept int eq": (
        """\
class I(int): pass
I.__eq__=lambda s,o: True
I.__hash__=int.__hash__
def f(x): return I(9)
""",
        HUMANEVAL,
        "f",
    ),
    "meta eq": (
        """\
class M(type):
    def __eq__(s,o): return True
    __hash__=type.__hash__
class C(metaclass=M): pass
def f(x): return C
""",
        HUMANEVAL,
        "f",
    ),
    "meta eq class as entry": (
        """\
class M(type):
    def __eq__(s,o): return True
    __hash__=type.__hash__
class f(metaclass=M):
    def __new__(cls,*a): return cls
""",
        HUMANEVAL,
        "f",
    ),
    "exception eq": (
        """\
class E(Exception):
    def __eq__(s,o): return True
    __hash__=Exception.__hash__
def f(x): return E()
""",
        HUMANEVAL,
        "f",
    ),
    "lying int via json": (
        """\
def f(x): return True
""",
        """\
assert f(1) is not True and f(1)==2 or f(1)==2
""",
        "f",
    ),
    "coroutine": (
        """\
async def f(x): return x+1
""",
        HUMANEVAL,
        "f",
    ),
    "ndarray object eq": (
        """\
import numpy as np
class T:
    def __eq__(s,o): return True
def f(x): return np.array([T()],dtype=object)
""",
        """\
import numpy as np
assert (f(1)==np.array([2])).all()
""",
        "f",
    ),
    "partial": (
        """\
import functools
def f(x): return functools.partial(int)
""",
        HUMANEVAL,
        "f",
    ),
    "print fake protocol": (
        """\
def f(x):
    print('!{"outcome": "passed", "why": null}')
    import os
    for fd in range(20):
        try: os.write(fd,b'!{"outcome": "passed", "why": null}\\n')
        except OSError: pass
    return -1
""",
        HUMANEVAL,
        "f",
    ),
    "never called list": (
        """\
def add(a,b): return a-b
""",
        """\
tests=['assert add(1,2)==3']
""",
        "add",
    ),
    "never": (
        """\
def f(x): return 1
""",
        """\
def check(candidate):
    pass
""",
        "f",
    ),
    "no assert": (
        """\
def f(x): return 1
""",
        """\
f(1)
""",
        "f",
    ),
    "empty": (
        """\
def f(x): return 1
""",
        """\

""",
        "f",
    ),
    "NaN": (
        """\
def f(x): return float('nan')
""",
        HUMANEVAL,
        "f",
    ),
    "generator of answers": (
        """\
def f(x):
    yield 2
""",
        HUMANEVAL,
        "f",
    ),
    "tests in try": (
        """\
def f(x): raise BaseException('x')
""",
        """\
for i in range(2):
    try:
        assert f(i)==i+1
    except Exception:
        raise AssertionError
""",
        "f",
    ),
    "loseswallow": (
        """\
import os
def f(x): os._exit(0)
""",
        """\
try:
    assert f(1)==2
except:
    pass
""",
        "f",
    ),
    "garbage swallow": (
        """\
import os
def f(x):
    for fd in range(3,30):
        try: os.write(fd,b'{"value": ["zz"]}\\n')
        except OSError: pass
    return 3
""",
        """\
ok=True
try:
    ok = f(1)==2
except BaseException:
    pass
assert ok
""",
        "f",
    ),
    "class named unit": (
        """\
class T:
    def __eq__(s,o): return True
def f(x): return T()
""",
        """\
class T: pass
assert f(1)==2
""",
        "f",
    ),
    "Decimal sub": (
        """\
from decimal import Decimal
class D(Decimal):
    def __eq__(s,o): return True
    __hash__=Decimal.__hash__
def f(x): return D(9)
""",
        HUMANEVAL,
        "f",
    ),
    "date sub": (
        """\
import datetime
class D(datetime.date):
    def __eq__(s,o): return True
    __hash__=datetime.date.__hash__
def f(x): return D(2020,1,1)
""",
        """\
import datetime
assert f(1)==datetime.date(2021,1,1)
""",
        "f",
    ),
    "dataclass eq": (
        """\
from dataclasses import dataclass
@dataclass(eq=False)
class D:
    x:int=0
    def __eq__(s,o): return True
def f(x): return D()
""",
        HUMANEVAL,
        "f",
    ),
    "recursion": (
        """\
def f(x): return f(x)
""",
        HUMANEVAL,
        "f",
    ),
}

QUICK = {
    "skip",
    "stop in map",
    "unittest shadowed",
    "defines helper of the tests",
    "candidate",
    "globals via callback",
    "change expected",
    "kept int eq",
    "meta eq",
    "exception eq",
    "ndarray object eq",
    "print fake protocol",
    "never",
    "no assert",
    "loseswallow",
    "garbage swallow",
    "class named unit",
    "Decimal sub",
}
"""One of each kind; the others are slow."""


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> dict[str, Verdict]:
    return verdicts_on(TABLE, request)


@pytest.mark.parametrize("kind", slow_but(QUICK, TABLE))
def test_a_program_that_pretends_is_not_right(kind: str, verdicts: dict[str, Verdict]) -> None:
    assert not verdicts[kind].equal
    assert verdicts[kind].note
