"""Identity of problems: by their content, and not by their place in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinktune import tags
from thinktune.scoring import ROW_TASK

Problem = tuple[str, str, str]
"""Identity of a problem in any file: item type, question, reference. See `problem_of`."""
Place = tuple[str, str]
"""Place of a problem: source and row, or nothing and its id."""


def problem_of(line: Mapping[str, Any]) -> Problem:
    """Return the problem of a line of samples.jsonl: the same question with the same reference is the same problem,
    told the format or not, in any row. If a line has no question (as of a result file) its id stands for it."""
    question = line.get("prompt")
    asked = str(line.get("id")) if question is None else f"{question.strip().removesuffix(tags.INSTRUCTION).strip()}\n"
    return str(line.get("type", ROW_TASK.name)), asked, str(line.get("reference"))


def place_of(line: Mapping[str, Any]) -> Place:
    """Return the place of the problem of a line of samples.jsonl."""
    return (str(line["source"]), str(line["row"])) if "source" in line else ("", str(line.get("id")))
