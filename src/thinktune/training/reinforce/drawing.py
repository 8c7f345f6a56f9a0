"""Draws the rollouts of a step from the model in training: prompts, completions, rewards, and others for groups that
teach nothing.

A group whose rewards are all equal has no advantage, and so no gradient: other prompts take its place (dynamic
sampling, DAPO). As many as that will take, and some to spare, are begun at once, since they take as long as without;
more only where those do not do. All that are begun are finished before any is chosen, by the order of their prompts: to
take those that end first would prefer short completions, and easy problems.

Several ranks draw the same prompts as one would, each some of them, and have all groups in the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from random import Random
from statistics import fmean

from thinktune import tags
from thinktune.config import Config, Rl
from thinktune.errors import GenerationError
from thinktune.inference.engines.base import Completion, Request
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.scoring.rewards import Reward, Rewards
from thinktune.training.ranks import gathered, here
from thinktune.training.reinforce.objective import advantages
from thinktune.training.reinforce.problems import PreparedProblems
from thinktune.training.reinforce.rollouts import Drawn, Group, Rollout

_EXPECTED = 0.7
"""Share of the groups with a signal, before any is known."""
_MEMORY = 0.5
"""Of that share, from one step to the next."""
_SPARE = 1.5
"""Standard deviations of the number with a signal that are begun to spare: 7% of the steps need more."""


class RolloutSampler:
    """Draws completions of the training's problems with an engine over the model in training."""

    def __init__(
        self, engine: TransformersEngine, prepared: PreparedProblems, rewards: Rewards, config: Config
    ) -> None:
        self._engine = engine
        self._prepared = prepared
        self._rewards = rewards
        self._rl = config.rl
        self._seed = config.train_seed
        self._sampling = config.rl.sampling.model_copy(update={"seed": config.train_seed})
        self._orders: dict[int, list[int]] = {}  # of the problems, by epoch

    def draw(self, step: int, before: Drawn | None) -> Drawn:
        """Draw the rollouts of a step.

        Args:
            before: those of the step before; None: it is the first.

        Raises:
            GenerationError: the engine failed.
        """
        rl, started = self._rl, time.monotonic()
        kept = [] if before is None else [each for each in before.spare if step - each.step <= rl.max_staleness]
        expected = _EXPECTED if before is None else before.facts["expected_signal"]
        batch = _Batch(self, step, 0 if before is None else before.next)
        while count := self._count(rl.prompts - len(kept), expected, batch):
            with closing(self._engine.generate(batch.begin(count))) as completions:
                for completion in completions:
                    batch.take(completion)
            batch.groups += [group for each in gathered(batch.scored()) for group in each]
        usable = sorted((each for each in batch.groups if each.has_signal), key=lambda each: each.number)
        usable = [*kept, *usable]
        facts = _facts(batch.groups, self._rewards.names)
        facts["expected_signal"] = _MEMORY * expected + (1 - _MEMORY) * (1 - facts["no_signal"])
        facts["seconds_scoring"] = batch.waited
        facts["seconds_generating"] = time.monotonic() - started - batch.waited
        spare = usable[rl.prompts :] if rl.max_staleness else []
        return Drawn(step, _advanced(rl, usable[: rl.prompts]), spare, batch.first + batch.begun, facts)

    def _count(self, wanted: int, share: float, batch: _Batch) -> int:
        """Return how many groups to begin now, for so many with a signal in the end."""
        rl = self._rl
        missing = wanted - sum(group.has_signal for group in batch.groups)
        share, spread = max(share, 1 / rl.oversampling), 0.0
        if missing > 0 and rl.oversampling > 1:
            spread = _SPARE * math.sqrt(missing * (1 - share)) / share
        most = round(rl.prompts * rl.oversampling) - batch.begun
        return max(0, min(math.ceil(missing / share + spread), most))

    def request(self, step: int, number: int) -> tuple[int, Request]:
        """Return the problem that the prompt of this number asks, and the request of its group."""
        problem = self._problem(number)
        tokens = self._prepared.train[problem]
        # The noise of a completion follows from the request's name: a step that is drawn again draws the same.
        request = Request(f"{step}/{number}", tokens.ids[: tokens.context].tolist(), self._sampling, logprobs=True)
        return problem, request

    def _problem(self, number: int) -> int:
        """Return the problem of a prompt: all problems once, in an order drawn by the seed, then in another order."""
        epoch, place = divmod(number, len(self._prepared.train))
        if epoch not in self._orders:  # to shuffle thousands for each prompt takes as long as to decode some tokens
            order = list(range(len(self._prepared.train)))
            Random(f"{self._seed}/{epoch}").shuffle(order)
            self._orders = {epoch: order}
        return self._orders[epoch][place]

    def submit(self, problem: int, completion: Completion) -> Future[Reward]:
        item = self._prepared.problems[problem]
        return self._rewards.submit(
            item.type,
            item.gold,
            tags.valid_text(completion.text),
            finish_reason=completion.finish_reason,
            tokens=completion.tokens,
        )


class _Batch:
    """The groups of a step in the making: those that are begun, on whatever rank, and those that all ranks know."""

    def __init__(self, sampler: RolloutSampler, step: int, first: int) -> None:
        self._sampler = sampler
        self._step = step
        self.first = first
        self.begun = 0
        self.groups: list[Group] = []
        self.waited = 0.0  # seconds for scores
        self._problems: dict[str, int] = {}
        self._arrived: dict[str, list[tuple[Completion, Future[Reward]]]] = {}

    def begin(self, count: int) -> list[Request]:
        """Begin so many groups; return the requests of those that this rank is to answer."""
        numbers = range(self.first + self.begun, self.first + self.begun + count)
        self.begun += count
        own = [self._sampler.request(self._step, each) for each in numbers if each % here().size == here().rank]
        self._problems = {request.id: problem for problem, request in own}
        self._arrived = {request.id: [] for _, request in own}
        return [request for _, request in own]

    def take(self, completion: Completion) -> None:
        """Have a completion scored, beside the generation of others.

        Raises:
            GenerationError: it failed.
        """
        if completion.finish_reason == "error":
            raise GenerationError(f"a completion could not be drawn: {completion.error}")
        name = completion.request_id
        self._arrived[name].append((completion, self._sampler.submit(self._problems[name], completion)))

    def scored(self) -> list[Group]:
        """Return the groups whose completions this rank has taken, when they are scored."""
        started = time.monotonic()
        groups = []
        for name, arrived in self._arrived.items():
            arrived.sort(key=lambda pair: pair[0].index)
            rollouts = tuple(_rollout(each, reward.result()) for each, reward in arrived)
            problem, number = self._problems[name], int(name.partition("/")[2])
            prompt = str(self._sampler._prepared.problems[problem].gold.get("prompt", ""))
            groups.append(Group(problem, number, self._step, prompt, rollouts))
        self.waited += time.monotonic() - started
        return groups


def _advanced(rl: Rl, groups: Sequence[Group]) -> list[Group]:
    rewards = [[each.reward or 0.0 for each in group.rewarded] for group in groups]
    return [group.advanced(gains) for group, gains in zip(groups, advantages(rl, rewards), strict=True)]


def _rollout(completion: Completion, reward: Reward) -> Rollout:
    return Rollout(
        ids=completion.token_ids,
        logprobs=[float(f"{each:.9g}") for each in completion.logprobs],  # float32's, in few digits
        text=completion.text,
        finish_reason=completion.finish_reason,
        outcome=reward.score.outcome,
        rewards=reward.parts,
        reward=reward.total,
        correct=reward.score.correct,
        tokens=completion.tokens,
    )


def _facts(groups: Sequence[Group], names: Sequence[str]) -> dict[str, float]:
    """Compute means over all completions drawn, whether they are trained on or not."""
    rollouts = [each for group in groups for each in group.rollouts]
    facts = {"reward": _mean([each.reward for each in rollouts])}
    facts |= {f"reward_{name}": _mean([each.rewards.get(name) for each in rollouts]) for name in names}
    facts["accuracy"] = _mean([None if each.correct is None else float(each.correct) for each in rollouts])
    facts["format_rate"] = _mean([float(tags.parse(each.text).well_formed) for each in rollouts])
    facts["tokens"] = _mean([each.tokens for each in rollouts])
    facts["truncated"] = _mean([float(each.finish_reason == "length") for each in rollouts])
    facts["undecided"] = _mean([float(each.reward is None) for each in rollouts])
    facts["no_signal"] = _mean([float(not group.has_signal) for group in groups])
    facts["drawn"] = len(groups)
    return facts


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return fmean(known) if known else 0.0
