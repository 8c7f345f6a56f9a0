"""transformers' Trainer with batches, weights, loss and whole checkpoints of ours, and a meter that survives them."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from thinktune.errors import RunFolderError
from thinktune.files import telling_full_disk
from thinktune.models.adapters import take_by_name
from thinktune.models.folder import ADAPTER_WEIGHTS
from thinktune.models.sharded_base import sharded_base_of
from thinktune.models.untouched import eval_mode
from thinktune.training import ranks
from thinktune.training.checkpoints import mark_whole, read_marker, whole_checkpoints
from thinktune.training.dealt_batches import DealtBatches
from thinktune.training.early_stop import EarlyStop, require_whole
from thinktune.training.graphed_passes import GraphedPasses
from thinktune.training.meter import Meter
from thinktune.training.methods.base import Method
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.stop_signals import StopSignals
from thinktune.training.whole_model import read_weights, write_weights


class ThinkTrainer(Trainer):
    """Trains the batches and token weights of a `Method`; `model` is the PeftModel, which Trainer can save.

    The loss of an optimizer step is the sum over all its batches divided by all their trained tokens, so that how the
    examples are spread over batches and devices changes nothing.

    With several ranks, transformers and accelerate see plain batches and a plain model on each: `dealt` says which
    packs this one takes, and `_add_up_ranks` makes one step of all. Everything else is the same on all of them, but
    only the first writes.
    """

    def __init__(
        self,
        model: ModelWithLoss,
        method: Method,
        args: TrainingArguments,
        *,
        keep_checkpoints: int,
        graphed: bool = False,
        stop: StopSignals | None = None,
        dealt: DealtBatches | None = None,
        early: EarlyStop | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            graphed: run forward and backward passes from CUDA graphs.
            stop: where several ranks agree on it; they need one.
            dealt: the batches of this rank; None: it is the only one.
            early: of `train.stop`.
        """
        self._sharded = sharded_base_of(model.model)
        super().__init__(
            model.model,
            args,
            data_collator=method.collate,
            train_dataset=method.train_rows(),
            eval_dataset=method.held_out_rows(),
            **kwargs,
        )
        self.model.train()  # a base that was loaded to be asked is in eval mode under an adapter that is not
        if args.gradient_checkpointing:
            self.model.enable_input_require_grads()
        self.model_with_loss = model
        self.method = method
        self.model_accepts_loss_kwargs = True  # ours divides by num_items_in_batch; Trainer must not divide again
        self.meter = Meter()
        self._graphs = GraphedPasses(model, self.args.device) if graphed else None
        self._keep_checkpoints = keep_checkpoints
        self._dealt = dealt
        self.early = early
        self._own: torch.Tensor | None = None  # loss and right tokens of this rank's batches in the running step
        self._stop = stop or StopSignals()
        self._since = time.monotonic()

    def start_clock(self) -> None:
        self._since = time.monotonic()

    def stop_clock(self) -> None:
        """Add the time since `start_clock` to the meter, and start again."""
        now = time.monotonic()
        self.meter.seconds += now - self._since
        self._since = now

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self._sharded is None:  # whose weights are views into memory that others write
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        # A step runs the model with its loss, and wrappers (DDP) go around both; Trainer saves and loads PEFT's model.
        if model is not self.model:
            return model
        if self._dealt is not None:
            return self.model_with_loss
        return self.accelerator.prepare_model(self.model_with_loss, device_placement=False)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: Any = None) -> tuple[Any, Any]:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if args.optim != "adamw_8bit":
            return kind, settings
        from thinktune.training.adamw_8bit import AdamW8bit  # bitsandbytes may not be installed

        return AdamW8bit, settings

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # nobody asks, and Trainer would count all parameters for it in every step

    def store_flos(self) -> None:
        """Leave out what would wait for all ranks, in the middle of what only the first one does."""

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        # Trainer hands over all parameters of the model, and walks over its modules for them.
        gradients = self.model_with_loss.gradients
        if gradients is not None:
            total = torch.linalg.vector_norm(gradients)
            gradients.mul_((self.args.max_grad_norm / (total + 1e-6)).clamp(max=1.0))  # as torch's own does
            return total
        self.accelerator.unscale_gradients()  # its own way goes on to look for gradients that are spread over processes
        return torch.nn.utils.clip_grad_norm_(self.model_with_loss.trained, self.args.max_grad_norm)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks whether it is at the end after a step only: resumed behind the last, it would do one more.
        verdict = self.early and self.early.judge(self.state.log_history)
        if self.state.global_step >= self.state.max_steps or (verdict and verdict.ends):
            self.control.should_training_stop = True
            return
        if self._dealt is not None:  # of a resumed epoch, the sampler is wrapped, and Trainer would not reach it
            self._dealt.set_epoch(self.state.global_step // self._dealt.steps)
        super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        if self._dealt is None:
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_sampler=self._dealt,
            collate_fn=lambda rows: self.data_collator(rows) if rows else {},
            num_workers=self.args.dataloader_num_workers,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._dealt is not None:  # all at once: to move a batch is to wait for the one before it
            batches = [self._prepare_inputs(batch) if batch else batch for batch in batches]
        return batches, tokens

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        if self._dealt is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        return torch.tensor(self._dealt.size(self.state.global_step).trained, device=device)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tuned, checkpoint = model or self.model, Path(resume_from_checkpoint)
        if not isinstance(tuned, PeftModel):
            read_weights(tuned, checkpoint)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        take_by_name(tuned, checkpoint, tuned.active_adapter)
        require_loaded(tuned, checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if isinstance(self.model, PeftModel):
            super()._save(output_dir, state_dict)
        else:  # transformers renames weights of some families, and rounds some
            write_weights(self.model, Path(output_dir or self.args.output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, KeyError, RuntimeError) as error:
            raise _not_of_this_training(checkpoint, f"the optimizer's state: {error}") from error
        for group in self.optimizer.param_groups if checkpoint is not None else ():
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter, {})
                if any(state[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq") if name in state):
                    raise _not_of_this_training(checkpoint, "the optimizer's state, which is of other weights")

    def take_best(self) -> dict[str, Any] | None:
        """Take the weights of the best evaluation, and return it with the last step, for run.json; None: without
        `train.stop`.

        Raises:
            RunFolderError: its checkpoint is missing or damaged.
        """
        if self.early is None or (verdict := self.early.judge(self.state.log_history)) is None:
            return None
        if verdict.step != self.state.global_step:
            folder = ranks.by_first(lambda: require_whole(Path(self.args.output_dir), verdict.step))
            self._load_from_checkpoint(str(folder), self.model)
        return {
            "step": verdict.step,
            "monitor": self.early.settings.monitor,
            **{name: verdict.best[name] for name in ("eval_loss", "eval_token_accuracy") if name in verdict.best},
            "stopped_early": self.state.global_step < self.state.max_steps,
        }

    def resume_meter(self, checkpoint: Path) -> None:
        """Continue the counts of a checkpoint."""
        self.meter = Meter(**read_marker(checkpoint)["meter"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the batch's share of the step's mean loss."""
        summed = model(**self._weighted(inputs))
        self._count(inputs, summed.detach())
        loss: torch.Tensor = summed / num_items_in_batch
        return loss

    def _count(self, inputs: dict[str, Any], loss: torch.Tensor) -> None:
        right = self.model_with_loss.right
        assert right is not None
        if self._dealt is None:
            self.meter.add(inputs["input_ids"].numel(), inputs["targets"].numel(), loss, right=right)
        else:  # the tokens of all ranks are known, and added up with their losses
            both = torch.stack([loss.float(), right.float()])
            self._own = both if self._own is None else self._own + both

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradients of a batch, and return its share of the step's mean loss."""
        loss = self._add_gradients(model, inputs, num_items_in_batch)
        if self._dealt is not None and self.accelerator.sync_gradients:
            self._add_up_ranks(self._dealt)
        return loss

    def _add_gradients(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        if not inputs:
            if self._sharded is not None:
                self._sharded.pass_by(backward=True)
            return torch.zeros((), device=self.args.device)
        if self._dealt is not None and self._own is None:
            # PEFT's own dropout draws from torch's generators: each rank differently, and after a resume the same.
            torch.manual_seed(dropout_seed(self.args.seed, self.state.global_step) + ranks.here().rank)
        if self._graphs is not None:
            model.train()
            inputs = self._prepare_inputs(inputs)
            if (summed := self._graphs.backward(self._weighted(inputs), num_items_in_batch)) is not None:
                self._count(inputs, summed)
                return summed / num_items_in_batch
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _add_up_ranks(self, dealt: DealtBatches) -> None:
        """Make one step of the batches of all ranks, and stop after it where one of them is asked to."""
        nothing = torch.zeros((), device=self.args.device)
        loss, right = self._add_up(*([nothing, nothing] if self._own is None else self._own.unbind()))
        self._own = None
        size = dealt.size(self.state.global_step)
        self.meter.add(int(size.tokens), int(size.trained), loss, right=right)

    def _add_up(self, *own: torch.Tensor) -> list[torch.Tensor]:
        """Add up the gradients of all ranks and their requests to stop; return the sums of further numbers."""
        requested = torch.full((), float(self._stop.requested), device=self.args.device)
        *sums, self._stop.agreed = self.model_with_loss.add_up_ranks(*(each.float() for each in own), requested)
        return sums

    def _weighted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch with its tokens' weights, and the seed of the optimizer step's dropout."""
        seed = dropout_seed(self.args.seed, self.state.global_step)
        drawn = torch.tensor([seed], dtype=torch.int32, device=self.args.device)
        return {**inputs, "weights": self.method.weights(inputs), "dropout_seed": drawn}

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        if self._dealt is None:
            return super().get_eval_dataloader(eval_dataset)
        place = ranks.here()
        return DataLoader(
            self.eval_dataset[place.rank :: place.size],
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self.data_collator,
        )

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return the mean loss a trained token over the held-out examples, in nats, and the share of these tokens that
        are the likeliest. (Trainer averages batches.)"""
        self.stop_clock()
        totals = torch.zeros(3, device=self.args.device)
        batches = self.get_eval_dataloader()
        most = 0 if self._sharded is None else ranks.agree(len(batches), max)
        with eval_mode(self.model), torch.no_grad():
            for batch in batches:
                inputs = self._prepare_inputs(batch)
                loss, right = self.model_with_loss(**inputs), self.model_with_loss.right
                assert right is not None
                totals += torch.stack([loss, right.float(), totals.new_tensor(inputs["targets"].numel())])
            if self._sharded is not None:
                for _missing in range(most - len(batches)):
                    self._sharded.pass_by(backward=False)
        summed, count, tokens = self.accelerator.reduce(totals).tolist()
        metrics = {"eval_loss": summed / max(1.0, tokens), "eval_token_accuracy": count / max(1.0, tokens)}
        metrics = ranks.by_first(lambda: metrics)  # by which all of them decide whether to go on
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.start_clock()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.meter.take()}  # the device is waited for here, before the clock is read
            self.stop_clock()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark as whole, and only then drop older ones."""
        self.stop_clock()
        ranks.by_first(lambda: self._write_checkpoint(model, trial))
        self.start_clock()

    def _write_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with telling_full_disk(folder):
            super()._save_checkpoint(model, trial)
            mark_whole(folder, self.state.global_step, self.meter.state())
        whole = whole_checkpoints(folder.parent)
        kept = {step for step, _ in whole[-self._keep_checkpoints :]}
        if self.early is not None:
            kept = self.early.kept(self.state.log_history, kept)
        for step, old in whole:
            if step not in kept:
                shutil.rmtree(old)

    def _save_rng_state(self, output_dir: str) -> None:
        if self._dealt is None:  # else every step seeds its own
            super()._save_rng_state(output_dir)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._dealt is None:
            super()._load_rng_state(checkpoint)


def dropout_seed(seed: int, step: int) -> int:
    """Return 31 bits for the dropout of an optimizer step, drawn in fused layers from nothing else: a resumed training
    draws the same."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=4).digest()) >> 1


def require_loaded(model: Any, checkpoint: Path) -> None:
    """Check that all of a checkpoint's adapter has arrived in the model.

    PEFT skips weights that it finds no place for, and leaves those that the file lacks at their initial values.

    Raises:
        RunFolderError: with the weights that have not.
    """
    saved = load_file(checkpoint / ADAPTER_WEIGHTS)
    there = get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    missing, unexpected = sorted(there.keys() - saved.keys()), sorted(saved.keys() - there.keys())
    same = there.keys() & saved.keys()
    other = sorted(name for name in same if not _holds(there[name], saved[name]))
    wrong = {
        "it lacks weights of the model": missing,
        "the model has no place for": unexpected,
        "the model did not take over": other,
    }
    for what, names in wrong.items():
        if names:
            raise _not_of_this_training(str(checkpoint), f"the adapter: {what}, {len(names)}, among them {names[0]}")


def _holds(weight: torch.Tensor, saved: torch.Tensor) -> bool:
    return bool(torch.equal(weight.detach().to(saved.dtype).cpu(), saved))


def _not_of_this_training(checkpoint: str | None, what: str) -> RunFolderError:
    return RunFolderError(f"{checkpoint} cannot be resumed: {what} does not fit", hint="start anew with --overwrite")
