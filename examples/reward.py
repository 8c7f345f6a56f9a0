"""A reward of one's own, for reinforcement: `rl.rewards: {answer: 1, reward:says_the_unit: 0.2}`."""

from __future__ import annotations

from typing import Any


def says_the_unit(prompt: str, completion: str, gold: dict[str, Any]) -> float:
    """Reward a thought that counts in minutes."""
    return float("minutes" in completion.partition("</think>")[0])
