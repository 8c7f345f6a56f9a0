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
from thinktune.training.reinforce.rollouts import Drawn, Group, Rollout
from thinktune.training.reinforce.shared_prompts import shared_inputs


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
    drawn: Drawn, prepared: Sequence[Tokens], rl: Rl, capacity: int, *, every: int = 1, shared: bool = False
) -> list[RolloutBatch]:
    """Pack the rollouts of a step into batches, whole ones.

    Args:
        capacity: tokens of a batch, each rollout counted with its prompt; 0: every rollout is a batch of its own.
        every: take one rollout in so many.
        shared: rollouts of one prompt lie together, and share it.
    """
    pairs = drawn.rollouts()
    documents = []
    for group, rollout in pairs:
        tokens = prepared[group.problem]
        ids = tokens.ids[: tokens.context] + array("i", rollout.ids)
        documents.append(Tokens(ids, tokens.context, tokens.example))

    def of_prompt(index: int) -> tuple[int, Sequence[int], Sequence[int]]:
        group, rollout = pairs[index]
        tokens = prepared[group.problem]
        return group.number, tokens.ids[: tokens.context], rollout.ids

    cut_off = [rl.mask_truncated_completions and rollout.finish_reason == "length" for _, rollout in pairs]
    weights = shares(rl, [len(rollout.ids) for _, rollout in pairs], [not cut for cut in cut_off])
    collate = PackedCollator(documents)
    batches = []
    chosen = range(0, len(documents), every)
    lengths = [len(documents[index]) for index in chosen]
    fill = _in_order if shared else pack
    packs = fill(lengths, capacity) if capacity else [[at] for at in range(len(chosen))]
    for members in ([chosen[at] for at in each] for each in packs):
        facts = _facts([pairs[index] for index in members], [weights[index] for index in members], drawn.step)
        trained = [len(pairs[index][1].ids) for index in members]
        inputs = shared_inputs([of_prompt(index) for index in members]) if shared else collate([{"documents": members}])
        batches.append(RolloutBatch(inputs, facts, members, trained))
    return batches


def _in_order(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill packs one after the other."""
    packs: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if length > room:
            packs.append([])
            room = capacity
        packs[-1].append(index)
        room -= length
    return packs


def _facts(pairs: Sequence[tuple[Group, Rollout]], shares: Sequence[float], step: int) -> torch.Tensor:
    """Compute the facts of the tokens of some completions, one after the other."""
    of_rollout = torch.full((len(Fact), len(pairs)), math.nan)
    of_rollout[Fact.ADVANTAGE] = torch.tensor([rollout.advantage for _, rollout in pairs])
    of_rollout[Fact.SHARE] = torch.tensor(shares)
    of_rollout[Fact.SEQUENCE] = torch.arange(len(pairs))
    lengths = torch.tensor([len(rollout.ids) for _, rollout in pairs])
    of_rollout[Fact.LENGTH] = lengths
    facts = of_rollout.repeat_interleave(lengths, dim=1)
    facts[Fact.SAMPLED] = torch.tensor([each for _, rollout in pairs for each in rollout.logprobs])
    # The policy that drew an older one is known by the engine's numbers alone.
    stale = torch.tensor([group.step < step for group, _ in pairs]).repeat_interleave(lengths)
    facts[Fact.OLD] = torch.where(stale, facts[Fact.SAMPLED], math.nan)
    return facts
