# ruff: noqa: E501 - answers as models write them, a line each
"""The program is found in an answer wherever it stands."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from thinktune.scoring.program_finder import program_in

ANSWERS = {
    "helper first": "```python\ndef double(x):\n    return 2*x\n```\nand\n```python\ndef add(a,b):\n    return a+b+double(0)\n```",
    "helper after": "```python\ndef add(a,b):\n    return a+b+double(0)\n```\nwith\n```python\ndef double(x):\n    return 2*x\n```",
    "lambda": "```python\nadd = lambda a, b: a + b\n```",
    "alias": "```python\nimport operator\nadd = operator.add\n```",
    "bare lambda": "add = lambda a, b: a + b",
    "prose lambda": "Here you go:\n\nadd = lambda a, b: a + b\n\nThat is all.",
    "indented fence": "1. So:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n",
    "tilde": "~~~python\ndef add(a, b):\n    return a + b\n~~~",
    "four": "````python\ndef add(a, b):\n    '''\n```\nx\n```\n'''\n    return a + b\n````",
    "closing last": "```python\ndef add(a, b):\n    return a + b```",
    "text before fence": "Sure: ```python\ndef add(a, b):\n    return a + b\n```",
    "inline": "`add = lambda a, b: a + b`",
    "inline3": "Use ```add = lambda a, b: a + b``` here.",
    "doc fence": '```python\ndef add(a, b):\n    """x\n    ```python\n    add(1,2)\n    ```\n    """\n    return a + b\n```\nDone.',
    "skeleton": "```python\ndef add(a, b):\n    pass\n```\nFilled:\n```python\ndef add(a, b):\n    return a + b\n```",
    "usage first": "```python\nresult = add(1, 2)\nprint(result)\n```\n```python\ndef add(a, b):\n    return a + b\n```",
    "output fence": "```\n3\n```\n```python\ndef add(a, b):\n    return a + b\n```",
    "wrong lang": "```javascript\nfunction add(a,b){return a+b}\n```\n```python\ndef add(a, b):\n    return a + b\n```",
    "imports apart": "```python\nfrom typing import *\n```\n```python\ndef add(a: Optional[int], b: int):\n    return a + b\n```",
    "class alias": "```python\nclass A:\n    def __call__(self,a,b): return a+b\nadd = A()\n```",
    "method": "```python\nclass Solution:\n    def add(self,a,b): return a+b\nadd = Solution().add\n```",
    "cond": "```python\ntry:\n    from nowhere import add\nexcept ImportError:\n    def add(a, b):\n        return a + b\n```",
    "prose end word": "def add(a, b):\n    return a + b\n\nDone",
    "no fence string": "def add(a, b):\n    text = '''\nany words\n'''\n    return a + b",
    "no fence prose between": "import math\n\nNow the function:\n\ndef add(a, b):\n    return int(math.fsum([a, b]))\n\nIt's done.",
    "apostrophe": "def add(a, b):\n    return a + b\nIt's nice (really",
    "unclosed": "```python\ndef add(a, b):\n    return a + b",
    "upper": "```Python\ndef add(a, b):\n    return a + b\n```",
    "space": "``` python\ndef add(a, b):\n    return a + b\n```",
    "attr": "```{.python}\ndef add(a, b):\n    return a + b\n```",
    "title": '```python title="x.py"\ndef add(a, b):\n    return a + b\n```',
    "quote": "> ```python\n> def add(a, b):\n>     return a + b\n> ```",
    "main guard": "```python\ndef add(a, b):\n    return a + b\n\nif __name__ == '__main__':\n    print(add(int(input()), 2))\n```",
    "decor": "```python\nimport functools\n```\n```python\n@functools.lru_cache\ndef add(a, b):\n    return a + b\n```",
    "async": "```python\nasync def add(a, b):\n    return a + b\n```",
    "const": "```python\nZERO = 0\n```\n```python\ndef add(a, b):\n    return a + b + ZERO\n```",
    "chain": "```python\nimport math\n```\n```python\ndef h(x): return math.floor(x)\n```\n```python\ndef add(a,b): return h(a+b)\n```",
    "fence prose unclosed": "```python\ndef add(a, b):\n    return a + b\n\nThis adds them.",
    "two versions, first wrong syntax": "```python\ndef add(a, b)\n    return a\n```\n```python\ndef add(a, b):\n    return a + b\n```",
    "tab": "```python\ndef add(a, b):\n\treturn a + b\n```",
    "crlf": "```python\r\ndef add(a, b):\r\n    return a + b\r\n```\r\n",
    "nbsp": "```python\ndef add(a, b):\n\u00a0\u00a0\u00a0\u00a0return a + b\n```",
}


@pytest.mark.parametrize("form", ANSWERS)
def test_the_program_that_defines_the_entry_point_is_found_with_what_it_needs(form: str) -> None:
    names: dict[str, Any] = {"__name__": "solution"}
    exec(program_in(ANSWERS[form], "add"), names)
    result = names["add"](1, 2)
    assert (asyncio.run(result) if inspect.iscoroutine(result) else result) == 3


def test_examples_beside_helpers_are_not_run() -> None:
    answer = "```python\nhelp = 1\nraise SystemExit\n```\n```python\ndef f():\n    return help_me\n```\n```python\nhelp_me = 2\nprint(f(input()))\n```"
    assert program_in(answer, "f") == "help_me = 2\ndef f():\n    return help_me\n"


@pytest.mark.parametrize(
    "answer", ["add them", "", "def plus(a, b):\n    return a + b", "(" * 100_000, "```\n" * 30_000]
)
def test_where_nothing_defines_the_entry_point_something_is_returned_in_no_time(answer: str) -> None:
    assert isinstance(program_in(answer, "add"), str)


def test_of_two_whole_versions_the_first_counts() -> None:
    answer = "```python\ndef f():\n    return 1\n```\nor\n```python\ndef f():\n    return 2\n```"
    assert program_in(answer, "f") == "def f():\n    return 1\n"
