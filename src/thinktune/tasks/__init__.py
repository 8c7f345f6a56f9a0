"""Item types: what each is sampled with, and how its completions are scored."""

from __future__ import annotations

from thinktune.tasks import choice, code, generic, math
from thinktune.tasks.base import UNFINISHED, Outcome, Score, Task

TASKS: dict[str, Task] = {task.name: task for task in (math.TASK, choice.TASK, code.TASK, generic.TASK)}

__all__ = ["TASKS", "UNFINISHED", "Outcome", "Score", "Task"]
