"""Types whose answers are not scored: only their format is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinktune import tags
from thinktune.config import Sampling
from thinktune.tasks.base import Score, Task, format_outcome

SCORER = "thinktune format 1"


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    """Whether there is an answer; not whether it is right."""
    outcome = format_outcome(text, finish_reason)
    return Score(
        None, None, outcome or "not scored", tags.parse(text).answer if outcome is None else None, None, SCORER
    )


GENERIC = Task("generic-generate", Sampling(temperature=0.3, top_p=0.9, max_tokens=1024), score)
