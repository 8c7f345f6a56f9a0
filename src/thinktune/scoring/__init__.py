"""Item types: what each is sampled with, and how its completions are scored."""

from __future__ import annotations

from thinktune.scoring import choice_scorer, code_scorer, math_scorer, text_scorer
from thinktune.scoring.base import UNFINISHED, Outcome, Score, Task

TASKS: dict[str, Task] = {
    task.name: task for task in (math_scorer.TASK, choice_scorer.TASK, code_scorer.TASK, text_scorer.TASK)
}

__all__ = ["TASKS", "UNFINISHED", "Outcome", "Score", "Task"]
