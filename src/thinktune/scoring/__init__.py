"""Tasks: how items of each type are sampled and their completions scored. This is the one place that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from thinktune.scoring import choice_scorer, code_scorer, math_scorer, text_scorer
from thinktune.scoring.base import UNFINISHED, Outcome, Score, Scorer, Task
from thinktune.scoring.own_scorer import load_scorer

TASKS: dict[str, Task] = {
    task.name: task for task in (math_scorer.TASK, choice_scorer.TASK, code_scorer.TASK, text_scorer.TASK)
}
ROW_TASK = math_scorer.TASK
"""The task of rows with references, as training data are."""
DEFAULT_TASK = text_scorer.TASK
"""The task of items that name none, such as the lines of OpenAI's batch API."""


def tasks_scored_by(scorer: str | None) -> Mapping[str, Task]:
    """Return the tasks with a user's own scorer (see `own_scorer`) in place of each one's. None: the tasks as they are.

    Raises:
        ConfigError: there is no such function.
    """
    if scorer is None:
        return TASKS
    own: dict[str, Any] = {
        "score": load_scorer(scorer),
        "metrics": None,
        "vote_keys": None,
        "gold_fault": lambda gold: None,
        "needs_prompt": True,
        "is_unfinished": None,
    }
    return {name: replace(task, **own) for name, task in TASKS.items()}


__all__ = [
    "DEFAULT_TASK",
    "ROW_TASK",
    "TASKS",
    "UNFINISHED",
    "Outcome",
    "Score",
    "Scorer",
    "Task",
    "tasks_scored_by",
]
