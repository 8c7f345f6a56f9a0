"""Questions whose answer is known, so that the page can say whether a model is right: those that runs were scored
on, and plain sums."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from thinktune import tags
from thinktune.errors import ThinktuneError
from thinktune.inference.batch_file import BUILTIN
from thinktune.report.candidates import read_scores
from thinktune.run_folder import RunFolder
from thinktune.scoring import ROW_TASK, TASKS

_SUM = re.compile(r"(?:what is|what's|calculate|compute)?\s*([\d\s.+*/()-]+?)\s*(?:=|是多少|等于多少)?\s*[?？.]?\Z")
_WORDS = (("times", "*"), ("plus", "+"), ("minus", "-"), ("divided by", "/"), ("×", "*"), ("÷", "/"), ("−", "-"))
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_SCORED = ("math", "choice")  # types whose scorer runs nothing


class KnownAnswers:
    """Gold records by question; the scores of a run are read once, and again when they have changed."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._read: dict[Path, tuple[float, dict[str, dict[str, Any]]]] = {}

    def of(self, question: str) -> dict[str, Any] | None:
        """Return the gold record of a question (`type`, `prompt`, `reference`), or None."""
        asked = question.strip()
        for file in self._runs.glob("*/eval/tuned/samples.jsonl"):
            if found := self._scored(file).get(asked):
                return found
        value = sum_of(asked)
        return None if value is None else {"type": ROW_TASK.name, "prompt": asked, "reference": value}

    def is_right(self, question: str, answer: str) -> bool | None:
        """Score an answer with the format forgiven; None if nobody knows."""
        gold = self.of(question)
        return None if gold is None else is_right(gold["type"], answer, gold)

    def _scored(self, file: Path) -> dict[str, dict[str, Any]]:
        changed = file.stat().st_mtime
        known = self._read.get(file)
        if known is None or known[0] != changed:
            try:
                lines = read_scores(RunFolder(file.parents[2]), "tuned")[1]
            except ThinktuneError:  # a damaged file is the run's page's to tell of
                lines = []
            golds = {
                str(line.get("prompt") or "").removesuffix(tags.INSTRUCTION).strip(): {
                    "type": line.get("type", ROW_TASK.name),
                    "prompt": line.get("prompt"),
                    "reference": line["reference"],
                }
                for line in lines
                if line.get("reference") is not None
            }
            known = self._read[file] = changed, golds
        return known[1]


def is_right(kind: str, answer: str, gold: dict[str, Any]) -> bool | None:
    """Score an answer with the format forgiven; None if its type is not scored on the page, or cannot be."""
    if kind not in _SCORED:
        return None
    fault = TASKS[kind].gold_fault
    if fault is not None and fault(gold):
        return None
    score = TASKS[kind].score(answer, gold, "stop")
    return None if score.correct is None else score.correct or bool(score.lenient)


def golds_of(file: str | Path) -> dict[str, dict[str, Any]]:
    """Return the gold record of each line of a batch file that has a `reference`, by id."""
    if str(file) == BUILTIN:
        return {}
    golds = {}
    for line in Path(file).read_text(encoding="utf-8-sig").split("\n"):
        fields = json.loads(line) if line.strip() else {}
        identity = fields.get("id", fields.get("custom_id"))
        if identity is not None and fields.get("reference") is not None:
            golds[str(identity)] = fields
    return golds


def sum_of(question: str) -> str | None:
    """Return the value of a question that is nothing but a sum.

    >>> sum_of("What is 7 times 8?")
    '56'
    """
    text = question.strip().lower()
    if len(text) > 80:
        return None
    for word, sign in _WORDS:
        text = text.replace(word, f" {sign} ")
    found = _SUM.match(text)
    if not found or not re.search(r"\d\s*[-+*/]", found[1]) or "**" in found[1].replace(" ", ""):
        return None
    try:
        value = _value(ast.parse(found[1].strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    return str(value)


def _value(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not a sum")
