"""The parts of a reinforcement, made for a loaded model: its plan, its batches, its engine and its rewards."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thinktune.config import Config
from thinktune.data import Tokens
from thinktune.inference.engines.hf.decoder import SPARE
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.models import Loaded
from thinktune.planner.pack_lengths import in_rollout_packs, rollout_packs
from thinktune.planner.plan import Plan
from thinktune.scoring.rewards import Rewards
from thinktune.training.metrics_file import MetricsFile
from thinktune.training.plan import resolve_plan
from thinktune.training.reinforce.drawing import RolloutSampler
from thinktune.training.reinforce.problems import PreparedProblems
from thinktune.training.reinforce.reinforce_trainer import ReinforceTrainer
from thinktune.training.reinforce.watch import Warnings

_MOST_ROWS = 2048
"""Completions decoded together on a GPU. While some wait to come in, the batch changes every few tokens, which takes as
long as five tokens do: of 2,048 completions of a small model, 1,024 at a time, three bursts of four came after a change
(one H100)."""
_SPARE = 128
"""Columns of cache that are filled between two copies on a GPU, whose fused layers read none that is empty."""


def plan_rollouts(model: PeftModel, config: Config, loaded: Loaded, prepared: PreparedProblems) -> Plan:
    """Plan the updates of a reinforcement as if every completion were as long as it may be."""
    packs, count = rollout_packs(config, prepared.longest_prompt)
    return resolve_plan(model, in_rollout_packs(config, count), loaded, packs)


def batch_capacity(config: Config, prepared: PreparedProblems, plan: Plan) -> int:
    """Return the tokens of a batch under a plan."""
    packs, _ = rollout_packs(config, prepared.longest_prompt)
    return plan.packs * int(packs.packs[0].tokens)


def longest_rollouts(config: Config, prepared: PreparedProblems, plan: Plan) -> list[Tokens]:
    """Return documents as long as rollouts may be, as many as a batch holds then."""
    prompt = max(prepared.train, key=lambda tokens: tokens.context)
    context = prompt.ids[: prompt.context]
    ids = context + array("i", context[-1:]) * config.rl.max_completion_length
    longest = replace(prompt, ids=ids)
    return [longest] * (batch_capacity(config, prepared, plan) // len(longest) if config.train.packing else 1)


def leave_dropout_out(model: torch.nn.Module) -> None:
    """Set all dropout of a model to 0: engines draw without it, and would give completions other probabilities."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


@contextmanager
def drawing(
    trainer: ReinforceTrainer,
    prepared: PreparedProblems,
    loaded: Loaded,
    config: Config,
    metrics: MetricsFile,
    console: Console,
) -> Iterator[None]:
    """Let the trainer draw rollouts from its own model within the block, and have them rewarded and watched."""
    rl, on_gpu = config.rl, loaded.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()  # what checks have left would not be counted as free
    rows = min(_MOST_ROWS if on_gpu else 64, round(rl.prompts * rl.oversampling) * rl.num_generations)
    engine = TransformersEngine(
        trainer.model,
        loaded.tokenizer,
        loaded.chat.stop_ids,
        # On a CPU not by the memory that happens to be free: the rounding of a batch must not depend on it.
        max_batch_tokens=None if on_gpu else rows * (prepared.longest_prompt + rl.max_completion_length + SPARE),
        max_rows=rows,
        spare=_SPARE if on_gpu else SPARE,
    )
    with Rewards(rl.rewards, max_tokens=rl.max_completion_length, length_buffer=rl.length_buffer) as rewards:
        trainer.sampler = RolloutSampler(engine, prepared, rewards, config)
        trainer.add_callback(_Watch(Warnings(rl, metrics.lines), console))
        yield


class _Watch(TrainerCallback):
    def __init__(self, warnings: Warnings, console: Console) -> None:
        self._warnings = warnings
        self._console = console

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for warning in self._warnings.after_step():
            self._console.print(warning, style="yellow", highlight=False)
