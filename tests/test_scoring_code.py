"""Programs of models are run against tests, and contained whatever they try."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from thinktune.scoring import TASKS, Score
from thinktune.scoring.code_scorer import given_before, gold_fault
from thinktune.scoring.sandbox.run import RUNNER, Limits, run_trial
from trials import slow_but

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process limits")

GOLD = {
    "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate(-1, 1) == 0, 'negative'\n",
    "entry_point": "add",
}
RIGHT = "def add(a, b):\n    return a + b\n"


def written(answer: str) -> str:
    return f"<think>a</think> <answer>{answer}</answer>"


def score(answer: str, **gold: str) -> Score:
    return TASKS["code-generate"].score(written(answer), GOLD | gold, "stop")


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT,
        f"```python\n{RIGHT}```",
        f"Here it is:\n\n```py\n{RIGHT}```\nTry it:\n```python\nprint(add(1, 2))\n```",
        f"Here it is:\n{RIGHT}\nThis adds the numbers.",
        f"```\n{RIGHT}",
        f"```\r\n{RIGHT}```".replace("\n", "\r\n"),
        "from math import fsum\n\nhelper = lambda *x: int(fsum(x))\nadd = helper",
        "class Adder:\n    def __call__(self, a, b):\n        return a + b\n\nadd = Adder()",
        "import sys\nprint('x' * 10**7)\nsys.stderr.write('y')\n" + RIGHT,
    ],
)
def test_a_right_program_passes_wherever_it_stands_in_the_answer(answer: str) -> None:
    result = score(answer)
    assert (result.correct, result.outcome, result.note) == (True, "right", None)


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ("def add(a, b):\n    return a - b", "AssertionError"),
        ("def add(a, b):\n    return abs(a) + abs(b)", "AssertionError: negative"),
        ("def plus(a, b):\n    return a + b", "does not define add"),
        ("def add(a, b):\n    return 1 / 0", "ZeroDivisionError"),
        ("def add(a, b) return", "SyntaxError"),
        ("add them", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit"),
        ("def add(a, b):\n    raise SystemExit(0)", "SystemExit"),
        ("(" * 100_000, "before it is called"),
        ("import nowhere\n" + RIGHT, "No module named 'nowhere'"),
    ],
)
def test_a_wrong_program_fails_and_the_note_says_why(answer: str, note: str) -> None:
    result = score(answer)
    assert (result.correct, result.outcome) == (False, "wrong")
    assert note in (result.note or "")


def test_values_cross_with_their_types_and_errors_with_theirs() -> None:
    same = "def f(x):\n    if x == 'raise':\n        raise ValueError('no')\n    return x"
    values = [
        None,
        True,
        1,
        -(2**70),
        1.5,
        float("inf"),
        "é\ud800",
        (1, [2, {"a": {3}}]),
        b"\x00",
        2j,
        {(1, 2): "x"},
        frozenset({1}),
    ]
    test = f"for value in {values!r}:\n    assert f(value) == value and type(f(value)) is type(value), value\n".replace(
        " inf,", " float('inf'),"
    )
    test += (
        "try:\n    f('raise')\nexcept ValueError as error:\n    assert 'no' in str(error)\nelse:\n    assert False\n"
    )
    assert run_trial(same, test, "f").note is None


def test_tests_may_call_the_other_functions_of_a_program() -> None:
    program = "def helper(x):\n    return x + 1\n\ndef f(x):\n    return helper(helper(x))"
    assert run_trial(program, "def check(candidate):\n    assert candidate(1) == helper(2)", "f").equal


BAD = "def add(a, b):\n    return a - b"


@pytest.mark.parametrize(
    "gold",
    [
        {"test": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]},
        {"test": '["assert add(1, 2) == 3", "assert add(2, 2) == 4"]'},
        {"test": None, "test_list": ["assert add(1, 2) == total"], "test_setup_code": "total = 3", "test_imports": []},
        {"test": "assert add(1, 2) == 3", "entry_point": None},
        {"test": "import unittest\n\nclass T(unittest.TestCase):\n    def test(self):\n        assert add(1, 2) == 3"},
        {"test": "def test_sum():\n    assert add(1, 2) == 3"},
        {"test": "def check_add(candidate):\n    assert candidate(1, 2) == 3"},
        {"test": "def main():\n    assert add(1, 2) == 3\n\nif __name__ == '__main__':\n    main()"},
    ],
)
def test_tests_of_every_shape_are_run(gold: dict[str, object]) -> None:
    right, wrong = (TASKS["code-generate"].score(written(each), GOLD | gold, "stop") for each in (RIGHT, BAD))
    assert (right.outcome, right.note) == ("right", None)
    assert wrong.outcome == "wrong"


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["check", "abs", "expected"],
        ["check", "abs", "len", "sorted", "all", "isinstance", "candidate", "expected", "AssertionError"],
    ),
)
def test_no_name_of_a_program_replaces_one_of_the_tests_or_of_python(name: str) -> None:
    test = "def expected(a, b):\n    return a + b\n\ndef check(candidate):\n"
    test += "    assert all([abs(candidate(1, 2) - expected(1, 2)) < 1e-6, len(sorted([1])) == 1, isinstance(1, int)])"
    replaced = f"def {name}(*given):\n    return 0\n\n"
    assert not score(replaced + BAD, test=test).correct
    assert score(replaced + RIGHT, test=test).correct


@pytest.mark.parametrize(
    ("gold", "fault"),
    [
        ({"test": 5}, "test is neither a text nor a list of texts"),
        ({"test": ["assert 1", 2]}, "test is neither"),
        ({"test": {"assert": 1}}, "test is neither"),
        ({"test_list": [None]}, "test_list is neither"),
        ({"test": "assert f(1)", "entry_point": ["f"]}, "entry_point is no text"),
        ({"test": "assert f(1)", "entry_point": "f"}, None),
        ({"reference": "def f(): ..."}, None),
        ({}, "has no reference"),
    ],
)
def test_tests_that_are_no_text_are_a_fault_of_the_gold_record(gold: dict[str, object], fault: str | None) -> None:
    found = gold_fault(gold)
    assert found == fault if fault is None else fault in (found or "")


@pytest.mark.parametrize("test", ["", " \n", [], "[]"])
def test_an_empty_test_scores_nothing(test: object) -> None:
    result = TASKS["code-generate"].score(written(RIGHT), {"test": test, "entry_point": "add"}, "stop")
    assert (result.correct, result.outcome) == (None, "not scored")


def test_a_trial_that_cannot_be_decided_is_an_error() -> None:
    result = score(RIGHT, test="def check(candidate):\n    pass")
    assert (result.correct, result.outcome) == (False, "error")
    assert "never call" in (result.note or "")


def test_a_completion_without_its_tags_may_be_forgiven() -> None:
    result = TASKS["code-generate"].score(f"Sure:\n```python\n{RIGHT}```", GOLD, "stop")
    assert (result.correct, result.outcome, result.lenient) == (False, "no answer", True)


PROMPT = """Complete this Python function from the notes below.

from math import fsum

def half(x):
    return x / 2

def add(a, b):
    \"\"\"The sum.\"\"\"
"""


@pytest.mark.parametrize("field", ["prompt", "reference"])
def test_what_the_item_gives_before_the_function_need_not_be_repeated(field: str) -> None:
    answer = "from __future__ import annotations\n\ndef add(a, b):\n    return 2 * half(fsum([a, b]))"
    assert score(answer, **{field: PROMPT}).correct
    assert not score(answer).correct
    assert not score("def plus(a, b): ...", **{field: PROMPT + "    return a + b"}).correct


def test_prose_before_the_function_is_not_taken_for_code() -> None:
    prompt = "Write a function.\n\nfrom two numbers it makes their sum.\n\ndef add(a, b):"
    assert given_before({"prompt": prompt, "entry_point": "add"}) == ""
    assert given_before({"prompt": "no code", "entry_point": "add"}) == ""
    deep = f"import math\nx = {'-' * 10**6}1\ndef add(a, b):\n"  # Python's own parser gives up with a MemoryError
    assert given_before({"prompt": deep, "entry_point": "add"}) == ""
    assert score(RIGHT, prompt=prompt).correct


def test_a_gold_record_without_tests_is_not_scored() -> None:
    result = TASKS["code-generate"].score(written(RIGHT), {"reference": RIGHT}, "stop")
    assert (result.correct, result.outcome, result.extracted) == (None, "not scored", RIGHT.strip())


@pytest.fixture
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # nothing of other runs on this machine is in it
    shared = [folder for folder in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path.cwd()) if folder.exists()]

    def mischief() -> set[Path]:  # by name: a shared folder may hold a great many files
        files = (folder / f"mischief{number}" for folder in shared for number in range(100))
        return {file for file in files if file.exists()}

    before = mischief()
    processes = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    assert not list(tmp_path.iterdir())
    assert mischief() == before
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= processes
    deadline = time.monotonic() + 5  # the kernel ends those of a process table one after the other
    while any(str(tmp_path) in " ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline, "a process of a trial is left"
        time.sleep(0.02)


HOSTILE = {
    "endless loop": "def add(a, b):\n    while True: pass",
    "endless loop at import": "while True: pass",
    "sleep": """
import time
time.sleep(1000)
def add(a, b):
    return a + b
""",
    "fork bomb": """
import os
def add(a, b):
    while True:
        try: os.fork()
        except OSError: pass
""",
    "daemon": """
import os, time
def add(a, b):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os._exit(0)
    return -1
""",
    "threads": """
import threading, time
def add(a, b):
    while True: threading.Thread(target=time.sleep, args=(99,)).start()
""",
    "memory": """
def add(a, b):
    x = []
    while True: x.append(bytearray(10**7))
""",
    "memory in children": """
import os, time
def add(a, b):
    for _ in range(6):
        if os.fork() == 0:
            x = b'1' * 900_000_000
            time.sleep(99)
    time.sleep(99)
""",
    "big integer": "def add(a, b):\n    return 10 ** 10 ** 10",
    "big answer": "def add(a, b):\n    return 'x' * 10**8",
    "disk": """
def add(a, b):
    for n in range(100):
        for folder in ('.', '/tmp', '/dev/shm', '/var/tmp'):
            try: open(f'{folder}/mischief{n}', 'wb').write(b'1' * 10**7)
            except OSError: pass
    return -1
""",
    "printing": """
import sys
def add(a, b):
    while True: sys.stdout.write('x' * 10**8); sys.stderr.write('x' * 10**8)
""",
    "kill parent": """
import os, signal
def add(a, b):
    for pid in (os.getppid(), os.getpgid(0), 0, -1):
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
    return -1
""",
    "exit before the tests": "import os\nos._exit(0)",
    "exit in the call": """
import os
def add(a, b):
    os._exit(0)
""",
    "crash": """
import ctypes
def add(a, b):
    ctypes.string_at(0)
""",
    "equal to everything": """
class Any(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
def add(a, b):
    return Any(7)
""",
    "patched builtins": """
import builtins, sys
builtins.AssertionError = Exception
builtins.exec = builtins.compile = lambda *a, **k: None
sys.exit = lambda *a: None
def add(a, b):
    return 7
""",
    "faked verdict": """
import os, json
def add(a, b):
    for fd in range(64):
        try: os.write(fd, b'{"passed": true}\\n')
        except OSError: pass
    return 7
""",
    "patched frames": """
import sys
def add(a, b):
    frame = sys._getframe()
    while frame:
        if 'message' in frame.f_locals: frame.f_locals['message'].update(passed=True)
        frame.f_globals['encode'] = lambda value: {'passed': True}
        frame = frame.f_back
    return 7
""",
    "garbage on the pipe": """
import os
def add(a, b):
    for fd in range(3, 64):
        try: os.write(fd, b'[[[[\\xff\\n' * 1000)
        except OSError: pass
""",
    "reads the stack": """
import gc, sys
def add(a, b):
    found = [o for o in gc.get_objects() if isinstance(o, dict) and 'test' in o and 'entry_point' in o]
    return 5 if found else -1
""",
}


QUICK = {
    "endless loop",
    "fork bomb",
    "memory",
    "disk",
    "kill parent",
    "exit in the call",
    "equal to everything",
    "patched builtins",
    "faked verdict",
    "garbage on the pipe",
}
"""One of each kind; the others are slow."""


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("kind", slow_but(QUICK, HOSTILE))
def test_hostile_programs_are_wrong_end_in_time_and_leave_nothing(kind: str) -> None:
    started = time.monotonic()
    verdict = run_trial(HOSTILE[kind], GOLD["test"], GOLD["entry_point"], Limits(cpu_seconds=0.7, seconds=2))
    assert time.monotonic() - started < 20
    assert (verdict.equal, bool(verdict.note)) == (False, True)


def test_a_program_sees_neither_the_environment_nor_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "mischief")
    program = """
import glob, os, sys
def look():
    others = []
    for file in glob.glob("/proc/[0-9]*/environ"):
        try:
            others.append(open(file, "rb").read())
        except PermissionError:
            pass
    files = [name for name in os.listdir(".") if not sys.prefix.startswith(os.path.join(os.getcwd(), name))]
    return sorted(os.environ), files, others  # the way to Python's own folder is there, where that lies in it
"""
    test = (
        "names, files, others = look()\nassert not {'SECRET_TOKEN', 'PYTHONPATH'} & set(names), names\nassert not files"
    )
    assert run_trial(program, test, "look").note is None
    if os.getuid() == 0:
        assert run_trial(program, "assert b'mischief' not in b''.join(look()[2])", "look").note is None


def test_a_program_reaches_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = server.getsockname()
        program = f"import socket\ndef reach():\n    socket.create_connection({address}, 1).send(b'x')"
        assert "no network" in (run_trial(program, "reach()", "reach").note or "")
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_program_can_be_run_by_a_command_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runner = tmp_path / "runner"
    runner.write_text(f'#!/bin/sh\ntouch {tmp_path}/used\nexec {sys.executable} "$@"\n')
    runner.chmod(0o755)
    monkeypatch.setenv(RUNNER, str(runner))
    assert score(RIGHT).correct
    assert (tmp_path / "used").exists()
