"""The trainer of `method: grpo`: a step draws its rollouts, or reads those of the journal, and trains on them.

Of several ranks, each has all rollouts and the same batches, and takes some of these through the model.
"""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from thinktune.config import Config
from thinktune.errors import RunFolderError
from thinktune.files import replacing, telling_full_disk
from thinktune.planner.dealing import deal
from thinktune.training.checkpoints import whole_checkpoints
from thinktune.training.fused.generation import generating
from thinktune.training.ranks import by_first, gathered, here
from thinktune.training.reinforce.drawing import RolloutSampler
from thinktune.training.reinforce.objective import Fact, Objective
from thinktune.training.reinforce.problems import PreparedProblems
from thinktune.training.reinforce.rollout_batches import RolloutBatch, rollout_batches
from thinktune.training.reinforce.rollouts import Drawn, RolloutJournal
from thinktune.training.reinforce.shared_prompts import may_share_prompts
from thinktune.training.reinforce.starting_adapter import StartingAdapter
from thinktune.training.reinforce.watch import PREFIX, divergence, policy_facts
from thinktune.training.trainer import ThinkTrainer

_WATCHED = 16
"""One completion in so many is also scored by the adapter that training began with."""
_WATCHED_STEPS = 4
"""In one step of so many, as it takes a tenth of a short one."""
_SCARCE = 0.8
"""Share of a GPU's memory, in use or kept for use, above which the latter is given back between drawing and update."""
_UNEVEN = 1.05
"""Tokens of a rank's batch, over its share: completions are not split."""


class ReinforceTrainer(ThinkTrainer):
    """Trains on rollouts. A row of its data stands for an optimizer step, whose batches are made when it comes.

    Attributes:
        sampler: draws rollouts; set before training begins.
    """

    sampler: RolloutSampler

    def __init__(
        self,
        *args: Any,
        config: Config,
        prepared: PreparedProblems,
        capacity: int,
        journal: RolloutJournal,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            capacity: tokens of a batch.
        """
        super().__init__(*args, **kwargs)
        self._rl = config.rl
        self._packing = config.train.packing
        self._prepared = prepared
        self._capacity = capacity
        self._journal = journal
        self._objective = Objective(config.rl)
        self._start = StartingAdapter(self.model_with_loss, config.rl.temperature)
        self._drawn: Drawn | None = None
        self._old: dict[str, torch.Tensor] = {}  # by rollout: another number of ranks makes other batches
        self._facts: dict[str, float] = {}
        self._shared: bool | None = None  # whether completions share their prompt; None: not tried yet

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Draw the rollouts of the step, or take those of the journal, add the gradients of all of them, and return the
        loss."""
        before, iteration = divmod(self.state.global_step, self._rl.num_iterations)
        number = before + 1
        drawn = self._take(number)
        started = time.monotonic()
        batches = self._batches(drawn)
        sizes = [float(batch.inputs["input_ids"].numel()) for batch in batches]
        own = deal(range(len(batches)), sizes, here().size)[here().rank]
        if iteration:
            self._add_old(batches, number)
        if self._rl.beta:
            self._add_reference(batches, own)
        model.train()
        passes = {index: self._backward(model, batches[index]) for index in own}
        loss = sum((loss for loss, _ in passes.values()), torch.zeros((), device=self.args.device))
        if here().size > 1:
            (loss,) = self._add_up(loss)
        if not batches:  # the zeros that ranks add up would have Adam move the adapter by its momentum
            self.model.zero_grad(set_to_none=True)
        logprobs = self._of_all_ranks({index: each for index, (_, each) in passes.items()})
        if self._rl.num_iterations > 1 and not iteration:
            self._old = {f"rollout {index}": each for index, each in _by_rollout(batches, logprobs).items()}
            by_first(lambda: self._write_old(self._old_file(number)))
        trained = sum(map(len, logprobs))
        # Weighed by its tokens, so that the line of several steps has their mean.
        self.meter.add(sum(self._lengths(drawn)), trained, loss * trained)
        self._facts = {**drawn.facts, "groups": len(drawn.groups)}
        if batches:
            self._facts |= policy_facts(batches, logprobs, self._rl)
            if self._rl.beta or self.state.global_step % _WATCHED_STEPS == 0:
                self._facts["divergence"] = self._divergence(drawn, batches, logprobs)
        self._facts["seconds_training"] = time.monotonic() - started
        return loss

    def _take(self, number: int) -> Drawn:
        """Return the rollouts of this number, the newest ones, those of the journal, or ones drawn now."""
        if self._drawn is not None and self._drawn.step == number:
            return self._drawn
        before = self._drawn
        if before is None and number > 1 and (before := self._read(number - 1)) is None:
            raise RunFolderError(f"{self._journal.file(number - 1)} is missing", hint="start anew with --overwrite")
        drawn = self._read(number)
        if drawn is None:
            _free_if_scarce(self.args.device)
            with generating(self.model):
                drawn = self.sampler.draw(number, before)
            by_first(partial(self._journal.write, drawn))
            _free_if_scarce(self.args.device)
        self._drawn = drawn
        return drawn

    def _read(self, number: int) -> Drawn | None:
        return by_first(lambda: self._journal.read(number))

    def _batches(self, drawn: Drawn) -> list[RolloutBatch]:
        room = self._room(drawn) if self._packing else 0
        if self._shared is None:
            self._shared = bool(room) and may_share_prompts(self.model_with_loss, self._prepared.train)
        batches = rollout_batches(drawn, self._prepared.train, self._rl, room, shared=self._shared)
        for batch in batches:
            batch.inputs.update(self._prepare_inputs(batch.inputs))
            batch.facts = batch.facts.to(self.args.device)
        return batches

    def _room(self, drawn: Drawn) -> int:
        """Return the tokens of a batch: as planned, or fewer, so that there is one for every rank."""
        if here().size == 1:
            return self._capacity
        sizes = self._lengths(drawn)
        return min(self._capacity, max([*sizes, math.ceil(_UNEVEN * sum(sizes) / here().size)]))

    def _lengths(self, drawn: Drawn) -> list[int]:
        """Return the tokens of each rollout with its prompt, however many share that in whatever batches."""
        prompts = self._prepared.train
        return [prompts[group.problem].context + len(rollout.ids) for group, rollout in drawn.rollouts()]

    def _of_all_ranks(self, own: dict[int, torch.Tensor]) -> list[torch.Tensor]:
        """Return numbers of each batch, known to the rank that has it, in the order of the batches."""
        if here().size > 1:
            parts = gathered({index: each.cpu() for index, each in own.items()})
            own = {index: each.to(self.args.device) for part in parts for index, each in part.items()}
        return [own[index] for index in range(len(own))]

    def _backward(self, model: Any, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of a batch; return its part of the loss, and the log-probabilities of its tokens."""
        logprobs = -model(**batch.inputs, reduction="none", temperature=self._rl.temperature)
        loss = self._objective(logprobs, batch.facts)
        self.accelerator.backward(loss)
        return loss.detach(), logprobs.detach()

    # Of several steps on the same rollouts, the first has the policy that ratios are taken to.

    def _write_old(self, file: Path) -> None:
        with telling_full_disk(file), replacing(file) as temporary:
            save_file({name: each.cpu().contiguous() for name, each in self._old.items()}, temporary)

    def _add_old(self, batches: list[RolloutBatch], number: int) -> None:
        if not self._old:  # this process has not made the first of the steps
            self._old = by_first(lambda: load_file(self._old_file(number)))
        for batch in batches:
            names = [f"rollout {index}" for index in batch.members]
            if not self._old.keys() >= set(names):
                file = self._old_file(number)
                raise RunFolderError(f"{file} is not of these rollouts", hint="start anew with --overwrite")
            old, given = torch.cat([self._old[name] for name in names]), batch.facts[Fact.OLD]
            batch.facts[Fact.OLD] = torch.where(given.isnan(), old.to(given), given)

    def _old_file(self, number: int) -> Path:
        return self._journal.file(number).with_suffix(".safetensors")

    def _add_reference(self, batches: list[RolloutBatch], own: list[int]) -> None:
        with self._start.in_place():
            known = {index: self._start.logprobs(batches[index].inputs) for index in own}
        for batch, logprobs in zip(batches, self._of_all_ranks(known), strict=True):
            batch.facts[Fact.REFERENCE] = logprobs

    def _divergence(self, drawn: Drawn, batches: list[RolloutBatch], logprobs: list[torch.Tensor]) -> float:
        """Estimate the divergence from the adapter that training began with: by all tokens where it is in the loss,
        else by those of some completions."""
        if self._rl.beta:
            return divergence(torch.cat(logprobs), torch.cat([batch.facts[Fact.REFERENCE] for batch in batches]))
        if not here().is_first:  # which writes it down
            return 0.0
        of_rollout = _by_rollout(batches, logprobs)
        some = rollout_batches(drawn, self._prepared.train, self._rl, self._capacity, every=_WATCHED)[0]
        with self._start.in_place():
            before = self._start.logprobs(self._prepare_inputs(some.inputs))
        return divergence(torch.cat([of_rollout[index] for index in some.members]), before)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **{f"{PREFIX}{name}": value for name, value in self._facts.items()}}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if here().is_first and (kept := whole_checkpoints(Path(self.args.output_dir))):
            # The first step after the oldest checkpoint also reads the file of the one before it.
            self._journal.shorten(kept[0][0] // self._rl.num_iterations)


def _by_rollout(batches: list[RolloutBatch], numbers: list[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Split the numbers of each batch's tokens by rollout."""
    return {
        index: part
        for batch, each in zip(batches, numbers, strict=True)
        for index, part in zip(batch.members, each.split(batch.lengths), strict=True)
    }


def _free_if_scarce(device: torch.device) -> None:
    """Give memory that is not in use back to a GPU, if it is nearly all: pieces of a KV cache would not fit the tensors
    of an update, nor theirs a cache."""
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory * torch.cuda.get_per_process_memory_fraction(device)
    if torch.cuda.memory_reserved(device) > _SCARCE * total:
        torch.cuda.empty_cache()
