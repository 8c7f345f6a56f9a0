"""Preferences: of two replies to a prompt, the better one is made likelier than the other, without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from thinktune.config import Dpo
from thinktune.data.tokens import Tokens
from thinktune.training.collator import PackedCollator


class DPO:
    """Trains on packs of pairs, and takes the held-out loss on one pair at a time; `PreferenceTrainer` has the loss."""

    def __init__(self, train: Sequence[Tokens], packs: list[list[int]], held_out: Sequence[Tokens] = ()) -> None:
        """
        Args:
            train, packs, held_out: of `data.Prepared`: a chosen reply is followed by its rejected one.
        """
        self._packs = packs
        self._held_out = range(len(train), len(train) + len(held_out), 2)
        self._collator = PackedCollator([*train, *held_out])
        self.documents = len(train) + len(held_out)

    def train_rows(self) -> list[dict[str, list[int]]]:
        return [{"documents": pack} for pack in self._packs]

    def held_out_rows(self) -> list[dict[str, list[int]]] | None:
        return [{"documents": [index, index + 1]} for index in self._held_out] or None

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of rows, with the indexes of its documents: int64 [documents]."""
        documents = [index for row in rows for index in row["documents"]]
        return {**self._collator(rows), "documents": torch.tensor(documents)}

    def weights(self, batch: dict[str, Any]) -> None:
        return None


@dataclass(frozen=True)
class PairLosses:
    """Of each pair of a batch, float32 [pairs].

    Attributes:
        losses: to be minimised on average.
        chosen, rejected: the rewards that the policy implies for the two replies, detached.
    """

    losses: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor


def document_logprobs(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probability of each document's trained tokens together, and their number, float32 [documents].

    Args:
        model: a `ModelWithLoss`, or a wrapper of it.
        batch: of a `PackedCollator`.
    """
    logprobs = -model(**batch, reduction="none")
    ends = batch["cu_seq_lens_q"][1:]
    document = torch.bucketize(batch["positions"], ends, right=True)
    empty = logprobs.new_zeros(len(ends))
    return empty.index_add(0, document, logprobs), empty.index_add(0, document, torch.ones_like(logprobs))


def pair_losses(settings: Dpo, logprobs: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor) -> PairLosses:
    """Compute the losses of pairs, as TRL's DPOTrainer and, for SimPO, its CPOTrainer have them.

    sigmoid: DPO, -log σ(β(Δ)), Δ the difference of the log-ratios to the reference (Rafailov et al. 2023,
    https://arxiv.org/abs/2305.18290, equation 7). ipo: (Δ - 1/2β)², of log-ratios a token (Azar et al. 2023,
    https://arxiv.org/abs/2310.12036, equation 17). simpo: -log σ(βΔ - γ), Δ the difference of log-probabilities a token
    (Meng et al. 2024, https://arxiv.org/abs/2405.14734, equation 6).

    Args:
        logprobs, reference: float32 [documents], summed log-probabilities of the replies, a chosen one and its rejected
            one in turn, by the policy and by the reference.
        lengths: [documents], tokens of the replies.
    """
    scores = logprobs if settings.loss_type == "simpo" else logprobs - reference
    if settings.loss_type != "sigmoid":
        scores = scores / lengths
    chosen, rejected = scores[0::2], scores[1::2]
    delta = chosen - rejected
    if settings.loss_type == "ipo":
        losses = (delta - 1 / (2 * settings.beta)).square()
    else:
        margin = settings.simpo_gamma if settings.loss_type == "simpo" else 0.0
        losses = -F.logsigmoid(settings.beta * delta - margin)
    return PairLosses(losses, settings.beta * chosen.detach(), settings.beta * rejected.detach())
