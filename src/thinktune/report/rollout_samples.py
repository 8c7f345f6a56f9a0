"""Completions that a reinforcement drew, of several of its steps beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thinktune.run_folder import RunFolder
from thinktune.training.reinforce.rollouts import Group, Rollout, RolloutJournal

_STEPS = 4
_GROUPS = 2


def rollout_samples(folder: RunFolder) -> list[dict[str, Any]]:
    """Collect the best and the worst completion of some groups, of the first, the last and steps between; none of a run
    that drew none.

    Raises:
        RunFolderError: the journal is damaged.
    """
    journal = RolloutJournal(folder.rollouts)
    found = []
    for step in _spread(journal.steps()):
        drawn = journal.read(step)
        if drawn is not None and drawn.groups:
            facts = {name: drawn.facts[name] for name in ("reward", "accuracy", "tokens") if name in drawn.facts}
            found.append({"step": step, "facts": facts, "groups": [_ends(group) for group in drawn.groups[:_GROUPS]]})
    return found


def _spread(steps: Sequence[int]) -> list[int]:
    if len(steps) <= _STEPS:
        return list(steps)
    return [steps[round(at * (len(steps) - 1) / (_STEPS - 1))] for at in range(_STEPS)]


def _ends(group: Group) -> dict[str, Any]:
    ordered = sorted(group.rollouts, key=lambda each: -(each.reward or 0.0))
    return {"prompt": group.prompt, "rollouts": [_shown(ordered[0]), _shown(ordered[-1])]}


def _shown(rollout: Rollout) -> dict[str, Any]:
    parts = ", ".join(f"{name} {value:g}" for name, value in rollout.rewards.items() if value is not None)
    told = f"reward {rollout.reward or 0.0:.3g}" + (f" ({parts})" if len(rollout.rewards) > 1 else "")
    text = rollout.text if len(rollout.text) <= 2000 else f"{rollout.text[:2000]} …"
    return {"outcome": rollout.outcome, "told": told, "text": text, "tokens": rollout.tokens}
