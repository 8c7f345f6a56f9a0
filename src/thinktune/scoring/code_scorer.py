"""Programs: the function of an answer, run against the tests of its gold record (see `sandbox` for how, and how safe),
or a whole program, run on its inputs (`input_cases`).

The gold record is HumanEval's, MBPP's or BigCodeBench's: `test` (or `test_list`, behind `test_imports` and
`test_setup_code`) holds assertions, by themselves, in `check(candidate)`, in a unittest class or in pytest functions;
`entry_point` names the function, and may be left out if the tests call just one that they do not define. Code that the
item gives before that function (imports, helpers) is run for the answer too: from `prompt` if the record has one, else
from the reference. Python only.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import platform
import re
from collections.abc import Mapping
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.scoring import input_cases
from thinktune.scoring.base import TAIL, Score, Task, format_outcome, score_of
from thinktune.scoring.input_cases import InputCases
from thinktune.scoring.program_finder import program_in, whole_program_in
from thinktune.scoring.sandbox.run import run_trial

SCORER = f"thinktune code 4, Python {platform.python_version()}"
_START = re.compile(r"^(?:from|import|def|class|@|async def)\b|^@", re.MULTILINE)
_TEXTS = ("test", "test_list", "test_imports", "test_setup_code")


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    outcome = format_outcome(text, finish_reason)
    if outcome == "error":
        return Score(False, 0.0, "error", None, False, SCORER)
    answer = tags.parse(text).answer
    stated = answer if outcome is None and answer else text[-TAIL:]
    try:
        if cases := None if gold_fault(gold) else input_cases.cases_of(gold):
            program = _program_for(cases, stated)
            return score_of(input_cases.judge(program, cases), outcome, program, SCORER)
    except (ValueError, RecursionError) as error:
        return Score(None, None, outcome or "not scored", None, None, SCORER, str(error))
    entry_point, test = entry_point_of(gold), tests_of(gold)
    program = program_in(stated, entry_point)
    extracted = program if outcome is None else None
    if not test or not entry_point or gold_fault(gold):
        note = gold_fault(gold) or "the gold record has no test and entry_point"
        return Score(None, None, outcome or "not scored", extracted, None, SCORER, note)
    verdict = run_trial(program, test, entry_point, given=given_before(gold))
    return score_of(verdict, outcome, extracted, SCORER)


def _program_for(cases: InputCases, answer: str) -> str:
    if cases.function is None:
        return whole_program_in(answer)
    return program_in(answer, "Solution" if "class Solution" in answer else cases.function, last=True)


def gold_fault(gold: Mapping[str, Any]) -> str | None:
    """Explain why a gold record cannot be used; None if its tests are texts; a reference alone is enough for no score.

    >>> gold_fault({"test": 5, "entry_point": "f"})
    'test is neither a text nor a list of texts'
    """
    if not gold.keys() & {"reference", "answer", "test", "test_list", *input_cases.KEYS}:
        return "has no reference"
    if fault := input_cases.cases_fault(gold):
        return fault
    for name in _TEXTS:
        value = gold.get(name)
        if value is not None and not isinstance(value, str) and not _is_list_of_texts(value):
            return f"{name} is neither a text nor a list of texts"
    entry_point = gold.get("entry_point")
    return None if entry_point is None or isinstance(entry_point, str) else "entry_point is no text"


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def tests_of(gold: Mapping[str, Any]) -> str:
    """Return the tests of a gold record as one text, empty if it has none.

    >>> tests_of({"test_list": ["assert f(1) == 1", "assert f(2) == 2"], "test_imports": ["import math"]})
    'import math\nassert f(1) == 1\nassert f(2) == 2'
    """
    tests = _as_text(gold.get("test")) or _as_text(gold.get("test_list"))
    before = [_as_text(gold.get(name)) for name in ("test_imports", "test_setup_code")]
    return "\n".join([text for text in before if text] + [tests]) if tests else ""


def _as_text(value: Any) -> str:
    if isinstance(value, str) and value.lstrip().startswith("["):  # the JSON of a list, which runs nothing as code
        with contextlib.suppress(ValueError, RecursionError):
            value = listed if _is_list_of_texts(listed := json.loads(value)) else value
    if isinstance(value, list):
        value = "\n".join(map(str, value))
    return value.replace("\r\n", "\n") if isinstance(value, str) and value.strip() else ""


def entry_point_of(gold: Mapping[str, Any]) -> str:
    """Return the name under test; if the record has none, the one function that the tests call and do not define.

    >>> entry_point_of({"test_list": ["assert sorted(add([1], 2)) == [1, 2]"]})
    'add'
    """
    if named := gold.get("entry_point"):
        return str(named).strip()
    try:
        nodes = list(ast.walk(ast.parse(tests_of(gold))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    bound = {name for node in nodes for name in _bound_by(node)} | vars(builtins).keys()
    called = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    found = {name for name in called if name not in bound}
    return found.pop() if len(found) == 1 else ""


def _bound_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(each.asname or each.name).split(".")[0] for each in node.names]
    name = getattr(node, "arg" if isinstance(node, ast.arg) else "name", None)
    return [name] if isinstance(name, str) else []


def given_before(gold: Mapping[str, Any]) -> str:
    """Return the code that an item gives before the function it asks for.

    >>> given_before({"entry_point": "f", "prompt": "Complete it.\\n\\nimport math\\n\\ndef f(x):\\n"})
    'import math\\n\\n'
    """
    text = str(gold.get("prompt") or gold.get("reference") or "").replace("\r\n", "\n")
    name = re.split(r"[.(]", entry_point_of(gold))[0]
    asked = re.search(rf"^(?:async )?(?:def|class) {re.escape(name)}\b", text, re.MULTILINE)
    start = _START.search(text)
    code = text[start.start() : asked.start()] if asked and start else ""
    try:
        compile(code, "given.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # prose that begins like code, or a nest too deep
        return ""
    return code


# Three programs are worth having only if they differ.
TASK = Task("code-generate", Sampling(temperature=0.6, top_p=0.95, max_tokens=2048, n=3), score, gold_fault=gold_fault)
