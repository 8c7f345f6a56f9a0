"""Item types: what each is sampled with, and how its completions are scored."""

from __future__ import annotations

from thinktune.tasks import choice, code, math, unscored
from thinktune.tasks.base import Outcome, Score, Task

TASKS: dict[str, Task] = {task.name: task for task in (math.TASK, choice.TASK, code.TASK, unscored.GENERIC)}

__all__ = ["TASKS", "Outcome", "Score", "Task"]
