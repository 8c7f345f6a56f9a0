"""Rollouts as packed batches with the facts of each trained token."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from thinktune.config import Rl
from thinktune.data import Tokens, pack
from thinktune.training.collator import PackedCollator
from thinktune.training.reinforce.objective import Fact, shares
from thinktune.training.reinforce.rollouts import Drawn


@dataclass
class RolloutBatch:
    """Rollouts that go through the model together.

    Attributes:
        inputs: of `PackedCollator`.
        facts: float32 [facts, trained tokens], see `Fact`.
        members: indexes of the rollouts in the step, in the order of the tokens.
        lengths: trained tokens of each.
    """

    inputs: dict[str, Any]
    facts: torch.Tensor
    members: list[int]
    lengths: list[int]


def rollout_batches(
    drawn: Drawn, prepared: Sequence[Tokens], rl: Rl, capacity: int, *, every: int = 1
) -> list[RolloutBatch]:
    """Pack the rollouts of a step into batches, whole ones.

    Args:
        capacity: tokens of a batch; 0: every rollout is a batch of its own.
        every: take one rollout in so many.
    """
    pairs = drawn.rollouts()
    documents = []
    for group, rollout in pairs:
        tokens = prepared[group.problem]
        ids = tokens.ids[: tokens.context] + array("i", rollout.ids)
        documents.append(Tokens(ids, tokens.context, tokens.example))
    cut_off = [rl.mask_truncated_completions and rollout.finish_reason == "length" for _, rollout in pairs]
    weights = shares(rl, [len(rollout.ids) for _, rollout in pairs], [not cut for cut in cut_off])
    collate = PackedCollator(documents)
    batches = []
    chosen = range(0, len(documents), every)
    lengths = [len(documents[index]) for index in chosen]
    packs = pack(lengths, capacity) if capacity else [[at] for at in range(len(chosen))]
    for members in ([chosen[at] for at in each] for each in packs):
        rows = [
            _facts(rollout, weights[index], group.step < drawn.step, place)
            for place, index in enumerate(members)
            for group, rollout in [pairs[index]]
        ]
        trained = [len(pairs[index][1].ids) for index in members]
        batches.append(RolloutBatch(collate([{"documents": members}]), torch.cat(rows, dim=1), members, trained))
    return batches


def _facts(rollout: Any, share: float, stale: bool, place: int) -> torch.Tensor:
    facts = torch.empty(len(Fact), len(rollout.ids), dtype=torch.float32)
    facts[Fact.ADVANTAGE] = rollout.advantage
    facts[Fact.SHARE] = share
    facts[Fact.SAMPLED] = torch.tensor(rollout.logprobs, dtype=torch.float32)
    # The policy that drew an older one is known by the engine's numbers alone.
    facts[Fact.OLD] = facts[Fact.SAMPLED] if stale else math.nan
    facts[Fact.REFERENCE] = math.nan
    facts[Fact.SEQUENCE] = place
    facts[Fact.LENGTH] = len(rollout.ids)
    return facts
