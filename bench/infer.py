"""Batch inference: `thinktune infer` through vLLM and vLLM alone in turn over one engine, and our transformers engine.

    python bench/infer.py TOKENIZER_FOLDER           # one H100: Qwen2.5-3B's shape, 512 items x 256 tokens, five rounds
    python bench/infer.py TOKENIZER_FOLDER --parts adapter          # an adapter of rank 8 beside its base
    python bench/infer.py --model FOLDER --items 32 --tokens 64 --parts vllm,transformers       # SmolLM2 on a CPU
    python bench/infer.py TOKENIZER_FOLDER --shape tiny             # to try it

Without --model the model has random weights, on which speed does not depend. No token ends a completion. vLLM alone is
`LLM.generate` with the same token ids and samplings, in the process (`vllm_alone`) and over the engine that ours asks:
no difference of machine, start or arguments is left, and a drift of the machine meets both, which take turns at being
first. Ours is `infer` without rendering prompts and writing the result file: from the first request to the journal's
last line. Its other parts are printed below, as medians in milliseconds, `alone / ours` where both have them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from rich.console import Console

from thinktune.config import Sampling, Vllm
from thinktune.inference import batch, complete
from thinktune.inference.batch_file import Item
from thinktune.inference.engines import Opened
from thinktune.inference.engines.base import Completion, Engine, Request
from thinktune.inference.engines.detokenizer import Detokenizer
from thinktune.inference.engines.vllm.engine import VllmEngine
from thinktune.inference.engines.vllm.model import OWN, VllmModel, vllm_environment
from thinktune.inference.engines.vllm.process import WorkerProcess
from thinktune.inference.journal import Journal
from thinktune.models import Chat

SCRIPT = Path(__file__).with_name("vllm_alone.py")
QWEN = {
    "vocab_size": 151936,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SHAPES = {
    name: {**QWEN, **dict(zip(NAMES, sizes, strict=True))}
    for name, sizes in {"3b": (2048, 11008, 36, 16), "0.5b": (896, 4864, 24, 14), "tiny": (64, 64, 1, 2)}.items()
}
RANK = 8
WARM_UP = 32  # tokens
PENALTY = Sampling(temperature=0.3, top_p=0.9, repetition_penalty=1.05, seed=1)
FRESH = count(step=10_000)  # numbers for the questions of a measurement: vLLM keeps the prompts of those before
CASES = {  # the sampling, and whether each item has noise of its own
    "penalty, one generator": (PENALTY, False),
    "penalty, own noise": (PENALTY, True),
    "greedy": (Sampling(seed=1), False),
}
OURS = {  # what `infer` does beside the engine, and the functions that do it
    "rendering prompts": (Chat, "prompt_ids"),
    "digests": (complete._Digests, "keys"),
    "decoding": (Detokenizer, "final_texts"),
    "journal": (Journal, "add"),
    "result file": (batch, "write_results"),
}

Parts = dict[str, float]


def main() -> None:
    options = read_options()
    began = time.time()
    if options.model is None:
        options.model = options.work / options.shape
        child = get_context("spawn").Process(target=make_model, args=(options,))  # its memory on the GPU ends with it
        child.start()
        child.join()
        print(f"model and adapter made in {time.time() - began:.0f} s", flush=True)
    for part in filter(None, options.parts.split(",")):
        if part == "transformers":
            measure_transformers(options)
        else:
            compare(options, unmerged=part == "adapter")
    print(f"\n{time.time() - began:.0f} s in all", flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Batch inference, side by side.")
    parser.add_argument("tokenizer", type=Path, nargs="?", help="folder of Qwen2.5's tokenizer")
    parser.add_argument("--model", type=Path, help="a model folder to measure instead")
    parser.add_argument("--shape", choices=SHAPES, default="3b")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-infer"), help="for model, adapter and results")
    parser.add_argument(
        "--parts", default="vllm", help="of vllm, adapter (unmerged), transformers; empty: no more than the model"
    )
    parser.add_argument("--cases", default=",".join(CASES).replace(", ", " "), help="words of the samplings to measure")
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.tokenizer is None and options.model is None:
        parser.error("name the folder of a tokenizer, or a --model")
    return options


def compare(options: argparse.Namespace, *, unmerged: bool) -> None:
    """Measure vLLM alone and `infer` in turn, and print a line and its parts for each sampling."""
    model = vllm_model(options, unmerged=unmerged)
    began = time.time()
    process = WorkerProcess(SCRIPT, vllm_environment(model))
    with closing(TimedEngine(model, Vllm(max_model_len=2048, gpu_memory_utilization=0.8), process)) as engine:
        title = "vLLM alone / thinktune infer" + (", adapter unmerged" if unmerged else "")
        print(f"\n{title}: medians (from to) of {options.rounds}; started in {time.time() - began:.0f} s", flush=True)
        warm_up, _ = CASES["penalty, own noise"]
        for measure in (measure_alone, measure_ours):
            measure(engine, warm_up.changed(max_tokens=WARM_UP), options)
        for name, (sampling, own_noise) in chosen(options).items():
            engine.settings = engine.settings.model_copy(update={"per_request_seed": own_noise})
            runs: dict[Any, list[Parts]] = {measure_alone: [], measure_ours: []}
            for number in range(options.rounds):
                for measure in sorted(runs, key=(measure_alone, measure_ours).index, reverse=number % 2 == 1):
                    runs[measure].append(measure(engine, sampling.changed(max_tokens=options.tokens), options))
            show(name, runs[measure_alone], runs[measure_ours])


def show(name: str, alone: Sequence[Parts], ours: Sequence[Parts]) -> None:
    speeds = [[run["tokens"] / run["seconds"] for run in runs] for runs in (alone, ours)]
    share = median(speeds[1]) / median(speeds[0])
    print(f"\n{name:24} {shown(speeds[0])} {shown(speeds[1])}  {share:6.1%}", flush=True)
    for part in ours[0]:
        if part not in ("tokens", "seconds"):
            both = [1000 * median(run[part] for run in runs) for runs in (alone, ours) if part in runs[0]]
            print(f"    {part:24} {' / '.join(f'{value:,.0f}' for value in both):>15}", flush=True)


def shown(speeds: Sequence[float]) -> str:
    return f"{median(speeds):9,.0f} ({min(speeds):,.0f} {max(speeds):,.0f})"


def chosen(options: argparse.Namespace) -> dict[str, tuple[Sampling, bool]]:
    words = options.cases.split(",")
    return {name: case for name, case in CASES.items() if any(word in name.replace(", ", " ") for word in words)}


class TimedEngine(VllmEngine):
    """Our engine, which notes when it was asked and had answered, and is told what its process noted."""

    _process: WorkerProcess

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        self.started = time.monotonic()
        yield from super().generate(requests)
        self.ended = time.monotonic()

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a message of `vllm_alone`, and return its answer."""
        box: deque[dict[str, Any]] = deque()
        name = self._process.open_box(box)
        self._process.send({kind: {"id": name, **fields}})
        while not box:
            self._process.wait()
        self._process.close_box(name)
        return box.popleft()

    def parts(self, started: float, ended: float) -> Parts:
        """Return the seconds of each part of a run, by what the process noted since the last one."""
        times = self.ask("times")
        return {
            "seconds": ended - started,
            "to the first request": times["add first"] - started,
            "adding requests": times["add last"] - times["add first"],
            "from there to the last": times["step last"] - times["add last"],
            "- waiting for the engine": times["wait seconds"],
            "- vLLM's outputs": times["step seconds"] - times["wait seconds"],
            "after the last": ended - times["step last"],
        }


def measure_alone(engine: TimedEngine, sampling: Sampling, options: argparse.Namespace) -> Parts:
    """Measure `LLM.generate`, with the sampling that ours means, as one would write it for vLLM."""
    chat = Chat(engine._model.tokenizer)
    prompts = [chat.prompt_ids([{"role": "user", "content": text}]) for text in questions(options)]
    written = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
        "include_stop_str_in_output": True,
        "ignore_eos": True,
    }
    seeded = engine.settings.per_request_seed and sampling.temperature > 0
    samplings = [{**written, "seed": at if seeded else None} for at in range(len(prompts))]
    engine.ask("times")
    answer = engine.ask("alone", prompts=prompts, samplings=samplings, adapter=next(iter(engine._model.adapters), None))
    return {"tokens": answer["tokens"], **engine.parts(answer["started"], answer["ended"])}


def measure_ours(engine: TimedEngine, sampling: Sampling, options: argparse.Namespace) -> Parts:
    """Measure `infer` from items to result file, journal included."""
    engine.ask("times")
    with timed() as seconds:
        inferred = infer(engine, sampling, options)
    speed = inferred.tokens_per_second or 0.0
    parts = engine.parts(engine.started, engine.ended)
    return {"tokens": speed * parts["seconds"], **parts, **{f"- {name}": seconds[name] for name in OURS}}


def infer(engine: Engine, sampling: Sampling, options: argparse.Namespace) -> batch.Inferred:
    items = [
        Item(str(at), "math", ({"role": "user", "content": text},), sampling)
        for at, text in enumerate(questions(options))
    ]
    opened = Opened(engine, Chat(tokenizer_of(options.model)), "bench")
    return batch.infer(opened, items, options.work / "results.json", overwrite=True, console=Console(quiet=True))


@contextmanager
def timed() -> Iterator[Parts]:
    """Measure the functions of `OURS`: the seconds in each, by its name."""
    seconds: Parts = defaultdict(float)

    def timing(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timing_function(*args: Any, **kwargs: Any) -> Any:
            called = time.perf_counter()
            value = function(*args, **kwargs)
            seconds[name] += time.perf_counter() - called
            return value

        return timing_function

    with ExitStack() as patches:
        for name, (owner, attribute) in OURS.items():
            patches.enter_context(patch.object(owner, attribute, timing(name, getattr(owner, attribute))))
        yield seconds


def questions(options: argparse.Namespace) -> list[str]:
    """Make questions, other ones at each call."""
    first = next(FRESH)
    return [
        f"Calculate the area of a circle with radius {first + at} and explain every step."
        for at in range(options.items)
    ]


def measure_transformers(options: argparse.Namespace) -> None:
    """Measure `infer` through our transformers engine, and print a line for each sampling."""
    import torch
    from transformers import AutoModelForCausalLM

    from thinktune.inference.engines.hf.engine import TransformersEngine

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16).to(device())
    print(f"\nthinktune infer, transformers: medians (from to) of {options.rounds}", flush=True)
    with TransformersEngine(model, tokenizer_of(options.model), ()) as engine:
        infer(engine, PENALTY.changed(max_tokens=WARM_UP), options)
        for name, (sampling, own_noise) in chosen(options).items():
            if own_noise == bool(sampling.temperature):  # it has no other noise
                runs = [
                    infer(engine, sampling.changed(max_tokens=options.tokens), options) for _ in range(options.rounds)
                ]
                print(f"{name:24} {shown([run.tokens_per_second or 0.0 for run in runs])}", flush=True)


def vllm_model(options: argparse.Namespace, *, unmerged: bool) -> VllmModel:
    return VllmModel(
        folder=options.model,
        tokenizer_folder=options.model,
        tokenizer=tokenizer_of(options.model),
        stop_ids=frozenset(),
        dtype="bfloat16",
        device=device(),
        adapters={OWN: options.work / f"{options.shape}-adapter"} if unmerged else {},
    )


@cache
def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def make_model(options: argparse.Namespace) -> None:
    """Make a model with random weights, and an adapter for it, in the working folder."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**SHAPES[options.shape], dtype="bfloat16")
    if not list(options.model.glob("model.safetensors*")):
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device()):
            model = Qwen2ForCausalLM(config)
        model.save_pretrained(options.model)
    tokenizer_of(options.tokenizer).save_pretrained(options.model)
    adapter = options.work / f"{options.shape}-adapter"
    adapter.mkdir(exist_ok=True)
    weights = adapter_weights(config)
    save_file(weights, adapter / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    targets = sorted({name.split(".")[-3] for name in weights})
    text = json.dumps({**described, "base_model_name_or_path": str(options.model), "target_modules": targets})
    (adapter / "adapter_config.json").write_text(text, encoding="utf-8")


def adapter_weights(config: Any) -> dict[str, Any]:
    """Make random LoRA matrices for all seven projections, named as PEFT names them."""
    import torch

    size, inner = config.hidden_size, config.intermediate_size
    kv = size // config.num_attention_heads * config.num_key_value_heads
    shapes = {
        **{f"self_attn.{name}_proj": (size, out) for name, out in (("q", size), ("k", kv), ("v", kv), ("o", size))},
        "mlp.gate_proj": (size, inner),
        "mlp.up_proj": (size, inner),
        "mlp.down_proj": (inner, size),
    }
    weights = {}
    for layer in range(config.num_hidden_layers):
        for name, (inputs, outputs) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(RANK, inputs, dtype=torch.bfloat16) * 0.01
            weights[f"{prefix}.lora_B.weight"] = torch.randn(outputs, RANK, dtype=torch.bfloat16) * 0.01
    return weights


if __name__ == "__main__":
    main()
