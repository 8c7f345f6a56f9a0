"""The batches of one rank of a training on several GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from thinktune.config import Config
from thinktune.data import Prepared
from thinktune.planner.dealing import deal
from thinktune.planner.memory_model import Batch
from thinktune.planner.pack_lengths import measure_packs
from thinktune.planner.plan import Plan
from thinktune.training.ranks import Ranks, here


class DealtBatches(Sampler[list[int]]):
    """Samples the batches of one rank: the packs of each optimizer step are those that one GPU would take, in the
    order of the same seed, dealt by cost. At the end of an epoch, or of a step, batches may be empty.

    Attributes:
        steps: optimizer steps of an epoch.
    """

    def __init__(
        self, sizes: Sequence[Batch], costs: Sequence[float], ranks: Ranks, *, rows: int, accumulation: int, seed: int
    ) -> None:
        """
        Args:
            sizes, costs: of all packs of an epoch.
            rows: packs of an optimizer step, of all ranks together.
            accumulation: batches of this rank in an optimizer step.
        """
        self.steps = -(-len(sizes) // rows)
        self._sizes, self._costs, self._ranks = sizes, costs, ranks
        self._rows, self._accumulation, self._seed = rows, accumulation, seed
        self._epoch, self._order = -1, list[int]()
        self.set_epoch(0)

    def __len__(self) -> int:
        return self.steps * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.steps):
            own = deal(self._packs(step), self._costs, self._ranks.size)[self._ranks.rank]
            at_once = -(-len(own) // self._accumulation)
            for number in range(self._accumulation):
                yield own[number * at_once : (number + 1) * at_once]

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:  # in the order of accelerate's SeedableRandomSampler, which one GPU follows
            generator = torch.Generator().manual_seed(self._seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._sizes), generator=generator).tolist()

    def size(self, step: int) -> Batch:
        """Return the tokens of an optimizer step, counted from the first of the training, over all ranks."""
        self.set_epoch(step // self.steps)
        return Batch.joined(self._sizes[pack] for pack in self._packs(step % self.steps))

    def _packs(self, step: int) -> list[int]:
        return self._order[step * self._rows : (step + 1) * self._rows]


def dealt_batches(config: Config, prepared: Prepared, plan: Plan) -> DealtBatches:
    """Deal the packs of a training to its ranks."""
    sizes = measure_packs(prepared.train, prepared.packs).packs
    return DealtBatches(
        sizes,
        [plan.cost(size) for size in sizes],
        here(),
        rows=config.train.batch_size * config.train.accumulation,
        accumulation=plan.accumulation,
        seed=config.train_seed,
    )


def nothing_dealt(steps: int) -> DealtBatches:
    """Deal a row for each optimizer step of an epoch, of a training that makes the batches of its steps itself."""
    return DealtBatches([Batch(0, 0, 0.0)] * steps, [0.0] * steps, here(), rows=1, accumulation=1, seed=0)
