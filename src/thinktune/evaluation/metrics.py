"""Scores of completions: a line a sample, the rates that every evaluation reports, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rich.table import Table

from thinktune import tags
from thinktune.evaluation.significance import Rate, clustered, passes_at
from thinktune.inference.engines.base import Completion
from thinktune.scoring import UNFINISHED, Score, Task

Line = Mapping[str, Any]
"""A line of samples.jsonl: a completion and its score."""
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
        measures: if problems have several samples, pass@k, maj@n, and tied@n, the share of problems whose vote had as
            many for a wrong answer as for the right one; bleu and chrf of free text, 0 to 100.
    """

    n: int
    completions: int
    format: Rate
    strict: Rate | None
    completed: Rate | None
    lenient: Rate | None
    outcomes: dict[str, int]
    measures: dict[str, float]


def sample_line(completion: Completion, reference: Any, score: Score) -> dict[str, Any]:
    """Return a line of samples.jsonl, without the place of its problem."""
    return {
        "sample": completion.index,
        "completion": completion.text,
        "reference": reference,
        "finish_reason": completion.finish_reason,
        "error": completion.error,
        "format_problem": tags.parse(completion.text).problem,
        **vars(score),
    }


def score_lines(task: Task, lines: Sequence[Line]) -> Scores:
    """Compute the scores of all lines of one item type, the task's own measures among them."""
    problems: dict[str, list[Line]] = {}
    for line in lines:
        problems.setdefault(line["id"], []).append(line)
    groups = list(problems.values())
    # An error is wrong in any case, and so does not tell whether there is a right.
    told = [line["correct"] is not None for line in lines if line["outcome"] != "error"]
    decided = any(told) if told else task.metrics is None
    if decided:
        return score_problems(groups, measures=_of_several(groups, task))
    return score_problems(groups, decided=False, measures=task.metrics(lines) if task.metrics else {})


def score_problems(
    problems: Sequence[Problem], *, decided: bool = True, measures: dict[str, float] | None = None
) -> Scores:
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
        measures=measures or {},
    )


def _rate(problems: Sequence[Problem], counts: Callable[[Line], bool]) -> Rate:
    return clustered([fmean(map(counts, problem)) for problem in problems], sum(map(len, problems)))


def _is_right(line: Line) -> bool:
    return bool(line["correct"])


def _is_finished(line: Line) -> bool:
    return line["outcome"] not in UNFINISHED


def _of_several(groups: Sequence[Problem], task: Task) -> dict[str, float]:
    """Compute pass@k for every k that each problem has samples for, and the score of a majority vote."""
    least = min((len(group) for group in groups if any(line["error"] is None for line in group)), default=1)
    if least < 2:
        return {}
    right = [(max(len(group), least), sum(bool(line["correct"]) for line in group)) for group in groups]
    passes = zip(*(passes_at(n, count, least) for n, count in right), strict=True)
    measures = {f"pass@{k}": fmean(each) for k, each in enumerate(passes, start=1)}
    if task.vote_keys is not None:
        votes = [_vote(group, task.vote_keys) for group in groups]
        measures[f"maj@{least}"] = fmean(right for right, _ in votes)
        measures[f"tied@{least}"] = fmean(tied for _, tied in votes)
    return measures


def _vote(group: Problem, keys: Callable[[Sequence[str]], list[int]]) -> tuple[bool, bool]:
    """Return whether the most frequent answer is right, and whether a wrong one is as frequent as the right one.

    Answers are the same if the scorer's comparison has them equal: all right ones, since they equal the reference, and
    each wrong one and the first that it equals. Of equally frequent answers the first one is taken. Samples without an
    answer to compare have no vote.
    """
    voters = [line for line in group if line["extracted"] is not None]
    right = [bool(line["correct"]) for line in voters]
    if not any(right) or 2 * sum(right) > len(voters):
        return any(right), False  # whichever the others agree in
    wrong = iter(keys([line["extracted"] for line in voters if not line["correct"]]))
    votes = [-1 if each else next(wrong) for each in right]
    counts = Counter(votes)
    winner, most = counts.most_common(1)[0]  # of equally frequent ones, the first
    return winner == -1, counts[-1] == most and list(counts.values()).count(most) > 1


_RATES = {
    "well-formed": "format",
    "right, strictly": "strict",
    "of the completed": "completed",
    "right, leniently": "lenient",
}


def rate_rows(scores: Iterable[Scores]) -> dict[str, list[str]]:
    """Return the rows of a table with the rates of each scores, and their intervals."""
    scores = list(scores)
    return {label: [str(getattr(each, name) or "") for each in scores] for label, name in _RATES.items()}


def scores_table(names: Iterable[str], rows: Mapping[str, Iterable[str]]) -> Table:
    """Make a table of a column a name, with labelled rows of cells."""
    table = Table(title="with 95% intervals", title_style="dim")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for label, cells in rows.items():
        table.add_row(label, *cells)
    return table
