"""One contestant of bench/train.py, in a process of its own: trains a few steps and prints a line of JSON.

`ours*` goes through what `thinktune train` itself uses: load_model, the plan, the adapter, the fused layers, the loss;
`verb*` is that command, called. The others are set up as their own documentation has it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from workload import TARGETS, Workload, as_tokens, model_folder, write_rows

LEARNING_RATE, MAX_NORM = 1e-4, 1.0
WARM_UP = 3  # steps that no speed is taken from


@dataclass
class Task:
    """What to do, as bench/train.py asks for it."""

    name: str
    shape: str
    workload: Workload
    rank: int
    limit: float | None
    started: float
    folder: str
    checkpointing: str = "auto"


@dataclass
class Result:
    """What came of it; times in seconds, memory in GiB."""

    label: str = ""
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    first_step: float = 0.0
    allocated: float = 0.0
    reserved: float = 0.0
    rate: float = 0.0
    predicted: float | None = None
    parts: dict[str, int] = field(default_factory=dict)  # of what was predicted, bytes
    note: str = ""

    def finish(self) -> Result:
        self.allocated, self.reserved = peaks()
        if self.times and not self.rate:
            rates = [count / seconds for count, seconds in zip(self.tokens, self.times, strict=True)]
            self.rate = median(rates[WARM_UP:] or rates[-1:])
        return self


class Missing(Exception):
    """A contestant that is not installed, or cannot do this."""


def peaks() -> tuple[float, float]:
    import torch

    if not torch.cuda.is_available():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 0.0
    return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30


def reset_peaks() -> None:
    """Loading is not counted: it may need more, for a moment, than training."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def set_limit(gib: float | None) -> None:
    """Let the allocator refuse what goes beyond, fragments included."""
    import torch

    if gib is not None and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total))


# Ours ---------------------------------------------------------------------------------------------------------------


def config_for(task: Task, quantize: str, **changes: Any) -> Any:
    from thinktune.config import parse_config

    work = task.workload
    checkpointing: Any = {"true": True, "false": False}.get(task.checkpointing, task.checkpointing)
    values: dict[str, Any] = {
        "model": str(model_folder(task.shape, Path(task.folder))),
        "quantize": quantize,
        "lora": {"r": task.rank, "alpha": 2 * task.rank, "targets": list(TARGETS)},
        "data": {"max_length": work.length or 16384},
        "train": {
            "packing": False,
            "batch_size": work.rows,
            "accumulation": work.accumulation,
            "learning_rate": LEARNING_RATE,
            "scheduler": "constant",
            "warmup_steps": 0,
            "max_grad_norm": MAX_NORM,
            "max_steps": work.steps,
            "memory": task.limit,
            "gradient_checkpointing": checkpointing,
            "save_every": 10**6,
        },
        "ask": {"questions": []},
    }
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return parse_config(values)


def ours(task: Task, quantize: str, *, fused: bool = True) -> Result:
    import torch
    from transformers import set_seed

    from thinktune.fitting import plan_training, set_up, settle
    from thinktune.models import load_model
    from thinktune.trainer import PackedCollator
    from thinktune.workbench import adapter_to_train

    set_limit(task.limit)
    config = config_for(task, quantize)
    loaded = load_model(config.model, load=config.load, quantize=config.quantize)
    reset_peaks()
    steps = task.workload.documents(loaded.model.config.vocab_size)
    examples = as_tokens([ids for step in steps for ids in step])
    plan = plan_training(config, loaded, examples, may_fuse=fused)
    result = Result()
    set_seed(0)
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    with ExitStack() as stack:
        model = stack.enter_context(adapter_to_train(loaded, config, say))
        plan, setup = settle(model, config, loaded, examples, plan, plan.setup, say)
        stack.enter_context(set_up(model, loaded, plan, setup))
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        for documents in steps:
            start = time.perf_counter()
            rows = as_tokens(documents)
            collate, total = PackedCollator(rows), sum(row.trained for row in rows)
            loss = torch.zeros((), device=loaded.device)
            for at in range(0, len(rows), setup.rows):
                inputs = collate([{"documents": [index]} for index in range(at, min(at + setup.rows, len(rows)))])
                inputs = {k: v.to(loaded.device) if torch.is_tensor(v) else v for k, v in inputs.items()}
                del inputs["labels"]
                part = model(**inputs, use_cache=False)["loss"] / total
                part.backward()
                loss += part.detach()
            norm = torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronize()
            result.times.append(time.perf_counter() - start)
            result.first_step = result.first_step or time.time() - task.started
            result.tokens.append(sum(map(len, documents)))
            result.losses.append(float(loss))
            result.norms.append(float(norm))
    result.predicted, result.parts = plan.parts["peak"] / 2**30, plan.parts
    result.label = f"ours, {quantize}{'' if plan.fused else ', not fused'}: {setup.describe()}"
    return result.finish()


def verb(task: Task, quantize: str) -> Result:
    """`thinktune train` on rows of its own with the same lengths; the first step is seen in metrics.jsonl."""
    import yaml

    from thinktune.cli import app

    work = task.workload
    folder = Path(task.folder) / f"verb-{os.getpid()}"
    lengths = [len(ids) for step in work.documents(300) for ids in step]
    write_rows(folder / "rows.jsonl", lengths)
    data = {"source": str(folder / "rows.jsonl"), "max_length": max(lengths)}
    config = config_for(task, quantize, data=data, output=str(folder / "run"))
    file = folder / "verb.yaml"
    file.write_text(yaml.safe_dump(json.loads(config.model_dump_json())), encoding="utf-8")
    metrics = folder / "run" / "metrics.jsonl"
    seen: list[float] = []
    threading.Thread(target=_watch, args=(metrics, seen), daemon=True).start()
    app(["train", str(file), "--overwrite"], standalone_mode=False)
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    record = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    result = Result(f"thinktune train, {quantize}: {record['setup']}", predicted=record["predicted_memory_gib"])
    result.losses, result.norms = ([line[name] for line in lines] for name in ("loss", "grad_norm"))
    rates = [line["tokens_per_second"] for line in lines]
    result.rate = median(rates[WARM_UP:] or rates[-1:])
    result.first_step = seen[0] - task.started if seen else 0.0
    return result.finish()


def _watch(file: Path, seen: list[float]) -> None:
    while not file.exists() or not file.read_text(encoding="utf-8").strip():
        time.sleep(0.05)
    seen.append(time.time())


# Peers --------------------------------------------------------------------------------------------------------------


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
    set_limit(task.limit)
    on_gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {"device_map": {"": 0}} if on_gpu else {}
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
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=list(TARGETS)
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

    set_limit(task.limit)
    longest = task.workload.length or 16384
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(model_folder(task.shape, Path(task.folder))), max_seq_length=max(2048, longest), dtype=torch.bfloat16,
        load_in_4bit=kind.base == "nf4",
    )  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=task.rank, lora_alpha=2 * task.rank, lora_dropout=0, bias="none", target_modules=list(TARGETS),
        use_gradient_checkpointing="unsloth" if kind.checkpointing else False, random_state=0,
    )  # fmt: skip
    return model, tokenizer


def train_peer(task: Task, kind: Peer, model: Any, tokenizer: Any) -> Result:
    import torch
    import trl
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    from workload import byte_tokenizer

    work, on_gpu = task.workload, torch.cuda.is_available()
    steps = work.documents(model.config.vocab_size)
    documents = [ids for step in steps for ids in step]
    equal = len({len(ids) for ids in documents}) == 1
    rows = work.rows if equal else 1  # documents of other lengths would be padded
    accumulation = len(steps[0]) // rows
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
        "train_sampling_strategy": "sequential",
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
    reset_peaks()
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


# The machine --------------------------------------------------------------------------------------------------------


def ceiling(task: Task) -> dict[str, float]:
    """TFLOP/s of matrix products of the model's own shapes, on as many tokens as a step has."""
    import torch

    from workload import SHAPES

    shape = SHAPES[task.shape]
    hidden, wide = shape["hidden_size"], shape["intermediate_size"]
    on_gpu = torch.cuda.is_available()
    work = task.workload
    tokens = min(32768, work.rows * work.accumulation * (work.length or 32768))
    rates = {"bf16": _rate(tokens, hidden, wide, on_gpu, fp8=False)}
    if on_gpu and torch.cuda.get_device_capability() >= (8, 9):
        rates["fp8"] = _rate(tokens, hidden, wide, on_gpu, fp8=True)
    return rates


def _rate(tokens: int, hidden: int, wide: int, on_gpu: bool, *, fp8: bool) -> float:
    import torch

    device, flops, seconds = "cuda" if on_gpu else "cpu", 0.0, 0.0
    tokens -= tokens % 16
    for inputs, outputs in ((hidden, 2 * wide), (wide, hidden), (hidden, hidden)):
        x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
        weight = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
        product: Callable[[], Any] = lambda x=x, weight=weight: x @ weight.t()  # noqa: E731
        if fp8:
            x8, w8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
            one, ones = torch.ones(tokens, 1, device=device), torch.ones(1, outputs, device=device)
            product = lambda a=x8, b=w8, s=one, t=ones: torch._scaled_mm(  # noqa: E731
                a, b.t(), s, t, out_dtype=torch.bfloat16, use_fast_accum=True
            )
        repeats = 20 if on_gpu else 2
        product()
        synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            product()
        synchronize()
        seconds += time.perf_counter() - start
        flops += repeats * 2.0 * tokens * inputs * outputs
    return flops / seconds / 1e12


_BASES = ("none", "fp8", "int8", "nf4")
_PEERS = {
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


def contestants() -> dict[str, Callable[[Task], Result]]:
    """Everyone by name: `ours`, `ours-fp8`, …, `verb`, …, and the peers, each also with `-ckpt`."""
    from dataclasses import replace

    found: dict[str, Callable[[Task], Result]] = {"unfused": lambda task: ours(task, "none", fused=False)}
    for base in _BASES:
        end = "" if base == "none" else f"-{base}"
        found[f"ours{end}"] = lambda task, base=base: ours(task, base)
        found[f"verb{end}"] = lambda task, base=base: verb(task, base)
    for name, kind in _PEERS.items():
        found[name] = lambda task, kind=kind: peer(task, kind)
        if not kind.article:
            kept = replace(kind, checkpointing=True)
            found[f"{name}-ckpt"] = lambda task, kind=kept: peer(task, kind)
    return found


def main() -> None:
    values = json.loads(sys.argv[1])
    task = Task(**{**values, "workload": Workload(**values["workload"])})
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    Path(task.folder).mkdir(parents=True, exist_ok=True)
    try:
        if task.name == "ceiling":
            answer: dict[str, Any] = ceiling(task)
        elif task.name == "folder":
            answer = {"folder": str(model_folder(task.shape, Path(task.folder)))}
        else:
            answer = vars(contestants()[task.name](task))
    except (Missing, ModuleNotFoundError) as error:
        answer = {"missing": str(error)}
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        answer = {"error": f"{type(error).__name__}: {first[:160]}"}
        if os.environ.get("BENCH_TRACE"):
            raise
    print("\nRESULT " + json.dumps(answer), flush=True)
    os._exit(0)  # threads of libraries may take their time


if __name__ == "__main__":
    main()
