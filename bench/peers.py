"""The peers of bench/train.py, set up as their own documentation has it; checkpointing is always set explicitly."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contest import LEARNING_RATE, MAX_NORM, Missing, Result, Task, begin_training, synchronize
from workload import model_folder


@dataclass(frozen=True)
class Peer:
    """TRL's (or, `plain`, transformers' own) trainer over PEFT, set up one way."""

    base: str = "none"  # or int8, nf4
    liger: bool = False
    compiled: bool = False
    checkpointing: bool = False
    plain: bool = False
    article: bool = False
    unsloth: bool = False


def peer(task: Task, kind: Peer) -> Result:
    if kind.unsloth:
        return train_peer(task, kind, *_with_unsloth(task, kind))
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, set_seed

    if kind.liger:
        _require("liger-kernel")
    on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {"device_map": {"": int(os.environ.get("LOCAL_RANK", 0))}} if on_gpu else {}
    if kind.base != "none":
        _require("bitsandbytes")
        arguments["quantization_config"] = _bitsandbytes(kind.base)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder(task.shape, Path(task.folder)), dtype=torch.bfloat16, attn_implementation="sdpa", **arguments
    )
    if kind.base != "none" and not kind.article:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=kind.checkpointing)
    model.enable_input_require_grads()
    rank, dropout = (4, 0.1) if kind.article else (task.rank, 0.0)
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=list(task.targets)
    )
    set_seed(0)
    return train_peer(task, kind, get_peft_model(model, lora), None)


def _bitsandbytes(base: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if base == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip


def _with_unsloth(task: Task, kind: Peer) -> tuple[Any, Any]:
    os.environ.update(UNSLOTH_DISABLE_STATISTICS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    _require("unsloth")
    import torch
    from unsloth import FastLanguageModel

    longest = task.workload.length or 16384
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(model_folder(task.shape, Path(task.folder))), max_seq_length=max(2048, longest), dtype=torch.bfloat16,
        load_in_4bit=kind.base == "nf4",
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=task.rank, lora_alpha=2 * task.rank, lora_dropout=0, bias="none", target_modules=list(task.targets),
        use_gradient_checkpointing="unsloth" if kind.checkpointing else False, random_state=0,
    )  # fmt: skip
    return model, tokenizer


def train_peer(task: Task, kind: Peer, model: Any, tokenizer: Any) -> Result:
    import torch
    import trl
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from workload import byte_tokenizer

    work, on_gpu = task.workload, torch.cuda.is_available()
    steps = work.documents(model.config.vocab_size)
    documents = [ids for step in steps for ids in step]
    equal = len({len(ids) for ids in documents}) == 1
    rows = work.rows if equal else 1  # documents of other lengths would be padded
    accumulation = len(steps[0]) // rows // int(os.environ.get("WORLD_SIZE", 1))  # bench/scaling.py starts several
    columns = {"input_ids": documents, "labels": documents, "attention_mask": [[1] * len(ids) for ids in documents]}
    result = Result(_label(kind, trl))

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if kind.article:  # empties the cache after every step
                gc.collect()
                torch.cuda.empty_cache()
            synchronize()
            result.times.append(time.perf_counter() - self.start)
            result.first_step = result.first_step or time.time() - task.started

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "grad_norm" in logs:
                result.losses.append(float(logs["loss"]))
                result.norms.append(float(logs["grad_norm"]))

    fields: dict[str, Any] = {
        "output_dir": str(Path(task.folder) / "peer"),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "max_steps": work.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_NORM,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "logging_steps": 1,
        "optim": "adamw_8bit" if kind.article and on_gpu else "adamw_torch_fused",
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": kind.checkpointing,
        "torch_compile": kind.compiled,
        "use_liger_kernel": kind.liger,
        "disable_tqdm": True,
    }
    if kind.checkpointing and not kind.unsloth:
        fields["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    arguments: dict[str, Any] = {"model": model, "train_dataset": Dataset.from_dict(columns), "callbacks": [Clock()]}
    if kind.plain:
        from transformers import TrainingArguments, default_data_collator

        trainer = Trainer(args=TrainingArguments(**fields), data_collator=default_data_collator, **arguments)
    else:
        fields |= {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
        tokenizer = tokenizer or byte_tokenizer()
        trainer = trl.SFTTrainer(args=trl.SFTConfig(**fields), processing_class=tokenizer, **arguments)
    trainer.remove_callback(PrinterCallback)
    trainer._get_train_sampler = lambda *_: SequentialSampler(arguments["train_dataset"])  # the steps as they are
    begin_training(task.limit)
    trainer.train()
    result.tokens = [sum(map(len, step)) for step in steps][: len(result.times)]
    return result.finish()


def _label(kind: Peer, trl: Any) -> str:
    from trl.trainer import sft_trainer

    if kind.article:
        return "the article: TRL + PEFT, int8, 1 x 4, r 4, dropout 0.1, cache emptied each step"
    who = f"Unsloth {version('unsloth')}" if kind.unsloth else f"TRL {trl.__version__} + PEFT"
    if kind.plain:
        who = "transformers' Trainer + PEFT"
    elif not kind.unsloth and hasattr(sft_trainer, "add_fused_lm_head"):
        who += " (its own fused loss)"
    parts = [who, *["Liger"] * kind.liger, *["torch_compile"] * kind.compiled, *[kind.base] * (kind.base != "none")]
    return ", ".join([*parts, "checkpointing" if kind.checkpointing else "no checkpointing"])


def _require(package: str) -> None:
    try:
        version(package)
    except PackageNotFoundError:
        raise Missing(f"{package} is not installed") from None


PEERS = {
    "article": Peer(article=True, base="int8"),
    "trl": Peer(),
    "trl-liger": Peer(liger=True),
    "trl-compile": Peer(compiled=True),
    "trl-nf4": Peer(base="nf4"),
    "trl-int8": Peer(base="int8"),
    "hf": Peer(plain=True),
    "hf-liger": Peer(plain=True, liger=True),
    "unsloth": Peer(unsloth=True),
    "unsloth-nf4": Peer(unsloth=True, base="nf4"),
}
