"""Programs: the function of an answer, run against the tests of its gold record (see `trial` for how, and how safe).

The gold record is HumanEval's: `test` holds assertions, by themselves or in `check(candidate)`; `entry_point` names the
function. What the item gives before that function (imports, helpers) is there for the answer too: from `prompt` where
the record has one, else from the reference. Python only.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.tasks.base import TAIL, Score, Task, format_outcome
from thinktune.tasks.trial import run_trial

SCORER = f"thinktune code 2, Python {platform.python_version()}"
_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_START = re.compile(r"^(?:from|import|def|class|@|async def)\b|^@", re.MULTILINE)
# What may follow a function without being prose: indented or closing lines, statements, comments, assignments.
_CODE_LINE = re.compile(
    r"\s|[)\]}#@'\"]|(?:from|import|def|class|async|if|for|while|try|with|else|elif|except|finally|return|assert)\b"
    r"|[A-Za-z_][\w.]*(?:\[[^\]]*\])?\s?(?:[:+*/|-]?=|\()|$"
)


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    outcome = format_outcome(text, finish_reason)
    if outcome == "error":
        return Score(False, 0.0, "error", None, False, SCORER)
    answer = tags.parse(text).answer
    program = program_in(answer if outcome is None and answer else text[-TAIL:])
    extracted = program if outcome is None else None
    if not gold.get("test") or not gold.get("entry_point"):
        note = "the gold record has no test and entry_point"
        return Score(None, None, outcome or "not scored", extracted, None, SCORER, note)
    verdict = run_trial(program, str(gold["test"]), str(gold["entry_point"]), given=given_before(gold))
    if outcome is not None:
        return Score(False, 0.0, outcome, None, verdict.equal, SCORER, verdict.note)
    return Score(
        verdict.equal, float(verdict.equal), "right" if verdict.equal else "wrong", extracted, verdict.equal, SCORER,
        verdict.note,
    )  # fmt: skip


def program_in(answer: str) -> str:
    """The program in an answer: its Python fences, else the answer from its first definition to the prose after it.

    >>> program_in("Here it is:\\n```python\\ndef f():\\n    return 1\\n```\\nIt returns 1.")
    'def f():\\n    return 1\\n'
    """
    answer = answer.replace("\r\n", "\n")
    fences = [(language.casefold(), code) for language, code in _FENCE.findall(answer)]
    wanted: list[str] = [
        code for language, code in fences if language in ("python", "python3", "py", "") and _START.search(code)
    ]
    if wanted:
        # A second fence is an example or a second version more often than the rest of the first.
        return next((code for code in wanted if "def " in code), wanted[0])
    if not (start := _START.search(answer)):
        return answer
    lines = answer[start.start() :].split("\n")
    end = next((at for at, line in enumerate(lines) if not _CODE_LINE.match(line)), len(lines))
    return "\n".join(lines[:end])


def given_before(gold: Mapping[str, Any]) -> str:
    """The code that an item gives before the function it asks for.

    >>> given_before({"entry_point": "f", "prompt": "Complete it.\\n\\nimport math\\n\\ndef f(x):\\n"})
    'import math\\n\\n'
    """
    text = str(gold.get("prompt") or gold.get("reference") or "").replace("\r\n", "\n")
    asked = re.search(rf"^(?:async )?(?:def|class) {re.escape(str(gold['entry_point']))}\b", text, re.MULTILINE)
    start = _START.search(text)
    code = text[start.start() : asked.start()] if asked and start else ""
    try:
        compile(code, "given.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):  # prose that begins like code
        return ""
    return code


# Three programs are worth having only if they differ.
TASK = Task("code-generate", Sampling(temperature=0.6, top_p=0.95, max_tokens=2048, n=3), score)
