"""TRL's SFTTrainer with what we own changed: batches, loss, whole checkpoints, a meter that survives them."""

from __future__ import annotations

import math
import shutil
import time
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import Trainer
from trl import SFTTrainer

from thinktune.data.tokens import IGNORED, Tokens
from thinktune.errors import RunFolderError
from thinktune.files import full_disk_as_oserror
from thinktune.models.folder import ADAPTER_WEIGHTS
from thinktune.training.checkpoints import mark_whole, read_marker, whole_checkpoints
from thinktune.training.fused.chunked_loss import chunked_loss, has_plain_head


@dataclass
class Meter:
    """Counts real work: no padding, and nothing twice after a resume.

    Attributes:
        tokens: all tokens that went through the model, over the whole run.
        trained_tokens: those of them that were predicted.
        seconds: of training, without evaluation and saving.
        loss: summed cross-entropy (nats) since the last line of metrics.
        loss_tokens: the trained tokens that it sums over.
    """

    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    loss: float | torch.Tensor = 0.0  # a tensor while steps run, so that no step waits for the device
    loss_tokens: int = 0

    def add(self, tokens: int, trained: int, loss: torch.Tensor) -> None:
        self.tokens += tokens
        self.trained_tokens += trained
        self.loss_tokens += trained
        self.loss = loss + self.loss

    def take_loss(self) -> float:
        """The mean loss a trained token since the last call, in nats."""
        mean = float(self.loss) / self.loss_tokens if self.loss_tokens else math.nan
        self.loss, self.loss_tokens = 0.0, 0
        return mean

    def state(self) -> dict[str, float]:
        return {**asdict(self), "loss": float(self.loss)}


class PackedCollator:
    """Lays documents end to end, with nothing between them."""

    def __init__(self, examples: Sequence[Tokens]) -> None:
        self._examples = examples
        self._before: list[int] = []  # lengths in the batch before

    def __call__(self, packs: list[dict[str, list[int]]]) -> dict[str, Any]:
        """
        Args:
            packs: rows `{"documents": [index of an example, …]}`.

        Returns:
            input_ids, position_ids and labels, int64 [1, tokens], positions counting from 0 in each document; where
            the loss is taken: positions and the targets they predict, int64 [trained tokens]; and what attention over
            packed documents wants: int32 cu_seq_lens_q, max_length_q, document_lengths, repeats.
        """
        documents = [self._examples[index] for pack in packs for index in pack["documents"]]
        lengths = [len(document) for document in documents]
        ids = torch.cat([torch.frombuffer(document.ids, dtype=torch.int32) for document in documents]).long()
        contexts = torch.tensor([document.context for document in documents]).repeat_interleave(torch.tensor(lengths))
        places = torch.cat([torch.arange(length) for length in lengths])
        labels = ids.masked_fill(places < contexts, IGNORED)
        repeats = lengths == self._before and len(set(lengths)) == 1
        self._before = lengths
        # A document's first label is never trained, so that shifting the whole row mixes no two documents.
        (positions,) = (labels[1:] != IGNORED).nonzero(as_tuple=True)
        return {
            "input_ids": ids[None],
            "position_ids": places[None],
            "labels": labels[None],
            "positions": positions,
            "targets": labels[positions + 1],
            "cu_seq_lens_q": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
            "max_length_q": max(lengths),
            "document_lengths": lengths,
            "repeats": repeats,
        }


def as_dataset(packs: list[list[int]], offset: int = 0) -> Dataset:
    """A row a pack, naming its examples by index; the collator has the examples."""
    return Dataset.from_dict({"documents": [[offset + index for index in pack] for pack in packs]})


def add_summed_loss(model: Any) -> None:
    """Let a causal LM's forward return its summed loss where it is given positions and targets.

    The loss runs inside `forward`, so that wrappers around it (DDP, FSDP) see one ordinary call. A `loss_chunk` set on
    the model is the bytes of logits that are there at once.
    """
    plain = has_plain_head(model)
    original = model.forward

    def forward(
        self: Any, positions: torch.Tensor | None = None, targets: torch.Tensor | None = None, **inputs: Any
    ) -> Any:
        if positions is None or targets is None:
            return original(**inputs)
        if plain:
            chunk = getattr(self, "loss_chunk", None)
            hidden = self.base_model(**inputs).last_hidden_state[0, positions]
            return {"loss": chunked_loss(hidden, self.get_output_embeddings().weight, targets, chunk_bytes=chunk)}
        logits = original(**inputs).logits[0, positions].float()
        return {"loss": torch.nn.functional.cross_entropy(logits, targets, reduction="sum")}

    model.forward = types.MethodType(forward, model)


class ThinkTrainer(SFTTrainer):
    """Takes a model with `add_summed_loss` and batches of `PackedCollator`.

    The loss of an optimizer step is the sum over all its batches divided by all their trained tokens, so that how the
    examples are spread over batches and devices changes nothing.
    """

    def __init__(self, *args: Any, keep_checkpoints: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # ours divides by num_items_in_batch; Trainer must not divide again
        self.meter = Meter()
        self._keep_checkpoints = keep_checkpoints
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        _spare_walks(self.model, self._trained)
        self._since = time.monotonic()

    def start_clock(self) -> None:
        self._since = time.monotonic()

    def stop_clock(self) -> None:
        """Add the time since `start_clock` to the meter, and start again."""
        now = time.monotonic()
        self.meter.seconds += now - self._since
        self._since = now

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # nobody asks, and Trainer would count all parameters for it in every step

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        # Trainer hands over all parameters of the model, and walks over its modules for them.
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(self._trained, self.args.max_grad_norm)
        return norm

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks whether all steps are done after a step only: resumed behind the last, it would do one more.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        require_loaded(model or self.model, Path(resume_from_checkpoint))

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

    def resume_meter(self, checkpoint: Path) -> None:
        """Count on from where the checkpoint was saved."""
        self.meter = Meter(**read_marker(checkpoint)["meter"])

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The batch's share of the step's mean loss."""
        summed = _summed_loss(model, inputs)
        self.meter.add(inputs["input_ids"].numel(), inputs["targets"].numel(), summed.detach())
        # DDP averages the gradients of its processes, while num_items_in_batch counts the tokens of all of them.
        loss: torch.Tensor = summed / num_items_in_batch * self.accelerator.num_processes
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Mean loss a trained token over the held-out examples, in nats. (Trainer's own is a mean over batches.)"""
        self.stop_clock()
        was_training = self.model.training
        self.model.eval()
        totals = torch.zeros(2, device=self.args.device)
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                inputs = self._prepare_inputs(batch)
                totals += torch.stack([_summed_loss(self.model, inputs), totals.new_tensor(inputs["targets"].numel())])
        self.model.train(was_training)
        loss, tokens = self.accelerator.reduce(totals).tolist()
        metrics = {"eval_loss": loss / max(1.0, tokens)}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.start_clock()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, "loss": self.meter.take_loss()}  # the device is waited for here, before the clock is read
            self.stop_clock()
        Trainer.log(self, logs, start_time)  # not SFTTrainer's, which adds figures of the loss it would have computed

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, mark as whole, and only then drop older ones."""
        self.stop_clock()
        with full_disk_as_oserror(Path(self.args.output_dir)):
            Trainer._save_checkpoint(self, model, trial)  # not SFTTrainer's, which writes a model card into it
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            with full_disk_as_oserror(folder):
                mark_whole(folder, self.state.global_step, self.meter.state())
            for _, old in whole_checkpoints(folder.parent)[: -self._keep_checkpoints]:
                shutil.rmtree(old)
        self.start_clock()


def _spare_walks(model: Any, trained: list[torch.nn.Parameter]) -> None:
    """Let what Trainer calls in every step not walk over all modules: with an adapter, 36 layers have some 1,500, and
    each walk keeps a GPU waiting for milliseconds."""
    kind = type(model)

    def train(self: Any, mode: bool = True) -> Any:
        return self if self.training is mode else kind.train(self, mode)

    def zero_grad(self: Any, set_to_none: bool = True) -> None:
        for parameter in trained:
            parameter.grad = None

    kind.train(model)  # a base that was loaded to be asked is in eval mode under an adapter that is not
    model.train, model.zero_grad = types.MethodType(train, model), types.MethodType(zero_grad, model)


def _summed_loss(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    inputs = {name: value for name, value in inputs.items() if name != "labels"}  # only there to be counted by Trainer
    loss: torch.Tensor = model(**inputs, use_cache=False)["loss"]
    return loss


def require_loaded(model: Any, checkpoint: Path) -> None:
    """Make sure that the adapter of a checkpoint has arrived in the model, all of it.

    PEFT leaves out what it finds no place for, and keeps at its first values what the file lacks.

    Raises:
        RunFolderError: with what did not.
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
    return RunFolderError(
        f"{checkpoint} cannot be resumed: what does not fit is {what}", hint="start anew with --overwrite"
    )
