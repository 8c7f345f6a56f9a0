"""The policy loss, as a function of the log-probabilities of the tokens drawn.

Written out, so that autograd takes the gradient through the losses of single tokens: the ratio of policies and its
clipping are PPO's (arXiv 1707.06347) with the advantages of groups (GRPO, 2402.03300), a wider upper bound and one mean
over all tokens (DAPO, 2503.14476), a constant normaliser (Dr. GRPO, 2503.20783), ratios of whole completions (GSPO,
2507.18071), clipped weights in the place of clipped ratios (CISPO, 2506.13585), and a divergence weighed by the ratio
(DeepSeek-V3.2, 2512.02556). Equal to TRL's GRPOTrainer for the same completions; a test holds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

from thinktune.config import Rl


class Fact(IntEnum):
    """Rows of the facts of a batch, float32 [facts, trained tokens]."""

    ADVANTAGE = 0
    SHARE = 1
    """Weight of the token in the loss: 1 over the normaliser of `loss_type`; 0: it has no part in it."""
    SAMPLED = 2
    """Log-probability under the engine that drew it."""
    OLD = 3
    """Log-probability under the policy that ratios are taken to; NaN: the policy as it is in this step."""
    REFERENCE = 4
    """Log-probability under the adapter that training began with; NaN: not known."""
    SEQUENCE = 5
    """Number of the completion in the batch."""
    LENGTH = 6
    """Tokens of the completion."""


@dataclass(frozen=True)
class Objective:
    """The loss of section `rl`."""

    rl: Rl

    def __call__(self, logprobs: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """Compute a batch's part of the loss of the step, a float32 scalar.

        Args:
            logprobs: float32 [trained tokens], with gradient.
            facts: float32 [facts, trained tokens], rows as `Fact` names them.
        """
        rl, counted = self.rl, facts[Fact.SHARE] > 0
        now = logprobs.detach()
        old = torch.where(facts[Fact.OLD].isnan(), now, facts[Fact.OLD])
        log_ratio = torch.where(counted, logprobs - old, 0.0)  # padding may be too unlikely for an exponential
        if rl.importance_sampling_level == "sequence":
            log_ratio = _means(log_ratio, facts)
        advantage, ratio = facts[Fact.ADVANTAGE], log_ratio.exp()
        high = rl.epsilon if rl.epsilon_high is None else rl.epsilon_high
        if rl.loss_type == "cispo":
            loss = -ratio.clamp(max=high).detach() * advantage * logprobs
        else:
            loss = -torch.min(ratio * advantage, ratio.clamp(1 - rl.epsilon, 1 + high) * advantage)
        drift = torch.where(counted, old - facts[Fact.SAMPLED], 0.0)
        loss = loss * drift.exp().clamp(max=rl.importance_sampling_clip_max)
        if rl.beta:
            gap = torch.where(counted, facts[Fact.REFERENCE] - logprobs, 0.0)
            # Times the ratio, the gradient of the estimate is that of the divergence, without bias.
            loss = loss + rl.beta * ratio * (gap.exp() - gap - 1)
        return torch.where(counted, loss, 0.0) @ facts[Fact.SHARE]


def _means(values: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """Put in the place of each token's value the mean over its completion."""
    sequences = facts[Fact.SEQUENCE].long()
    sums = torch.zeros_like(values).index_add(0, sequences, values)
    return sums[sequences] / facts[Fact.LENGTH].clamp(min=1)


def shares(rl: Rl, lengths: Sequence[int], counted: Sequence[bool]) -> list[float]:
    """Return the weight of each token of every completion of a step, by completion.

    Args:
        lengths: tokens of each completion.
        counted: whether it has a part in the loss.
    """
    tokens = sum(length for length, one in zip(lengths, counted, strict=True) if one)

    def normaliser(length: int) -> int:
        if rl.loss_type == "grpo":
            return len(lengths) * length
        return len(lengths) * rl.max_completion_length if rl.loss_type == "dr_grpo" else tokens

    return [1 / normaliser(length) if one else 0.0 for length, one in zip(lengths, counted, strict=True)]


def advantages(rl: Rl, groups: Iterable[Sequence[float]]) -> list[list[float]]:
    """Return the advantage of each completion over its group, by group, from their rewards."""
    rewards = [torch.tensor(group, dtype=torch.float64) for group in groups]
    if not rewards:
        return []
    batch = torch.cat(rewards).std()
    found = []
    for group in rewards:
        advantage = group - group.mean()
        if rl.scale_rewards != "none":
            advantage = advantage / ((group.std() if rl.scale_rewards == "group" else batch) + 1e-4)
        found.append(advantage.tolist())
    return found
