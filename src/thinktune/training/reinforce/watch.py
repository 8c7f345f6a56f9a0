"""What a person watches while a reinforcement runs: figures of each step, and warnings when it degenerates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from thinktune.config import Rl
from thinktune.training.reinforce.objective import Fact
from thinktune.training.reinforce.rollout_batches import RolloutBatch

PREFIX = "rl/"
"""Of the figures' names in metrics.jsonl and in further loggers."""
_NO_ENTROPY = 0.005
"""Nats a token, below which completions of a prompt hardly differ any more."""
_SEVERAL = 5
"""Steps in a row that make a trend."""


def policy_facts(batches: Sequence[RolloutBatch], logprobs: Sequence[torch.Tensor], rl: Rl) -> dict[str, float]:
    """Compute what log-probabilities of the trained tokens say, over all batches of a step.

    `entropy`: nats a token, the mean of -log p of the tokens drawn, an estimate; `mismatch`: mean distance of engine
    and trainer in log-probabilities; `ratio_max` and `ratio_min`: the most and the least of their ratio on a token;
    `truncated_weights`: share of tokens whose correcting weight was truncated; `clipped`: share of tokens without a
    gradient as their ratio was clipped.
    """
    now = torch.cat(list(logprobs))
    facts = torch.cat([batch.facts for batch in batches], dim=1)
    old = torch.where(facts[Fact.OLD].isnan(), now, facts[Fact.OLD])
    drift, ratio, gain = old - facts[Fact.SAMPLED], (now - old).exp(), facts[Fact.ADVANTAGE]
    high = rl.epsilon if rl.epsilon_high is None else rl.epsilon_high
    clipped = ((ratio < 1 - rl.epsilon) & (gain < 0)) | ((ratio > 1 + high) & (gain > 0))
    figures = {
        "entropy": -now.mean(),
        "mismatch": drift.abs().mean(),
        "ratio_max": drift.max().exp(),
        "ratio_min": drift.min().exp(),
        "truncated_weights": (drift.exp() > rl.importance_sampling_clip_max).float().mean(),
        "clipped": clipped.float().mean(),
    }
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))


def divergence(now: torch.Tensor, before: torch.Tensor) -> float:
    """Estimate the KL divergence of the policy from the one that training began with, in nats a token, by tokens that
    the policy drew (Schulman's k3, which is never negative)."""
    gap = before - now
    return float((gap.exp() - gap - 1).mean())


class Warnings:
    """Says once of each way to degenerate that it is seen."""

    def __init__(self, rl: Rl, lines: Sequence[Mapping[str, Any]]) -> None:
        """
        Args:
            lines: of metrics.jsonl, from before a resumption; a list that grows.
        """
        self._rl = rl
        self._lines = lines
        self._said: set[str] = set()

    def after_step(self) -> Iterator[str]:
        """Yield new warnings, by the lines so far."""
        lines = [line for line in self._lines if f"{PREFIX}reward" in line]
        last = lines[-_SEVERAL:]
        if len(last) < _SEVERAL:
            return
        for key, seen, text in self._signs(lines[:_SEVERAL], last):
            if seen and key not in self._said:
                self._said.add(key)
                yield f"warning: {text}"

    def _signs(self, first: Sequence[Any], last: Sequence[Any]) -> Iterator[tuple[str, bool, str]]:
        def values(name: str, lines: Sequence[Any] = last) -> list[float]:
            return [line.get(f"{PREFIX}{name}", 0.0) for line in lines]

        def mean(name: str, lines: Sequence[Any] = last) -> float:
            return sum(values(name, lines)) / len(lines)

        yield (
            "entropy",
            max(values("entropy")) < _NO_ENTROPY,
            f"the entropy is gone ({mean('entropy'):.4f} nats a token): completions of a prompt hardly differ; a lower "
            "train.learning_rate, a larger rl.epsilon_high or rl.temperature keep it up",
        )
        yield (
            "length",
            mean("tokens") > 2 * mean("tokens", first) and mean("truncated") > 0.1 + mean("truncated", first),
            f"completions grow ({mean('tokens', first):.0f} tokens at first, {mean('tokens'):.0f} now) and "
            f"{mean('truncated'):.0%} are cut off: reward length, or allow a larger rl.max_completion_length",
        )
        yield (
            "equal",
            min(values("no_signal")) > 0.9,
            f"{mean('no_signal'):.0%} of the groups have rewards that are all equal: the problems are too easy or too "
            "hard for this model, or a reward never differs",
        )
        yield (
            "format",
            mean("format_rate", first) > 0.5 and mean("format_rate") < 0.5 * mean("format_rate", first),
            f"well-formed completions fall from {mean('format_rate', first):.0%} to {mean('format_rate'):.0%}",
        )
        yield (
            "reward",
            mean("reward") < mean("reward", first) - 0.5 * abs(mean("reward", first)) - 0.05,
            f"the reward falls, from {mean('reward', first):.3f} to {mean('reward'):.3f}: a lower train.learning_rate, "
            "or rl.beta above 0",
        )
        yield (
            "mismatch",
            mean("truncated_weights") > 0.05,
            f"engine and trainer disagree: {mean('truncated_weights'):.0%} of the tokens have a probability more than "
            f"{self._rl.importance_sampling_clip_max:g} times that of the engine",
        )
