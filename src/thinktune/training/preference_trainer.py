"""The trainer of `method: dpo`: the loss of pairs, against the model as it was when training began."""

from __future__ import annotations

from typing import Any

import torch

from thinktune.config import Dpo
from thinktune.models.untouched import eval_mode
from thinktune.training.methods.dpo import DPO, PairLosses, document_logprobs, pair_losses
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.trainer import ThinkTrainer

PREFIX = "dpo/"


class PreferenceTrainer(ThinkTrainer):
    """Trains on packs of pairs; the loss of an optimizer step is the mean over its pairs.

    The reference is the model with the adapter that training began with: a new one adds nothing, so that this is the
    base. Its log-probabilities are computed once for all, before the first step and before a checkpoint is loaded.
    """

    def __init__(self, model: ModelWithLoss, method: DPO, *args: Any, settings: Dpo, **kwargs: Any) -> None:
        super().__init__(model, method, *args, **kwargs)
        self._settings = settings
        self._pairs = method
        self._reference = torch.zeros(method.documents, device=self.args.device)
        self._facts: list[torch.Tensor] = []
        self._step = -1
        if settings.loss_type != "simpo":
            self._take_reference()

    @torch.no_grad()
    def _take_reference(self) -> None:
        rows = [*self._pairs.train_rows(), *(self._pairs.held_out_rows() or [])]
        with eval_mode(self.model):
            for row in rows:
                batch = self._prepare_inputs(self._pairs.collate([row]))
                documents = batch.pop("documents")
                self._reference[documents] = document_logprobs(self.model_with_loss, batch)[0]

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor:
        return torch.tensor(sum(len(batch["documents"]) for batch in batch_samples) // 2, device=device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the batch's share of the step's mean loss of a pair."""
        found = self._losses(model, self._weighted(inputs))
        summed: torch.Tensor = found.losses.sum()
        self.meter.add(inputs["input_ids"].numel(), inputs["targets"].numel(), summed.detach(), len(found.losses))
        if self._step != self.state.global_step:
            self._step, self._facts = self.state.global_step, []
        self._facts.append(torch.stack([found.chosen, found.rejected]))
        return summed / num_items_in_batch

    def _losses(self, model: Any, inputs: dict[str, Any]) -> PairLosses:
        rest = {name: value for name, value in inputs.items() if name != "documents"}
        logprobs, lengths = document_logprobs(model, rest)
        return pair_losses(self._settings, logprobs, self._reference[inputs["documents"]], lengths)

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss of the held-out pairs, and the share of those whose chosen reply has the higher
        reward."""
        self.stop_clock()
        with eval_mode(self.model):
            found = [
                self._losses(self.model_with_loss, self._prepare_inputs(each)) for each in self.get_eval_dataloader()
            ]
        losses = torch.cat([each.losses for each in found])
        higher = torch.cat([each.chosen > each.rejected for each in found]).float()
        metrics = {"eval_loss": float(losses.mean()), "eval_preferred": float(higher.mean())}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.start_clock()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a line of metrics the rewards of the last step's pairs."""
        if "loss" in logs and self._facts:
            chosen, rejected = torch.cat(self._facts, 1)
            facts = {
                "preferred": (chosen > rejected).float().mean(),
                "chosen": chosen.mean(),
                "rejected": rejected.mean(),
            }
            logs = {**logs, **{f"{PREFIX}{name}": round(float(value), 6) for name, value in facts.items()}}
        super().log(logs, start_time)
