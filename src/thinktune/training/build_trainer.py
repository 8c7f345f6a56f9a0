"""The trainer of each method, from config, data and plan."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PrinterCallback
from transformers.integrations import TensorBoardCallback

from thinktune.config import Config
from thinktune.data import Prepared
from thinktune.models import Loaded
from thinktune.planner.plan import Plan
from thinktune.run_folder import RunFolder
from thinktune.training.dealt_batches import dealt_batches, nothing_dealt
from thinktune.training.early_stop import EarlyStop
from thinktune.training.methods.dpo import DPO
from thinktune.training.methods.grpo import GRPO
from thinktune.training.methods.sft import SFT
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.preference_trainer import PreferenceTrainer
from thinktune.training.prepare_model import recomputes_by_transformers
from thinktune.training.ranks import here
from thinktune.training.reinforce.problems import PreparedProblems
from thinktune.training.reinforce.reinforce_trainer import ReinforceTrainer
from thinktune.training.reinforce.rollouts import RolloutJournal
from thinktune.training.reinforce.setup import batch_capacity
from thinktune.training.stop_signals import StopSignals
from thinktune.training.trainer import ThinkTrainer
from thinktune.training.training_arguments import training_arguments


def build_trainer(
    model: ModelWithLoss,
    config: Config,
    loaded: Loaded,
    prepared: Prepared,
    run: RunFolder,
    plan: Plan,
    stop: StopSignals,
) -> ThinkTrainer:
    """Build the trainer of a config's method, with the batches of a plan."""
    arguments = partial(
        training_arguments,
        config,
        run=run,
        on_gpu=loaded.device.type == "cuda",
        evaluates=bool(prepared.held_out),
        checkpointing=recomputes_by_transformers(plan),
    )
    common: dict[str, Any] = {
        "processing_class": loaded.tokenizer,
        "keep_checkpoints": config.train.keep_checkpoints,
        "stop": stop,
        "early": EarlyStop(config.train.stop) if config.train.stop else None,
    }
    data = prepared.train, prepared.packs, prepared.held_out
    if isinstance(prepared, PreparedProblems):
        method = GRPO(len(prepared.train), config.rl)
        trainer: ThinkTrainer = ReinforceTrainer(
            model,
            method,
            arguments(plan=replace(plan, packs=1, accumulation=1)),
            config=config,
            prepared=prepared,
            capacity=batch_capacity(config, prepared, plan),
            journal=RolloutJournal(run.rollouts),
            dealt=nothing_dealt(method.steps) if here().size > 1 else None,
            **common,
        )
    elif config.method == "dpo":
        trainer = PreferenceTrainer(model, DPO(*data), arguments(plan=plan), settings=config.dpo, **common)
    else:
        dealt = dealt_batches(config, prepared, plan) if here().size > 1 else None
        trainer = ThinkTrainer(model, SFT(*data), arguments(plan=plan), graphed=plan.graphed, dealt=dealt, **common)
    trainer.remove_callback(PrinterCallback)  # ours prints a better line
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run.logs)  # else it would be inside checkpoints/
    return trainer
