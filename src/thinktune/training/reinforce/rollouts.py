"""Completions with their rewards, and the journal of them: RUN/rollouts/step-N.jsonl, whole or not there.

A file has what the update of its step is a function of, beside the weights: a training that was killed after its file
was written makes that update from it; one killed before draws again, from the same weights and the same noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thinktune.errors import RunFolderError
from thinktune.files import telling_full_disk, write_json_lines


@dataclass(frozen=True)
class Rollout:
    """A completion of a prompt, with all that the loss needs of it.

    Attributes:
        ids: tokens, with the one that ended it; empty in the files of steps before the oldest checkpoint.
        logprobs: of each token as it was drawn.
        rewards: by part, unweighted; None: undecided.
        reward: their weighted sum; None: undecided, and then without a part in the loss.
        correct: strict, as evaluation scores it.
    """

    ids: Sequence[int]
    logprobs: Sequence[float]
    text: str
    finish_reason: str
    outcome: str
    rewards: dict[str, float | None]
    reward: float | None
    correct: bool | None
    tokens: int
    advantage: float = 0.0


@dataclass(frozen=True)
class Group:
    """The completions of one prompt.

    Attributes:
        problem: its index in the problems of the training.
        number: in the order in which prompts are drawn.
        step: in which it was drawn.
    """

    problem: int
    number: int
    step: int
    prompt: str
    rollouts: tuple[Rollout, ...]

    @property
    def rewarded(self) -> tuple[Rollout, ...]:
        """Those whose reward is decided."""
        return tuple(each for each in self.rollouts if each.reward is not None)

    @property
    def has_signal(self) -> bool:
        """Whether its rewards differ: else all advantages are 0."""
        rewards = {each.reward for each in self.rewarded}
        return len(rewards) > 1

    def advanced(self, advantages: Sequence[float]) -> Group:
        """Return the group of its rewarded rollouts, with their advantages."""
        pairs = zip(self.rewarded, advantages, strict=True)
        return replace(self, rollouts=tuple(replace(each, advantage=one) for each, one in pairs))


@dataclass(frozen=True)
class Drawn:
    """All that was drawn for an optimizer step, or for several on the same rollouts.

    Attributes:
        step: its number, from 1.
        groups: to be trained, all with a signal.
        spare: with a signal, and not needed yet.
        next: number of the first prompt that the next step draws.
        facts: of all completions drawn, trained or not: means of rewards and the like; seconds of the phases.
    """

    step: int
    groups: list[Group]
    spare: list[Group]
    next: int
    facts: dict[str, float] = field(default_factory=dict)

    def rollouts(self) -> list[tuple[Group, Rollout]]:
        return [(group, each) for group in self.groups for each in group.rollouts]


class RolloutJournal:
    """The rollouts of a run, a file a step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def file(self, step: int) -> Path:
        return self._folder / f"step-{step:06}.jsonl"

    def write(self, drawn: Drawn) -> None:
        head = {"step": drawn.step, "next": drawn.next, "facts": drawn.facts}
        lines: list[dict[str, Any]] = [head]
        lines += [_line(group, spare=False) for group in drawn.groups]
        lines += [_line(group, spare=True) for group in drawn.spare]
        with telling_full_disk(self._folder):
            write_json_lines(self.file(drawn.step), lines)

    def read(self, step: int) -> Drawn | None:
        """Read the rollouts of a step; None: they are not there.

        Raises:
            RunFolderError: the file is damaged.
        """
        file = self.file(step)
        if not file.exists():
            return None
        try:
            head, *lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
            groups = [(line.pop("spare"), _group(line)) for line in lines]
            trained = [group for spare, group in groups if not spare]
            return Drawn(
                head["step"], trained, [group for spare, group in groups if spare], head["next"], head["facts"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{file} is damaged: {error}", hint="delete it and those of later steps: they are drawn again"
            ) from None

    def steps(self) -> list[int]:
        """List the steps that there are files of."""
        return sorted(int(file.stem.partition("-")[2]) for file in self._folder.glob("step-*.jsonl"))

    def shorten(self, before: int) -> None:
        """Drop tokens and log-probabilities of steps before one that training will not go back to; texts stay."""
        for step in self.steps():
            if step < before and (drawn := self.read(step)) and any(each.ids for _, each in drawn.rollouts()):
                groups = [replace(group, rollouts=tuple(_texts(group.rollouts))) for group in drawn.groups]
                self.write(replace(drawn, groups=groups, spare=[]))


def _texts(rollouts: Iterable[Rollout]) -> Iterable[Rollout]:
    return (replace(each, ids=(), logprobs=()) for each in rollouts)


def _line(group: Group, *, spare: bool) -> dict[str, Any]:
    # Not by `asdict`, which copies each of a step's hundred thousand numbers.
    return {"spare": spare, **vars(group), "rollouts": [vars(each) for each in group.rollouts]}


def _group(line: dict[str, Any]) -> Group:
    return Group(**{**line, "rollouts": tuple(Rollout(**each) for each in line["rollouts"])})
