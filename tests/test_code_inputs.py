"""Programs that read an input and write an output are run as such, and judged by what they write alone."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from thinktune.scoring import TASKS, Score
from thinktune.scoring.code_scorer import gold_fault
from thinktune.scoring.input_cases import cases_of, output_difference
from thinktune.scoring.program_finder import whole_program_in
from thinktune.scoring.sandbox.run import Limits, run_program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs process limits")

SUMS = {"input_output": {"inputs": ["1 2\n", "30 4\n"], "outputs": ["3\n", "34\n"]}}
ADDS = "a, b = map(int, input().split())\nprint(a + b)\n"


def score(answer: str, gold: dict[str, Any] = SUMS) -> Score:
    return TASKS["code-generate"].score(f"<think>a</think> <answer>{answer}</answer>", gold, "stop")


def packed(cases: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(cases))).decode()


@pytest.mark.parametrize(
    "program",
    [
        ADDS,
        "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
        "print(sum(map(int, open(0).read().split())))",
        "print(sum(map(int, open('/dev/stdin').read().split())), file=open('/dev/stdout', 'w'))",
        "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
        "def main():\n    print(sum(map(int, input().split())))\n\nif __name__ == '__main__':\n    main()",
        "import threading\nt = threading.Thread(target=lambda: print(sum(map(int, input().split()))))\nt.start()",
        "import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))",
        "print(floor(sum(map(float, input().split()))))",  # the imports that LiveCodeBench gives every program
        f"{ADDS}raise SystemExit(1)",
        f"from __future__ import annotations\n{ADDS}",
        f"import sys\nsys.stderr.write('x' * 10**6)\n{ADDS}",
    ],
)
def test_a_right_program_is_right_however_it_reads_and_writes(program: str) -> None:
    result = score(program)
    assert (result.outcome, result.note) == ("right", None)


@pytest.mark.parametrize(
    ("program", "note"),
    [
        ("print(3)", "case 2 of 2: line 1 is '3', not '34'"),
        ("input()", "case 1 of 2: line 1 is '', not '3'"),
        (f"{ADDS}print('done')", "case 1 of 2: 2 lines, not 1"),
        (f"{ADDS}1 / 0", "case 1 of 2: the program ends with ZeroDivisionError: division by zero"),
        (f"{ADDS}import os; os._exit(0)", "case 1 of 2: line 1 is '', not '3'"),  # never flushed
        ("a, b = input().split(\nprint(a)", "case 1 of 2: the program ends with SyntaxError"),
        (f"import os\nos.close(1)\n{ADDS}", "case 1 of 2: the program ends with"),
        (f"import os\nos.closerange(0, 64)\n{ADDS}", "case 1 of 2: the program ends with"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "case 1 of 2: the program ends with status -9"),
        ("print('x' * (17 << 20))", "case 1 of 2: the program writes more than 16 MB"),
    ],
)
def test_a_wrong_program_is_wrong_and_the_note_names_the_case(program: str, note: str) -> None:
    result = score(program)
    assert (result.correct, result.outcome) == (False, "wrong")
    assert (result.note or "").startswith(note)


HOSTILE = {
    "looks for the expected output": """
import gc, os, sys
def look():
    seen = str(sys.argv) + str(dict(os.environ))
    seen += "".join(str(each) for each in gc.get_objects() if isinstance(each, (str, dict, list)))
    for name in os.listdir("/proc"):
        for file in ("cmdline", "environ"):
            try: seen += open(f"/proc/{name}/{file}", errors="replace").read()
            except OSError: pass
    frame = sys._getframe()
    while frame:
        seen += str(frame.f_locals); frame = frame.f_back
    try:
        parent = open(f"/proc/{os.getppid()}/mem", "rb", 0)
        for line in open(f"/proc/{os.getppid()}/maps"):
            start, end = (int(x, 16) for x in line.split()[0].split("-"))
            if " rw" in line and end - start < 1 << 26:
                parent.seek(start); seen += parent.read(end - start).decode("latin-1")
    except (OSError, ValueError, OverflowError): pass
    return seen
seen = look()
at = seen.find("the-" + "expected-" + "output-")
print(seen[at:at + 25] if at >= 0 else "nothing")
""",
    "answers for the harness": """
import base64, json, os
for pid in (os.getppid(), os.getpid()):
    for name in os.listdir(f"/proc/{pid}/fd"):
        for text in ({"output": ""}, {"passed": True, "output": 5}, {"outcome": "passed"}):
            try:
                with open(f"/proc/{pid}/fd/{name}", "w") as file: file.write(json.dumps(text) + "\\n")
            except OSError: pass
""",
    "kills the harness": "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)\nprint('x')",
    "a deep answer": "import os\nopen(f'/proc/{os.getppid()}/fd/4', 'w').write('[' * 10**6 + '\\n')",
    "compares as anything": "class Any(str):\n    def __eq__(self, other): return True\nprint(Any('x'))",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_program_gains_nothing(program: str) -> None:
    result = score(program, {"input_output": {"inputs": ["1"], "outputs": ["the-expected-output-7f3a"]}})
    assert result.correct is False
    assert "the-expected-output-7f3a" not in (result.note or "").partition(", not ")[0]


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("while True: pass", "took more than 1 s of processor time"),
        ("import time\ntime.sleep(60)", "did not end within 4 s"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", "the program writes more than 16 MB"),
        ("import os, time\nwhile True:\n    os.fork()\n    time.sleep(0.01)", "the program ends with"),
        ("x = bytearray(3 << 30)", "the program ends with MemoryError"),
    ],
)
def test_a_program_without_end_is_ended(program: str, fault: str) -> None:
    started = time.monotonic()
    ran = run_program(program, "", Limits(cpu_seconds=1, seconds=4))
    assert ran.fault is not None
    assert not ran.unsaid
    assert fault in ran.fault or "processes" in ran.fault
    assert time.monotonic() - started < 20


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not tell who waits")
def test_a_program_that_waits_for_a_processor_is_given_its_time() -> None:
    """Ten processes share a processor, so that a second of work takes about ten; two are allowed by the clock."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(9)]
    try:
        work = "import time\nwhile time.process_time() < 1: pass\nprint('done')"
        assert run_program(work, "", Limits(cpu_seconds=4, seconds=2)).output == "done\n"
        waits = run_program("import time\ntime.sleep(60)", "", Limits(cpu_seconds=4, seconds=2))
        assert (waits.fault, waits.unsaid) == ("did not end within 2 s", False)
    finally:
        for each in others:
            each.kill()
            each.wait()
        os.sched_setaffinity(0, allowed)


def test_what_a_program_starts_does_not_outlive_it_or_hold_it_up() -> None:
    started = time.monotonic()
    ran = run_program("import os, time\nprint('a', flush=True)\nif os.fork() == 0: time.sleep(30)", "")
    assert (ran.output, ran.fault) == ("a\n", None)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("  1 \n2\t\n\n", "1\n2", True),
        ("0.50 2", "0.5 2.0", True),
        ("1e1", "10", True),
        ("50000000000000001", "50000000000000000", False),
        ("0.30000000000000004", "0.3", False),  # LiveCodeBench has no tolerance either
        ("yes", "YES", False),
        ("1 2", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("a  b", "a b", False),
        ("nan", "NaN", False),
        ("sNaN", "5", False),
        ("1e999999999999", "5", False),
        ("", "", True),
    ],
)
def test_outputs_are_compared_as_livecodebench_compares_them(written: str, expected: str, same: bool) -> None:
    assert (output_difference(written, expected) is None) == same


SOLVED = "class Solution:\n    def rotate(self, items: List[int], by: int) -> List[int]:\n        {body}\n"
CALLS = [{"input": "[1, 2, 3]\n1", "output": "[3, 1, 2]", "testtype": "functional"}]
ROTATE = {
    "public_test_cases": json.dumps(CALLS),
    "private_test_cases": packed(json.dumps([{**CALLS[0], "input": "[4]\n0", "output": "[4]"}])),
    "metadata": json.dumps({"func_name": "rotate"}),
}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("return items[-by:] + items[:-by] if by else items", "right"),
        ("return (*items[-by:], *items[:-by])", "right"),  # a tuple counts as a list, and [-0:] is all of them
        ("return [3, 1, 2]", "wrong"),
        ("self.rotate = None", "wrong"),
    ],
)
def test_a_function_is_called_with_a_livecodebench_row_s_arguments(body: str, outcome: str) -> None:
    assert score(SOLVED.format(body=body), ROTATE).outcome == outcome
    if outcome == "right":
        plain = "def rotate(items, by):\n    return items[-by:] + items[:-by] if by else items\n"
        assert score(plain, ROTATE).outcome == "right"


SOLUTION = "class Solution:\n    def rotate(self, items, by):\n        {}\n"
RIGHT = SOLUTION.format("return items[-by:] + items[:-by] if by else items")


@pytest.mark.parametrize(
    ("pieces", "outcome"),
    [
        ([SOLUTION.format("return items"), RIGHT], "right"),  # corrected: as published, the last piece counts
        ([RIGHT, SOLUTION.format("return items")], "wrong"),
        ([SOLUTION.format("pass"), RIGHT], "right"),  # the frame that was given
        ([RIGHT, SOLUTION.format("...")], "right"),
        ([RIGHT, "print(Solution().rotate([1], 0))\n"], "right"),
    ],
)
def test_the_last_piece_with_the_function_is_the_program(pieces: list[str], outcome: str) -> None:
    assert score("\nor\n".join(f"```python\n{piece}```" for piece in pieces), ROTATE).outcome == outcome


@pytest.mark.parametrize("kind", ["@staticmethod", "@classmethod", "@functools.cache"])
def test_a_method_of_any_kind_may_be_called_as_a_method_of_values_is(kind: str) -> None:
    first = {"@staticmethod": "", "@classmethod": "cls, "}.get(kind, "self, ")
    program = f"import functools\nclass Solution:\n    {kind}\n    def add({first}a, b):\n        return a + b\n"
    gold = {"input_output": {"inputs": ["1\n2"], "outputs": ["3"], "fn_name": "add"}}
    assert score(program, gold).outcome == "right"
    assert score(program.replace("+", "-"), gold).outcome == "wrong"


@pytest.mark.parametrize("below", ["print(add(int(input()), 1))", "exit()", "assert add(1, 1) == 3", "1 / 0"])
def test_what_fails_below_the_tested_function_is_not_what_was_asked_for(below: str) -> None:
    program = f"def add(a, b):\n    return a + b\n{below}\n"
    gold = {"test": "assert add(1, 2) == 3", "entry_point": "add"}
    assert score(program, gold).outcome == "right"
    assert score(program.replace("+", "-"), gold).outcome == "wrong"
    assert score("1 / 0\n" + program, gold).outcome == "wrong"
    cases = {"input_output": {"inputs": ["1\n2"], "outputs": ["3"], "fn_name": "add"}}
    assert score(program, cases).outcome == "wrong"  # as LiveCodeBench's checker has it


@pytest.mark.parametrize("name", ["count", "index", "rotate", "sort", "isEmpty"])
def test_a_method_may_be_called_as_a_method_of_values_is(name: str) -> None:
    program = f"class Solution:\n    def {name}(self, n):\n        return n > 1\n"
    gold = {"test": "assert candidate(2) == True\nassert candidate(1) == False", "entry_point": f"Solution().{name}"}
    assert score(program, gold).outcome == "right"
    assert score(program.replace(">", "<"), gold).outcome == "wrong"
    returned = (
        f"class Solution:\n    def f(self, n):\n        return self\n    def {name}(self, n):\n        return True\n"
    )
    lies = {"test": f"assert candidate('a').{name}('a')", "entry_point": "Solution().f"}
    assert name == "isEmpty" or score(returned, lies).outcome == "error"


def test_the_cases_of_livecodebench_s_archive_are_read() -> None:
    gold = {
        "public_test_cases": [{"input": "1", "output": "2"}],
        "private_test_cases": packed('[{"input": "3", "output": "4"}]'),
    }
    found = cases_of({**gold, "metadata": "{}"})
    assert found is not None
    assert (list(found.pairs), found.function) == ([("1", "2"), ("3", "4")], None)


class _Runs:
    def __reduce__(self) -> Any:
        return print, ("a pickle was run",)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (packed(_Runs()), "a pickle with"),
        (packed(["[]"]), "a pickle with"),
        (packed(b"[]"), "hold"),
        (base64.b64encode(zlib.compress(b"nothing")).decode(), "hold no text"),
        ("not packed", "neither JSON nor packed"),
        ('{"input": 1}', "no list of objects"),
        ('[{"input": "1"}]', "no text"),
        (packed("[" * 200_000), "maximum recursion"),
    ],
)
def test_cases_that_cannot_be_read_leave_the_answer_unscored(
    value: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = score(ADDS, {"private_test_cases": value})
    assert (result.correct, result.outcome) == (None, "not scored")
    assert said in (result.note or "")
    assert "a pickle was run" not in capfd.readouterr().out


@pytest.mark.parametrize("gold", [{"input_output": 5}, {"private_test_cases": 5}, {"public_test_cases": {"a": 1}}])
def test_cases_of_another_type_are_refused_with_the_gold_record(gold: dict[str, Any]) -> None:
    assert "is neither a text nor a" in (gold_fault(gold) or "")


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (f"```python\n{ADDS}```", ADDS),
        (f"For\n```\n1 2\n```\nwrite\n```python\n{ADDS}```\nwhich prints\n```\n3\n```", ADDS),
        (f"First\n```python\nprint(input())\n```\nbetter:\n```python\n{ADDS}```\nTry\n```python\nprint(3)\n```", ADDS),
        ("Use this:\nn = int(input())\nprint(n)\n\nIt does.", "n = int(input())\nprint(n)"),
        ("```python\nprint(3)\n```", "print(3)\n"),
        ("```cpp\nint main() {}\n```", "```cpp\nint main() {}\n```"),
    ],
)
def test_the_program_of_an_answer_is_the_one_that_reads(answer: str, program: str) -> None:
    assert whole_program_in(answer) == program
