"""The contestants of bench/train.py, each run in a process of its own.

`ours*` goes through what `thinktune train` itself uses: load_model, the plan, the adapter, the fused layers, the loss;
`verb*` is that command, called. The others are in peers.py.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from contest import LEARNING_RATE, MAX_NORM, WARM_UP, Missing, Result, Task, begin_training, synchronize
from parts import watch_training
from peers import PEERS, peer
from workload import Workload, as_tokens, model_folder, write_rows

ARTICLE = Path(__file__).parents[1] / "configs" / "article.yaml"


def config_for(task: Task, quantize: str, **changes: Any) -> Any:
    from thinktune.config import parse_config

    work = task.workload
    checkpointing: Any = {"true": True, "false": False}.get(task.checkpointing, task.checkpointing)
    values: dict[str, Any] = {
        "model": str(model_folder(task.shape, Path(task.folder))),
        "quantize": quantize,
        "lora": {"r": task.rank, "alpha": 2 * task.rank, "dropout": task.dropout, "targets": list(task.targets)},
        "data": {"max_length": work.length or 16384},
        "train": {
            "packing": not work.length,
            "pack_length": None if work.length else 32768,
            "batch_size": work.rows if work.length else 1,
            "accumulation": work.accumulation,
            "learning_rate": LEARNING_RATE,
            "optimizer": task.optimizer,
            "scheduler": "constant",
            "warmup_steps": 0,
            "max_grad_norm": MAX_NORM,
            "max_steps": work.steps,
            "memory": task.limit,
            "gradient_checkpointing": checkpointing,
            "fused": task.fused,
            "save_every": 10**6,
        },
        "ask": {"questions": []},
    }
    for section, fields in changes.items():
        values[section] = {**values.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return parse_config(values)


def ours(task: Task, quantize: str) -> Result:
    from thinktune.models import load_model

    config = config_for(task, quantize)
    return train_loaded(load_model(config.model, load=config.load, quantize=config.quantize), config, task)


def train_loaded(loaded: Any, config: Any, task: Task) -> Result:
    """Train a new adapter of a loaded base for the steps of a task; the base is as it was afterwards."""
    import torch
    from transformers import set_seed

    from thinktune.data.packing import packs_of
    from thinktune.notices import show_notices
    from thinktune.planner.pack_lengths import measure_packs
    from thinktune.training.adapter import adapter_to_train
    from thinktune.training.collator import PackedCollator
    from thinktune.training.compiled_kernels import compile_kernels
    from thinktune.training.graphed_passes import GraphedPasses
    from thinktune.training.model_with_loss import ModelWithLoss
    from thinktune.training.plan import resolve_plan
    from thinktune.training.prepare_model import set_up

    begin_training(task.limit)
    steps = task.workload.documents(loaded.model.config.vocab_size)
    examples = as_tokens([ids for step in steps for ids in step])
    packs = measure_packs(examples, packs_of([len(example) for example in examples], config))
    result = Result()
    set_seed(0)
    show_notices()
    with ExitStack() as stack:
        model = stack.enter_context(adapter_to_train(loaded, config))
        with_loss = ModelWithLoss(model)
        plan = resolve_plan(model, config, loaded, packs)
        stack.enter_context(set_up(model, loaded, plan))
        if plan.fused:
            compile_kernels(with_loss, examples[: plan.packs])
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(trained, config.train.optimizer)
        graphs = GraphedPasses(with_loss, loaded.device) if plan.graphed else None
        plainly = {"weights": None, "dropout_seed": torch.zeros(1, dtype=torch.int32, device=loaded.device)}
        collate, end = PackedCollator(examples), 0
        for documents in steps:
            begin, end = end, end + len(documents)
            total = sum(row.trained for row in examples[begin:end])
            at_once = len(documents) if config.train.packing else plan.packs
            starts = range(begin, end, at_once)
            batches = [collate([{"documents": [at]} for at in range(at, min(at + at_once, end))]) for at in starts]
            start = time.perf_counter()  # batches are there by then for the peers' trainers too
            loss = torch.zeros((), device=loaded.device)
            for batch in batches:
                inputs = {k: v.to(loaded.device) if torch.is_tensor(v) else v for k, v in batch.items()}
                part = graphs.backward({**inputs, **plainly}, divisor=loss.new_tensor(total)) if graphs else None
                if part is None:
                    part = with_loss(**inputs)
                    (part / total).backward()
                part = part.detach()  # a graph of autograd's that is there cannot be recorded anew
                loss += part / total
            norm = torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
            optimizer.step()
            with_loss.zero_grad()
            synchronize()
            result.times.append(time.perf_counter() - start)
            result.first_step = result.first_step or time.time() - task.started
            result.tokens.append(sum(map(len, documents)))
            result.losses.append(float(loss))
            result.norms.append(float(norm))
    result.predicted, result.predicted_rate = plan.parts["peak"] / 2**30, plan.tokens_per_second
    result.parts = plan.parts
    result.label = f"ours, {config.quantize}{'' if plan.fused else ', not fused'}: {plan.describe()}"
    return result.finish()


def make_optimizer(trained: list[Any], name: str) -> Any:
    if name == "adamw":
        import torch

        return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    from thinktune.training.adamw_8bit import AdamW8bit

    return AdamW8bit(trained, lr=LEARNING_RATE, weight_decay=0.0, optim_bits=8, is_paged=name.startswith("paged"))


def verb(task: Task, quantize: str) -> Result:
    """`thinktune train` on rows of its own with the same lengths."""
    import yaml

    config = config_for(task, quantize)
    return train_by_command(task, yaml.safe_dump(json.loads(config.model_dump_json())), f"thinktune train, {quantize}")


def shipped(task: Task) -> Result:
    """`configs/article.yaml` as it is shipped, on rows of its own; batches are `accumulation` rows of the task."""
    work = task.workload
    overrides = [
        f"model={model_folder(task.shape, Path(task.folder))}",
        *("data.sample=null", "ask.questions=[]", "train.save_every=1000000"),
        *(f"train.batch_size={work.rows}", f"train.accumulation={work.accumulation}", f"train.max_steps={work.steps}"),
        *([f"train.memory={task.limit:g}"] if task.limit else []),
    ]
    return train_by_command(task, ARTICLE.read_text(encoding="utf-8"), "configs/article.yaml", overrides)


def train_by_command(task: Task, config: str, name: str, overrides: Sequence[str] = ()) -> Result:
    """Call `thinktune train` with a config on rows of the task's lengths, into a folder that is removed again."""
    from thinktune.cli import app

    parts = watch_training(task.started)
    with tempfile.TemporaryDirectory(prefix="verb-", dir=task.folder) as place:
        folder = Path(place)
        rows, longest = rows_file(task)
        (folder / "verb.yaml").write_text(config, encoding="utf-8")
        own = [f"data.source={rows}", f"data.max_length={longest}", f"output={folder}/run"]
        app(["train", str(folder / "verb.yaml"), *own, *overrides], standalone_mode=False)
        metrics = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8")
        record, plan = (json.loads((folder / "run" / file).read_text()) for file in ("run.json", "plan.json"))
    lines = [json.loads(line) for line in metrics.splitlines()]
    result = Result(f"{name}: {record['setup']}; seconds: {parts.describe()}", parts=plan["plan"]["parts"])
    result.predicted, result.predicted_rate = result.parts["peak"] / 2**30, plan["plan"]["tokens_per_second"]
    result.losses, result.norms = ([line[name] for line in lines] for name in ("loss", "grad_norm"))
    rates = [line["tokens_per_second"] for line in lines]
    result.rate = median(rates[WARM_UP:] or rates[-1:])
    result.first_step, result.loading = parts.all, parts.loading_peak / 2**30
    return result.finish()


def rows_file(task: Task) -> tuple[Path, int]:
    """Return a file of rows of the task's lengths, made if it is not there, and the longest of these."""
    lengths = [len(ids) for step in task.workload.documents(300) for ids in step]
    file = Path(task.folder) / f"rows-{zlib.crc32(repr(lengths).encode())}.jsonl"
    if not file.exists():
        write_rows(file, lengths)
    return file, max(lengths)


def ceiling(task: Task) -> dict[str, float]:
    """TFLOP/s of matrix products of the model's own shapes, on as many tokens as a step has.

    Makes the model's folder and the rows of `verb` too, where they are not there: a command's seconds shall be its own.
    """
    import torch

    from workload import SHAPES

    model_folder(task.shape, Path(task.folder))
    rows_file(task)
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


def contestants() -> dict[str, Callable[[Task], Result]]:
    """Everyone by name: `ours`, `ours-fp8`, …, `verb`, …, and the peers, each also with `-ckpt`."""
    found: dict[str, Callable[[Task], Result]] = {"unfused": lambda task: ours(replace(task, fused=False), "none")}
    found["shipped"] = shipped
    for base in _BASES:
        end = "" if base == "none" else f"-{base}"
        found[f"ours{end}"] = lambda task, base=base: ours(task, base)
        found[f"verb{end}"] = lambda task, base=base: verb(task, base)
    for name, kind in PEERS.items():
        found[name] = lambda task, kind=kind: peer(task, kind)
        if not kind.article:
            kept = replace(kind, checkpointing=True)
            found[f"{name}-ckpt"] = lambda task, kind=kept: peer(task, kind)
    return found


def compete(values: dict[str, Any], log: str, answers: Any) -> None:
    """Run in a process of its own: send what came of it; what libraries print goes into the log."""
    log_into(Path(log))
    task = Task(**{**values, "workload": Workload(**values["workload"])})
    try:
        answer: dict[str, Any] = ceiling(task) if task.name == "ceiling" else vars(contestants()[task.name](task))
    except Exception as error:  # noqa: BLE001 - whatever a contestant dies of is its line of the table
        answer = why(error)
    answers.send(answer)
    answers.close()
    os._exit(0)  # threads of libraries may take their time


def log_into(log: Path) -> None:
    """Send what this process prints into a file, from now on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def why(error: Exception) -> dict[str, Any]:
    """Return what a contestant died of, in a line, or what it misses; all of it goes into the log."""
    if isinstance(error, Missing | ModuleNotFoundError):
        return {"missing": str(error)}
    traceback.print_exception(error)
    lines = str(error).strip().splitlines() or [""]
    causes = [line for line in lines[1:] if re.match(r"[\w.]*(Error|Exception)\b", line)]  # of a process of its own
    return {"error": f"{type(error).__name__}: {(causes[-1] if causes else lines[0])[:160]}"}
