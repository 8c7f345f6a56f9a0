"""Reinforcement: an optimizer step is a row, whose batches are drawn from the model when it comes."""

from __future__ import annotations

import math
from typing import Any

import torch

from thinktune.config import Rl


class GRPO:
    """Gives rows that stand for the optimizer steps of an epoch; `ReinforceTrainer` makes their batches.

    Attributes:
        steps: of an epoch.
    """

    def __init__(self, problems: int, rl: Rl) -> None:
        """
        Args:
            problems: how many there are; an epoch asks each about once.
        """
        self.steps = math.ceil(problems / rl.prompts) * rl.num_iterations

    def train_rows(self) -> list[dict[str, Any]]:
        return [{"row": number} for number in range(self.steps)]

    def held_out_rows(self) -> None:
        return None

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"rows": torch.tensor([row["row"] for row in rows])}

    def weights(self, batch: dict[str, Any]) -> None:
        return None
