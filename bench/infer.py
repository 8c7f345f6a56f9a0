"""Batch inference: vLLM alone against `thinktune infer`, merged and unmerged, and our transformers engine.

    python bench/infer.py TOKENIZER_FOLDER            # one H100: Qwen2.5-3B's shape, 512 items x 256 tokens
    python bench/infer.py --model FOLDER --items 32 --tokens 64 --parts vllm,ours,transformers    # SmolLM2 on a CPU
    python bench/infer.py TOKENIZER_FOLDER --tiny     # to try it; on a CPU with THINKTUNE_VLLM_PYTHON set

Without --model the model has random weights, on which speed does not depend. No token ends a completion. Every part is
measured in a process of its own after a warm-up: medians, beside the lowest and the highest; rows appear as they are
measured. vLLM alone and ours run with equal arguments, prompts and sampling; ours goes through `infer`, its journal
included. vLLM alone comes first and fills the compilation cache, so that ours is the engine's second start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import thinktune
from thinktune.config import Sampling, Vllm
from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.vllm.engine import OWN, VllmEngine, VllmModel, engine_arguments, vllm_environment

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
TINY = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 8}
RANK = 8
WARM_UP = 32  # tokens
FRESH = count(step=10_000)  # numbers for the questions of a measurement: vLLM keeps the prompts of those before
PENALTY = Sampling(temperature=0.3, top_p=0.9, repetition_penalty=1.05, max_tokens=256, seed=1)
GREEDY = Sampling(max_tokens=256, seed=1)
PARTS = {
    "vllm": "vLLM alone",
    "ours": "thinktune infer, vLLM",
    "transformers": "thinktune infer, transformers",
    "vllm-adapter": "vLLM alone, adapter unmerged",
    "ours-adapter": "thinktune infer, vLLM, adapter unmerged",
}


def main() -> None:
    options = read_options()
    if options.part == "model":
        make_model(options)
        return
    if options.part:
        for row in measure(options):
            print("ROW", json.dumps(row), flush=True)
        return
    started = time.time()
    if options.model is None:
        list(rows_of("model", options))  # in a process of its own too: what it has on the GPU is gone afterwards
        print(f"model and adapter made in {time.time() - started:.0f} s\n", flush=True)
    print(f"{'what':40} {'sampling':22} {'tokens/s':>9} {'from':>7} {'to':>7} {'of vLLM':>8} {'start':>7}", flush=True)
    alone: dict[str, float] = {}
    for part in options.parts.split(","):
        for row in rows_of(part, options):
            speeds = row["tokens_per_second"]
            figures = f"{median(speeds):9,.0f} {min(speeds):7,.0f} {max(speeds):7,.0f}"
            share = median(speeds) / alone.setdefault(row["sampling"], median(speeds))
            print(f"{PARTS[part]:40} {row['sampling']:22} {figures} {share:8.1%} {row['start']:5.0f} s", flush=True)
    print(f"\n{time.time() - started:.0f} s in all", flush=True)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Batch inference, side by side.")
    parser.add_argument("tokenizer", type=Path, nargs="?", help="folder of Qwen2.5's tokenizer")
    parser.add_argument("--model", type=Path, help="a model folder to measure instead, without adapter")
    parser.add_argument("--work", type=Path, default=Path("runs/bench-infer"), help="for model, adapter and results")
    parser.add_argument("--parts", default=",".join(PARTS), help="which rows to measure")
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small model")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    # Told, not asked: vLLM forks, and CUDA does not survive that once it was asked.
    parser.add_argument("--device", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tokenizer is None and options.model is None:
        parser.error("name the folder of a tokenizer, or a --model")
    return options


def rows_of(part: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure one part in a process of its own, so that the memory of the one before it is free."""
    on = device()
    options = argparse.Namespace(**{**vars(options), "part": part, "device": on})
    environment = vllm_environment(vllm_model(options)) if part != "model" else {**os.environ}
    python = os.environ.get("THINKTUNE_VLLM_PYTHON") if part.startswith("vllm") else None
    if python:  # it has no thinktune of its own
        environment["PYTHONPATH"] = str(Path(thinktune.__file__).parents[1])
    with subprocess.Popen(
        [python or sys.executable, __file__, *sys.argv[1:], "--part", part, "--device", on],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("ROW "):
                yield json.loads(line.removeprefix("ROW "))
    if process.returncode:
        print(f"{PARTS.get(part, part)}: ended with status {process.returncode}", flush=True)


def make_model(options: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**{**SHAPE, **(TINY if options.tiny else {})}, dtype="bfloat16")
    folder, adapter = options.work / "model", options.work / "adapter"
    if not (folder / "model.safetensors.index.json").exists() and not (folder / "model.safetensors").exists():
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(options.device):
            model = Qwen2ForCausalLM(config)
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(options.tokenizer).save_pretrained(folder)
    adapter.mkdir(exist_ok=True)
    save_file(adapter_weights(config), adapter / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    targets = sorted({name.split(".")[-3] for name in adapter_weights(config)})
    text = json.dumps({**described, "base_model_name_or_path": str(folder), "target_modules": targets})
    (adapter / "adapter_config.json").write_text(text, encoding="utf-8")


def adapter_weights(config: Any) -> dict[str, Any]:
    """Random LoRA matrices for all seven projections, named as PEFT names them."""
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


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if options.part.startswith("vllm"):
        return measure_vllm(options)
    return measure_ours(options)


def questions(number: int) -> list[str]:
    """Other ones at each call."""
    first = next(FRESH)
    return [f"Calculate the area of a circle with radius {first + at} and explain every step." for at in range(number)]


def vllm_model(options: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    folder = options.model or options.work / "model"
    return VllmModel(
        folder=folder,
        tokenizer_folder=folder,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        stop_ids=frozenset(),
        dtype="bfloat16",
        device=options.device,
        adapters={OWN: options.work / "adapter"} if options.part.endswith("adapter") else {},
    )


def engine_settings() -> Vllm:
    return Vllm(max_model_len=2048, gpu_memory_utilization=0.8)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def cases(options: argparse.Namespace) -> dict[str, tuple[Sampling, bool]]:
    """The samplings to measure, and whether each item has noise of its own."""
    penalty, greedy = (sampling.changed(max_tokens=options.tokens) for sampling in (PENALTY, GREEDY))
    found = {"penalty": (penalty, False), "penalty, item noise": (penalty, True)}
    return found if options.part.endswith("adapter") else {**found, "greedy": (greedy, False)}


def measure_vllm(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """vLLM's own `LLM.generate`, with the arguments that ours gives it."""
    from thinktune.models import Chat

    model = vllm_model(options)
    started = time.time()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(**engine_arguments(model, engine_settings()))
    took = time.time() - started
    chat = Chat(model.tokenizer)
    own = [LoRARequest("own", 1, str(folder)) for folder in model.adapters.values()]

    def run(sampling: Sampling, *, seeded: bool = False, items: int = options.items) -> float:
        texts = questions(items)
        prompts = [{"prompt_token_ids": chat.prompt_ids([{"role": "user", "content": text}])} for text in texts]
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                repetition_penalty=sampling.repetition_penalty,
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop),
                include_stop_str_in_output=True,
                ignore_eos=True,
                seed=at if seeded else None,
            )
            for at in range(len(prompts))
        ]
        begun = time.time()
        outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=own[0] if own else None)
        return sum(len(output.outputs[0].token_ids) for output in outputs) / (time.time() - begun)

    run(PENALTY.changed(max_tokens=WARM_UP))
    for name, (sampling, seeded) in cases(options).items():
        speeds = [run(sampling, seeded=seeded) for _ in range(options.rounds)]
        yield {"sampling": name, "tokens_per_second": speeds, "start": took}
    if not own:
        speeds = [run(cases(options)["penalty"][0], items=1) for _ in range(options.rounds)]
        yield {"sampling": "one at a time", "tokens_per_second": speeds, "start": took}


def measure_ours(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """`infer` from items to result file, journal included, over an engine that is ready."""
    from thinktune.inference.batch import infer
    from thinktune.inference.batch_file import Item
    from thinktune.inference.engines import Opened
    from thinktune.models import Chat

    model = vllm_model(options)
    chat = Chat(model.tokenizer)
    out = options.work / f"{options.part}.json"

    def run(sampling: Sampling) -> float:
        items = [
            Item(str(at), "math", ({"role": "user", "content": text},), sampling)
            for at, text in enumerate(questions(options.items))
        ]
        return infer(Opened(engine, chat, "bench"), items, out, overwrite=True).tokens_per_second or 0.0

    started = time.time()
    engine = transformers_engine(model) if options.part == "transformers" else VllmEngine(model, engine_settings())
    took = time.time() - started
    with engine:
        run(PENALTY.changed(max_tokens=WARM_UP))
        for name, (sampling, per_request_seed) in cases(options).items():
            if isinstance(engine, VllmEngine):
                engine.settings = engine.settings.model_copy(update={"per_request_seed": per_request_seed})
            elif per_request_seed != bool(sampling.temperature):  # it has no other noise
                continue
            speeds = [run(sampling) for _ in range(options.rounds)]
            yield {"sampling": name, "tokens_per_second": speeds, "start": took}


def transformers_engine(described: VllmModel) -> Engine:
    import torch
    from transformers import AutoModelForCausalLM

    from thinktune.inference.engines.hf.engine import TransformersEngine

    model = AutoModelForCausalLM.from_pretrained(described.folder, dtype=torch.bfloat16)
    return TransformersEngine(model.to(described.device), described.tokenizer, ())


if __name__ == "__main__":
    main()
