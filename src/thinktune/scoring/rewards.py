"""Rewards of completions: the scorers that grade, the format, the length, and functions of a user's own, weighted.

docs/reinforce.md lists the ways in which a model cheats a reward, and which of these rules stops each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from thinktune import tags
from thinktune.config.sections import REWARDS
from thinktune.errors import ConfigError
from thinktune.scoring import TASKS, Score, Task
from thinktune.scoring.own_reward import OwnReward


@dataclass(frozen=True)
class Reward:
    """What a completion is worth.

    Attributes:
        total: the weighted sum of the parts. None: undecided, as a part is: a completion to be left out, not a bad one.
        parts: unweighted, by name. None: the completion, its score or a user's function failed.
        score: by the scorer of its task, as in evaluation.
    """

    total: float | None
    parts: dict[str, float | None]
    score: Score


class Rewards:
    """Rewards completions by weighted parts; a context manager, which ends its threads and processes.

    `answer` is the score from 0 to 1 (right, and well-formed), `format` 0 or 1, `length` from -1 to 0 (see
    `overlong_penalty`), and any other name a user's `module:function` (see `own_reward`).

    Args:
        weights: by name; 0 measures a part without rewarding it.
        max_tokens: the limit of a completion.
        length_buffer: tokens before `max_tokens` over which `length` falls.

    Raises:
        ConfigError: a name is unknown, or there is no such function.
    """

    def __init__(self, weights: Mapping[str, float], *, max_tokens: int, length_buffer: int = 0) -> None:
        _check(weights, max_tokens, length_buffer)
        self.names = tuple(weights)
        self._weights = dict(weights)
        self._length = partial(overlong_penalty, max_tokens=max_tokens, buffer=length_buffer)
        self._own = {name: OwnReward(name) for name in weights if ":" in name}
        # Threads: what takes long are processes of their own, which are waited for.
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for own in self._own.values():
            own.close()

    def submit(self, type: str, gold: Mapping[str, Any], text: str, **completion: Any) -> Future[Reward]:
        """Begin to compute `reward` in a thread, beside the generation of other completions."""
        return self._pool.submit(self.reward, type, gold, text, **completion)

    def reward(self, type: str, gold: Mapping[str, Any], text: str, *, finish_reason: str, tokens: int) -> Reward:
        """Compute the reward of a completion.

        Args:
            type: item type, a name of `TASKS`.
            gold: the gold record, with the question as `prompt`.

        Raises:
            ConfigError: a user's function returned no number.
            MissingExtra: see `text_scorer`.
        """
        score = TASKS[type].score(text, gold, finish_reason)
        if finish_reason == "error":
            return Reward(None, dict.fromkeys(self.names), score)
        parts = {name: self._part(name, type, gold, text, tokens, score) for name in self.names}
        known = [self._weights[name] * part for name, part in parts.items() if part is not None]
        return Reward(sum(known) if len(known) == len(parts) else None, parts, score)

    def _part(
        self, name: str, type: str, gold: Mapping[str, Any], text: str, tokens: int, score: Score
    ) -> float | None:
        if name == "answer":
            return answer_reward(TASKS[type], gold, score)
        if name == "format":
            return float(shows_thought(text))
        if name == "length":
            return self._length(tokens)
        return self._own[name](str(gold.get("prompt", "")), text, gold)


def _check(weights: Mapping[str, float], max_tokens: int, length_buffer: int) -> None:
    for name in weights:
        if name not in REWARDS and ":" not in name:
            raise ConfigError(
                f"rl.rewards: there is no {name!r}", hint=f"known are {', '.join(REWARDS)}, or module:function of yours"
            )
    if "length" in weights and not 1 <= length_buffer <= max_tokens:
        raise ConfigError(
            f"rl.length_buffer is {length_buffer}, but `length` is rewarded",
            hint=f"give the number of tokens before the limit of {max_tokens} over which a completion loses reward",
        )


def answer_reward(task: Task, gold: Mapping[str, Any], score: Score) -> float | None:
    """Return the score's value, from 0 to 1; None: the scorer failed, or the gold record has no reference.

    A grade lets 12 x 7 pass where 84 is asked for. A reward must not: copying the question would be paid.
    """
    if score.outcome in ("error", "not scored"):
        return None
    if score.correct and task.is_unfinished is not None and task.is_unfinished(gold, score.extracted or ""):
        return 0.0
    return score.value


def shows_thought(text: str) -> bool:
    """Return whether a completion is well-formed and its thought says more than the answer again.

    >>> shows_thought("<think>12 / 4 is 3.</think> <answer>3</answer>")
    True
    >>> shows_thought("<think>3. 3!</think> <answer>3</answer>")
    False
    """
    parsed = tags.parse(text)
    return parsed.well_formed and bool(_words(parsed.think) - _words(parsed.answer))


def _words(text: str | None) -> set[str]:
    return set(re.findall(r"\w+", (text or "").casefold()))


def overlong_penalty(tokens: int, *, max_tokens: int, buffer: int) -> float:
    """Compute the soft overlong punishment of DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476, equation 13).

    >>> [overlong_penalty(n, max_tokens=100, buffer=20) for n in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    return max(-1.0, min(0.0, (max_tokens - buffer - tokens) / buffer))
