"""Metrics of scored completions: the rates that every evaluation reports, and their tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from thinktune.evaluation.significance import Rate, wilson
from thinktune.scoring import UNFINISHED

Line = Mapping[str, Any]
"""Of samples.jsonl: what became of one completion."""
Problem = Sequence[Line]
"""All completions of one problem."""


@dataclass(frozen=True)
class Scores:
    """Scores on a set of problems.

    Rates are over all problems, those without a usable completion included: they count as wrong. With several
    completions a problem, each problem counts with the mean of its own. Only `completed` leaves problems out: those
    whose completions were all cut off or failed.

    Attributes:
        strict, lenient: None if there is no right or wrong.
        completed: strict accuracy over the problems that have a sample which was neither cut off nor an error.
        outcomes: number of completions by outcome.
    """

    n: int
    completions: int
    format: Rate
    strict: Rate | None
    completed: Rate | None
    lenient: Rate | None
    outcomes: dict[str, int]


def score_problems(problems: Sequence[Problem], *, decided: bool = True) -> Scores:
    """Compute the scores of at least one problem. `decided`: there is a right and a wrong."""
    lines = [line for problem in problems for line in problem]
    finished = [kept for problem in problems if (kept := [line for line in problem if _is_finished(line)])]
    return Scores(
        n=len(problems),
        completions=len(lines),
        format=_rate(problems, lambda line: line["format_problem"] is None and line["error"] is None),
        strict=_rate(problems, _is_right) if decided else None,
        completed=_rate(finished, _is_right) if decided and finished else None,
        lenient=_rate(problems, lambda line: bool(line["lenient"])) if decided else None,
        outcomes=dict(Counter(line["outcome"] for line in lines).most_common()),
    )


def _rate(problems: Sequence[Problem], counts: Callable[[Line], bool]) -> Rate:
    return wilson(sum(fmean(map(counts, problem)) for problem in problems), len(problems))


def _is_right(line: Line) -> bool:
    return bool(line["correct"])


def _is_finished(line: Line) -> bool:
    return line["outcome"] not in UNFINISHED


RATES: dict[str, Callable[[Scores], str]] = {
    "well-formed": lambda each: str(each.format),
    "right, strictly": lambda each: str(each.strict or ""),
    "of the completed": lambda each: str(each.completed or ""),
    "right, leniently": lambda each: str(each.lenient or ""),
}
"""Rows of a table: their names and cells."""
