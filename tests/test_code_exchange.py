# ruff: noqa: E501, W291 - programs and tests as they are written elsewhere
"""Right programs score right whatever they take and return."""

from __future__ import annotations

import sys

import pytest

from thinktune.scoring.base import Verdict
from thinktune.scoring.sandbox.run import run_trial
from trials import slow_but, verdicts_on

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process limits")

TABLE = {  # what crosses: program, tests, entry point
    "values": (
        """\

from fractions import Fraction
from decimal import Decimal
import datetime as dt, uuid, pathlib, collections, re, itertools
def f(): return [Fraction(1,2), Decimal('1.50'), dt.date(2020,1,2), dt.datetime(2020,1,2,3,4,5,6,dt.timezone.utc), dt.time(1,2), dt.timedelta(days=1,seconds=3), uuid.UUID(int=5), pathlib.Path('a/b'), collections.deque([1,2],maxlen=2), collections.Counter('aab'), collections.OrderedDict(a=1), range(3), slice(1,2), b'x', bytearray(b'y'), {1,2}, frozenset([3]), 2j, {'a':1}.keys(), ..., 10**5000, -10**20, float('inf')]
def g():
    d = collections.defaultdict(list); d['a'].append(1); return d
""",
        """\

from fractions import Fraction
from decimal import Decimal
import datetime as dt, uuid, pathlib, collections
a=f()
want=[Fraction(1,2), Decimal('1.50'), dt.date(2020,1,2), dt.datetime(2020,1,2,3,4,5,6,dt.timezone.utc), dt.time(1,2), dt.timedelta(days=1,seconds=3), uuid.UUID(int=5), pathlib.Path('a/b'), collections.deque([1,2],maxlen=2), collections.Counter('aab'), collections.OrderedDict(a=1), range(3), slice(1,2), b'x', bytearray(b'y'), {1,2}, frozenset([3]), 2j, {'a':1}.keys(), ..., 10**5000, -10**20, float('inf')]
assert len(a)==len(want)
for x,y in zip(a,want):
    assert x==y and type(x) is type(y),(x,y)
d=g()
assert d=={'a':[1]} and d['zz']==[]
""",
        "f",
    ),
    "numpy": (
        """\
import numpy as np
def f(x): return np.array(x)*2
def g(a): a *= 2
def k(): return np.float64(1.5), np.array(['a','b']), np.array([1,None],dtype=object), np.bool_(True), np.datetime64('2020-01-01')
""",
        """\
import numpy as np
assert np.array_equal(f([1,2]),[2,4])
assert (f([[1,2]])==np.array([[2,4]])).all()
a=np.arange(3)
g(a)
assert a.tolist()==[0,2,4]
r=k()
assert isinstance(r[0],np.float64) and r[1].tolist()==['a','b'] and r[2][1] is None and r[3] and r[4]==np.datetime64('2020-01-01')
assert isinstance(f([1]),np.ndarray)
""",
        "f",
    ),
    "class": (
        """\
class Stack:
    def __init__(self): self.items=[]
    def push(self,x): self.items.append(x)
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    @property
    def top(self): return self.items[-1]
    @classmethod
    def of(cls,*xs):
        s=cls()
        for x in xs: s.push(x)
        return s
    @staticmethod
    def name(): return 'stack'
    limit=5
""",
        """\
s=Stack()
s.push(1); s.push(2)
assert len(s)==2 and s.top==2 and s.pop()==2 and s.items==[1]
assert isinstance(s,Stack) and type(s) is Stack
assert Stack.of(1,2).items==[1,2] and Stack.name()=='stack' and Stack.limit==5
s.items.append(9)
assert s.pop()==9
s.extra=4
assert s.extra==4
""",
        "Stack",
    ),
    "dataclass": (
        """\
from dataclasses import dataclass
@dataclass
class P:
    x: int
    y: int = 0
def f(a): return P(a, a+1)
""",
        """\
assert f(1).x==1 and f(1).y==2
assert f(1)==P(1,2)
assert f(1)!=P(1,3)
assert isinstance(f(1),P)
""",
        "f",
    ),
    "vector": (
        """\
class Vector:
    def __init__(s,x,y): s.x,s.y=x,y
    def __add__(s,o): return Vector(s.x+o.x,s.y+o.y)
    def __mul__(s,k): return Vector(s.x*k,s.y*k)
    __rmul__=__mul__
    def __eq__(s,o): return isinstance(o,Vector) and (s.x,s.y)==(o.x,o.y)
    def __hash__(s): return hash((s.x,s.y))
    def __repr__(s): return f'Vector({s.x}, {s.y})'
    def __lt__(s,o): return s.x<o.x
    def __iter__(s): yield s.x; yield s.y
    def __getitem__(s,i): return (s.x,s.y)[i]
    def __bool__(s): return bool(s.x or s.y)
    def __abs__(s): return (s.x**2+s.y**2)**.5
""",
        """\
assert Vector(1,2)+Vector(3,4)==Vector(4,6)
assert (Vector(1,2)*3).x==3 and (2*Vector(1,2)).y==4
assert repr(Vector(1,2))=='Vector(1, 2)'
assert len({Vector(1,2),Vector(1,2)})==1
assert sorted([Vector(2,1),Vector(1,1)])[0].x==1
assert list(Vector(1,2))==[1,2] and Vector(1,2)[0]==1
assert not Vector(0,0) and abs(Vector(3,4))==5.0
assert Vector(1,2)!=Vector(2,2)
""",
        "Vector",
    ),
    "enum": (
        """\
import enum
class Color(enum.Enum):
    RED=1
    BLUE=2
class N(enum.IntEnum):
    A=1
    B=2
def f(x): return Color(x)
def g(x): return N(x)
""",
        """\
assert f(1) is Color.RED and f(2)==Color.BLUE and f(1).name=='RED' and f(1).value==1
assert [c.name for c in Color]==['RED','BLUE'] and len(Color)==2 and Color['RED'] is Color.RED
assert g(2)==2 and g(2).name=='B' and g(1) is N.A and g(1)==N.A
""",
        "f",
    ),
    "namedtuple": (
        """\
from collections import namedtuple
from typing import NamedTuple
P=namedtuple('P','x y')
class Q(NamedTuple):
    a: int
    b: str='z'
    def both(self): return f'{self.a}{self.b}'
def f(): return P(1,2)
def g(): return Q(3)
""",
        """\
assert f()==(1,2) and f().x==1 and f()==P(1,2) and f()._asdict()=={'x':1,'y':2} and f()._replace(x=5)==(5,2)
a,b=f()
assert g().both()=='3z' and g().b=='z' and isinstance(g(),Q) and isinstance(g(),tuple)
""",
        "f",
    ),
    "generator": (
        """\
def f(n):
    for i in range(n): yield i
def inf():
    i=0
    while True:
        yield i; i+=1
""",
        """\
import itertools, types
assert list(f(3))==[0,1,2] and sum(f(4))==6
g=f(2)
assert next(g)==0 and next(g)==1
try:
    next(g); assert False
except StopIteration: pass
assert list(itertools.islice(inf(),3))==[0,1,2]
assert isinstance(f(1),types.GeneratorType)
from collections.abc import Iterator, Generator
assert isinstance(f(1),Iterator) and isinstance(f(1),Generator)
assert 2 in f(3) and 5 not in f(3)
assert next(f(0),'d')=='d'
""",
        "f",
    ),
    "send": (
        """\
def f():
    t=0
    while True:
        x=yield t
        t+=x
""",
        """\
g=f()
next(g)
assert g.send(3)==3 and g.send(4)==7
g.close()
""",
        "f",
    ),
    "closures": (
        """\
def f(n): return lambda x: x+n
def compose(*fs):
    def run(x):
        for g in fs: x=g(x)
        return x
    return run
def counter():
    n=0
    def c():
        nonlocal n
        n+=1
        return n
    return c
""",
        """\
assert f(1)(2)==3
assert compose(f(1), lambda x:x*2, str)(3)=='8'
c=counter()
assert (c(),c())==(1,2) and callable(c)
assert list(map(f(1),[1,2]))==[2,3] and sorted([1,2],key=f(0),reverse=True)==[2,1]
assert f.__name__=='f'
""",
        "f",
    ),
    "decorator": (
        """\
import functools
def f(fn):
    calls=[]
    @functools.wraps(fn)
    def w(*a,**k):
        calls.append(a)
        return fn(*a,**k)*2
    w.calls=calls
    return w
""",
        """\
@f
def g(x,y=1): return x+y
assert g(1)==4 and g(1,y=2)==6 and g.calls==[(1,),(1,)] and g.__name__=='g'
""",
        "f",
    ),
    "callbacks": (
        """\
def f(g, xs): return [g(x) for x in xs]
def k(xs): return max(xs,key=lambda o:o.v).v
def fold(op,xs):
    r=xs[0]
    for x in xs[1:]: r=op(r,x)
    return r
""",
        """\
import operator, math
assert f(lambda x:x+1,[1,2])==[2,3] and f(str,[1])==['1'] and f(len,['ab'])==[2] and f(math.sqrt,[4])==[2.0] and f(str.upper,['a'])==['A']
class O:
    def __init__(s,v): s.v=v
assert k([O(1),O(3)])==3
assert fold(operator.add,[1,2,3])==6
seen=[]
f(seen.append,[1,2])
assert seen==[1,2]
def bad(x): raise KeyError(x)
try:
    f(bad,[1]); assert False
except KeyError as e: assert e.args==(1,)
""",
        "f",
    ),
    "nodes": (
        """\
def f(head):
    prev=None
    while head:
        head.next, prev, head = prev, head, head.next
    return prev
""",
        """\
class Node:
    def __init__(s,v,n=None): s.val=v; s.next=n
a=Node(1,Node(2,Node(3)))
r=f(a)
assert [r.val,r.next.val,r.next.next.val]==[3,2,1] and r.next.next is a and a.next is None
assert isinstance(r,Node)
""",
        "f",
    ),
    "in place": (
        """\
def f(a): a.sort()
def g(d): d['k']=1; d.pop('x',None)
def s(x): x.add(4)
def nested(m):
    m[0][0]=9
    m.append([5])
def same(a): return a
def keep(a,acc=[]): acc.append(a); return acc
def clear(d): d.clear()
""",
        """\
a=[3,1]
assert f(a) is None and a==[1,3]
d={'x':2}
g(d)
assert d=={'k':1}
e={1}
s(e)
assert e=={1,4}
m=[[1],[2]]; row=m[0]
nested(m)
assert m==[[9],[2],[5]] and m[0] is row and row==[9]
assert same(a) is a
assert keep(1)==[1] and keep(2)==[1,2]
from collections import deque
q={'a':[1]}
clear(q)
assert q=={}
""",
        "f",
    ),
    "aliasing two": (
        """\
def f(a,b):
    a.append(1)
    return len(b)
def cyc(a):
    return a[0] is a
""",
        """\
a=[]
assert f(a,a)==1
c=[]
c.append(c)
assert cyc(c)
""",
        "f",
    ),
    "own errors": (
        """\
class E(ValueError):
    def __init__(self,msg,code): super().__init__(msg); self.code=code
    def __str__(self): return f'[{self.code}] {self.args[0]}'
class Base(Exception): pass
class Sub(Base): pass
import json
def f(x):
    if x==0: raise E('no',7)
    if x==1: raise Sub('sub')
    if x==2: json.loads('{')
    if x==3: open('/nonexistent/file')
    if x==4: int('a')
    if x==5: {}['k']
    if x==6: b'\\xff'.decode('utf-8')
""",
        """\
import json
try: f(0); assert False
except ValueError as e: assert e.code==7 and str(e)=='[7] no' and isinstance(e,E)
try: f(0); assert False
except E as e: pass
try: f(1); assert False
except Base as e: assert type(e) is Sub and str(e)=='sub'
try: f(2); assert False
except json.JSONDecodeError as e: assert e.pos==1
try: f(3); assert False
except FileNotFoundError as e: assert e.errno==2
try: f(4); assert False
except ValueError as e: assert 'invalid literal' in str(e)
try: f(5); assert False
except KeyError as e: assert e.args==('k',)
try: f(6); assert False
except UnicodeDecodeError: pass
""",
        "f",
    ),
    "unittest raises": (
        """\
def f(x):
    if x<0: raise ValueError('negative value')
    return x
""",
        """\
import unittest
class T(unittest.TestCase):
    def setUp(self): self.v=3
    def test_a(self):
        with self.assertRaises(ValueError): f(-1)
        with self.assertRaisesRegex(ValueError,'negative'): f(-1)
        self.assertEqual(f(self.v),3)
    def test_b(self):
        for i in range(3):
            with self.subTest(i=i): self.assertEqual(f(i),i)
if __name__=='__main__':
    unittest.main()
""",
        "f",
    ),
    "pytest": (
        """\
def f(x):
    if x<0: raise ValueError('negative')
    return x/3
""",
        """\
import pytest
@pytest.mark.parametrize('x,y',[(3,1),(6,2)])
def test_a(x,y):
    assert f(x)==pytest.approx(y)
@pytest.mark.parametrize('x',[3,pytest.param(6)])
def test_p(x): assert f(x)>0
def test_b():
    with pytest.raises(ValueError,match='neg'): f(-1)
class TestX:
    def setup_method(self): self.k=3
    def test_c(self): assert f(self.k)==1
""",
        "f",
    ),
    "printed": (
        """\
def f(n):
    print('hello',n)
    print('x',end='')
""",
        """\
import io, contextlib
b=io.StringIO()
with contextlib.redirect_stdout(b): f(2)
assert b.getvalue()=='hello 2\\nx'
from unittest.mock import patch
with patch('sys.stdout',new=io.StringIO()) as o:
    f(3)
assert o.getvalue()=='hello 3\\nx'
""",
        "f",
    ),
    "input": (
        """\
def f():
    a=input('n? ')
    return int(a)+1
import sys
def g(): return sum(int(l) for l in sys.stdin)
""",
        """\
from unittest.mock import patch
import io
with patch('builtins.input',return_value='4'): assert f()==5
with patch('builtins.input',side_effect=['1','2']):
    assert f()==2 and f()==3
with patch('sys.stdin',io.StringIO('1\\n2\\n')): assert g()==3
with patch('sys.stdin',io.StringIO('7\\n')): assert f()==8
""",
        "f",
    ),
    "async": (
        """\
import asyncio
async def f(a,b):
    await asyncio.sleep(0)
    return a+b
async def agen(n):
    for i in range(n): yield i
async def bad(): raise ValueError('x')
class C:
    async def __aenter__(self): return 5
    async def __aexit__(self,*a): return False
def sync(): return asyncio.run(f(1,1))
async def cb(g): return await g(3)
""",
        """\
import asyncio
assert asyncio.run(f(1,2))==3
async def main():
    assert await f(1,1)==2
    assert await asyncio.gather(f(1,2),f(3,4))==[3,7]
    assert [i async for i in agen(3)]==[0,1,2]
    async with C() as c: assert c==5
    try:
        await bad(); assert False
    except ValueError: pass
    async def g(x): return x*2
    assert await cb(g)==6
asyncio.run(main())
assert sync()==2
""",
        "f",
    ),
    "async test": (
        """\
async def f(a): return a+1
""",
        """\
import unittest
class T(unittest.IsolatedAsyncioTestCase):
    async def test_x(self): self.assertEqual(await f(1),2)
""",
        "f",
    ),
    "async pytest": (
        """\
async def f(a): return a+1
""",
        """\
async def test_x():
    assert await f(1)==2
""",
        "f",
    ),
    "context manager": (
        """\
import contextlib
@contextlib.contextmanager
def f(log):
    log.append('in')
    try: yield 7
    finally: log.append('out')
class M:
    def __enter__(self): return self
    def __exit__(self,t,e,tb): self.seen=t; return True
""",
        """\
log=[]
with f(log) as v:
    assert v==7 and log==['in']
assert log==['in','out']
m=M()
with m: raise KeyError('a')
assert m.seen is KeyError
""",
        "f",
    ),
    "subclass list": (
        """\
class f(list):
    def push(self,x): self.append(x)
    @property
    def first(self): return self[0]
""",
        """\
s=f([1])
s.push(2)
assert s==[1,2] and s.first==1 and len(s)==2
s.append(3)
assert s==[1,2,3]
s.push(4)
assert s[-1]==4
""",
        "f",
    ),
    "lru": (
        """\
from collections import OrderedDict
class LRUCache:
    def __init__(self,n): self.n=n; self.d=OrderedDict()
    def get(self,k):
        if k not in self.d: return -1
        self.d.move_to_end(k); return self.d[k]
    def put(self,k,v):
        self.d[k]=v; self.d.move_to_end(k)
        if len(self.d)>self.n: self.d.popitem(last=False)
""",
        """\
c=LRUCache(2)
c.put(1,1);c.put(2,2)
assert c.get(1)==1
c.put(3,3)
assert c.get(2)==-1
""",
        "LRUCache",
    ),
    "solution class": (
        """\
class Solution:
    def twoSum(self,a,t):
        for i in range(len(a)):
            for j in range(i): 
                if a[i]+a[j]==t: return [j,i]
""",
        """\
def check(candidate):
    assert candidate([2,7,11],9)==[0,1]
""",
        "Solution().twoSum",
    ),
    "check helper in tests": (
        """\
def add(a,b): return a+b
def check(n): return n>0
""",
        """\
def helper(c):
    return c(1,2)
def check(candidate):
    assert helper(candidate)==3
check(add)
""",
        "add",
    ),
    "check_add": (
        """\
def add(a,b): return a+b
""",
        """\
def check_add(candidate):
    assert candidate(1,2)==3
""",
        "add",
    ),
    "main guard": (
        """\
def add(a,b): return a+b
""",
        """\
def main():
    assert add(1,2)==3
if __name__=='__main__':
    main()
""",
        "add",
    ),
    "global changes": (
        """\
count=0
def f():
    global count
    count+=1
cache={}
def g(k): cache[k]=1
""",
        """\
f(); f()
assert count==2
g('a')
assert cache=={'a':1}
""",
        "f",
    ),
    "seed": (
        """\
import random
def f(): return random.randint(1,10**9)
import numpy as np
def g(): return float(np.random.rand())
""",
        """\
import random, numpy as np
random.seed(3); a=f(); random.seed(3); assert f()==a
random.seed(3)
assert random.randint(1,10**9)==a
np.random.seed(1); x=g(); np.random.seed(1)
assert g()==x==np.random.RandomState(1).rand()
""",
        "f",
    ),
    "regex match": (
        """\
import re
def f(s): return re.match(r'(\\w+) (\\w+)',s)
def g(): return re.compile('a+')
""",
        """\
m=f('ab cd')
assert m.group(1)=='ab' and m.groups()==('ab','cd')
assert f('-') is None
assert m
assert g().match('aa')
""",
        "f",
    ),
    "tree": (
        """\
class Node:
    def __init__(s,v): s.v=v; s.l=s.r=None
class BST:
    def __init__(s): s.root=None
    def insert(s,v):
        if s.root is None: s.root=Node(v); return
        n=s.root
        while True:
            if v<n.v:
                if n.l is None: n.l=Node(v); return
                n=n.l
            else:
                if n.r is None: n.r=Node(v); return
                n=n.r
    def __contains__(s,v):
        n=s.root
        while n:
            if n.v==v: return True
            n=n.l if v<n.v else n.r
        return False
    def inorder(s):
        def w(n): return w(n.l)+[n.v]+w(n.r) if n else []
        return w(s.root)
""",
        """\
t=BST()
for v in [3,1,2]: t.insert(v)
assert t.inorder()==[1,2,3] and 2 in t and 9 not in t
assert t.root.v==3 and t.root.l.r.v==2 and t.root.r is None
""",
        "BST",
    ),
    "deepcopy": (
        """\
class A:
    def __init__(s): s.x=[1]
""",
        """\
import copy
a=A(); b=copy.deepcopy(a); b.x.append(2)
assert a.x==[1] and b.x==[1,2]
import math
assert A is not None
""",
        "A",
    ),
    "mock argument": (
        """\
def f(cb): cb('a',k=1); return cb.go(3)
""",
        """\
from unittest.mock import MagicMock, Mock
m=Mock()
m.go.return_value=9
assert f(m)==9
m.assert_called_once_with('a',k=1)
m.go.assert_called_with(3)
""",
        "f",
    ),
    "iterator class": (
        """\
class f:
    def __init__(s,n): s.n=n; s.i=0
    def __iter__(s): return s
    def __next__(s):
        if s.i>=s.n: raise StopIteration
        s.i+=1
        return s.i
""",
        """\
assert list(f(3))==[1,2,3]
it=iter(f(1))
assert next(it)==1
""",
        "f",
    ),
    "str subclass etc": (
        """\
class Name(str): pass
def f(): return Name('x')
class D(dict):
    def __getattr__(s,k): return s[k]
def g(): return D(a=1)
""",
        """\
assert f()=='x' and isinstance(f(),str) and f().upper()=='X'
d=g()
assert d=={'a':1} and d.a==1 and d['a']==1
""",
        "f",
    ),
    "default arg callable / kwargs": (
        """\
def f(*args, sep=',', **kw): return sep.join(map(str,args))+str(sorted(kw.items()))
""",
        """\
assert f(1,2,sep='-',z=1)=="1-2[('z', 1)]"
""",
        "f",
    ),
    "signature": (
        """\
def f(a: int, b: str='x') -> bool:
    'Doc.'
    return True
""",
        """\
assert f.__doc__=='Doc.'
assert f(1)
import inspect
assert list(inspect.signature(f).parameters)==['a','b']
""",
        "f",
    ),
    "abstract": (
        """\
from abc import ABC, abstractmethod
class Shape(ABC):
    @abstractmethod
    def area(self): ...
class Sq(Shape):
    def __init__(self,a): self.a=a
    def area(self): return self.a**2
""",
        """\
assert Sq(2).area()==4
assert isinstance(Sq(1),Shape) and issubclass(Sq,Shape)
try:
    Shape(); assert False
except TypeError: pass
""",
        "Sq",
    ),
    "sets of tuples / nested": (
        """\
def f(): return {('a',1):[{'x':(1,2)}], None: {frozenset([1])}}
""",
        """\
assert f()=={('a',1):[{'x':(1,2)}], None: {frozenset([1])}}
""",
        "f",
    ),
    "threads in program": (
        """\
import threading
def f(g,n):
    out=[]
    ts=[threading.Thread(target=lambda i=i: out.append(g(i))) for i in range(n)]
    [t.start() for t in ts]; [t.join() for t in ts]
    return sorted(out)
""",
        """\
assert f(lambda x:x*2,4)==[0,2,4,6]
""",
        "f",
    ),
    "threads in tests": (
        """\
def f(x): return x*2
""",
        """\
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as p: assert list(p.map(f,range(20)))==[2*i for i in range(20)]
""",
        "f",
    ),
    "SystemExit expected": (
        """\
import sys
def f(): sys.exit(3)
""",
        """\
try:
    f(); assert False
except SystemExit as e: assert e.code==3
""",
        "f",
    ),
    "exc value": (
        """\
def f(): return [ValueError('a'), KeyError]
""",
        """\
a,b=f()
assert isinstance(a,ValueError) and a.args==('a',) and b is KeyError
""",
        "f",
    ),
    "typed dict etc": (
        """\
import types
def f(): return types.SimpleNamespace(a=1,b=[2])
""",
        """\
assert f().a==1 and f().b==[2]
""",
        "f",
    ),
    "zip map": (
        """\
def f(x): return zip(x,x)
def g(x): return map(str,x)
def r(x): return reversed(x)
def e(x): return enumerate(x)
""",
        """\
assert list(f([1]))==[(1,1)] and list(g([1]))==['1'] and list(r([1,2]))==[2,1] and dict(e('a'))=={0:'a'}
""",
        "f",
    ),
}

QUICK = {
    "values",
    "class",
    "vector",
    "enum",
    "namedtuple",
    "generator",
    "closures",
    "callbacks",
    "nodes",
    "in place",
    "own errors",
    "unittest raises",
    "printed",
    "input",
    "async",
    "context manager",
    "subclass list",
    "solution class",
    "check helper in tests",
    "seed",
    "signature",
}
"""One of each kind; the others are slow."""


@pytest.fixture(scope="module")
def verdicts(request: pytest.FixtureRequest) -> dict[str, Verdict]:
    return verdicts_on(TABLE, request)


@pytest.mark.parametrize("kind", slow_but(QUICK, TABLE))
def test_a_right_program_scores_right_whatever_it_takes_and_returns(kind: str, verdicts: dict[str, Verdict]) -> None:
    assert verdicts[kind] == Verdict(True)


def test_what_cannot_be_decided_is_an_error_and_not_wrong() -> None:
    money = "class Money:\n    def __init__(self, n): self.n = n\n    def __eq__(self, o): return self.n == o\n"
    verdict = run_trial(money, "assert Money(5) == 5", "Money")
    assert (verdict.equal, verdict.failed) == (False, True)
    assert "Money would decide itself" in (verdict.note or "")


@pytest.mark.parametrize(
    ("test", "note"),
    [
        ("def check(candidate):\n    pass\n", "never call the program"),
        ("f(1)", "assert nothing"),
        ("assert f(1) ==", "no Python"),
        ("import nowhere_to_be_found\nassert f(1) == 2", "cannot be run here"),
        ("def test_it(tmp_path):\n    assert f(1) == 2", "features of pytest itself: tmp_path"),
        (
            "from unittest.mock import patch\nwith patch('os.getcwd', return_value='x'):\n    assert f(1) == 3",
            "replace what",
        ),
        ("open('data.txt', 'w').write('1')\nassert f(1) == 3", "use files"),
        (
            "import unittest\n\n@unittest.skip('no')\nclass T(unittest.TestCase):\n    def test(self): assert f(1) == 2",
            "are skipped",
        ),
    ],
)
def test_tests_that_cannot_tell_make_an_error(test: str, note: str) -> None:
    verdict = run_trial("def f(x):\n    return x + 1", test, "f")
    assert (verdict.equal, verdict.failed) == (False, True)
    assert note in (verdict.note or "")
