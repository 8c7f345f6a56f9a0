"""Decoding of models that keep a state: the transformers engine with and without CUDA graphs, beside `generate`.

    python bench/hybrids.py                                          # every family, 32 prompts
    python bench/hybrids.py --rows 8 --tokens 64 qwen3.5-4b
    python bench/hybrids.py --layers 2 --rows 3 --tokens 8 --width 8 # on a CPU

Layers are of the published width, with random weights in bfloat16, a vocabulary of 32,000, and prompts of different
lengths. "off" is the engine's distance from its own model in nats, by the check that every opening makes; "same" counts
completions that are equal with and without graphs (rounding parts some: kernels see other shapes).
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from typing import Any

import torch
import transformers

from thinktune.config import Sampling
from thinktune.errors import ThinktuneError
from thinktune.inference.engines.base import Request
from thinktune.inference.engines.hf.engine import TransformersEngine
from thinktune.inference.engines.hf.fidelity import compare

_VOCABULARY = 32_000
_PROMPT = (20, 400)  # tokens
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3.5-4b": (
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        {"hidden_size": 2560, "intermediate_size": 9216, "num_attention_heads": 16, "num_key_value_heads": 4,
         "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
         "linear_value_head_dim": 128, "num_hidden_layers": 32},
    ),
    "falcon-h1-1.5b": (
        "FalconH1Config",
        "FalconH1ForCausalLM",
        {"hidden_size": 2048, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 2,
         "head_dim": 128, "mamba_d_ssm": 3072, "mamba_n_heads": 48, "mamba_d_head": 64, "mamba_d_state": 256,
         "mamba_n_groups": 1, "num_hidden_layers": 24},
    ),
    "lfm2-1.2b": (
        "Lfm2Config",
        "Lfm2ForCausalLM",
        {"hidden_size": 2048, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8,
         "num_hidden_layers": 16},
    ),
    "granite-4-h-micro": (
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {"hidden_size": 2048, "intermediate_size": 8192, "shared_intermediate_size": 8192, "num_local_experts": 0,
         "num_attention_heads": 32, "num_key_value_heads": 8, "mamba_n_heads": 64, "mamba_d_head": 64,
         "mamba_d_state": 128, "mamba_n_groups": 1, "num_hidden_layers": 40,
         "layer_types": (["linear_attention"] * 5 + ["full_attention"] + ["linear_attention"] * 4) * 4},
    ),
}  # fmt: skip


class Letters:
    """A tokenizer of as many letters as there are ids."""

    model_max_length = 4096
    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(chr(0x4E00 + int(each) % 20_000) for each in ids)

    def convert_ids_to_tokens(self, ids: Any, **_: Any) -> Any:
        return [self.decode([each]) for each in ids] if isinstance(ids, (list, range)) else self.decode([ids])


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("families", nargs="*", default=list(FAMILIES), metavar="FAMILY")
    cli.add_argument("--rows", type=int, default=32)
    cli.add_argument("--tokens", type=int, default=192, help="written to each prompt")
    cli.add_argument("--layers", type=int, help="fewer of them")
    cli.add_argument("--width", type=int, default=1, help="divides hidden and intermediate size")
    args = cli.parse_args()
    print(f"{args.rows} rows of {args.tokens} tokens: {machine()}")
    print(f"{'':18}{'tokens/s':>10}{'no graph':>10}{'generate':>10}{'same':>8}{'off':>10}{'state/row':>11}  recorded")
    for name in args.families:
        try:
            print(line(name, args), flush=True)
        except (RuntimeError, ValueError, ThinktuneError) as error:
            print(f"{name:18}{type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)


def line(name: str, args: argparse.Namespace) -> str:
    model = make(name, args.layers, args.width)
    engine = TransformersEngine(model, Letters(), [])
    noise = random.Random(0)
    off = compare(engine, [[noise.randrange(_VOCABULARY) for _ in range(n)] for n in (48, 2, 11, 29, 23)])
    sampling = Sampling(max_tokens=args.tokens, stop=(), temperature=0)
    prompts = [[noise.randrange(_VOCABULARY) for _ in range(noise.randrange(*_PROMPT))] for _ in range(args.rows)]
    requests = [Request(str(at), prompt, sampling) for at, prompt in enumerate(prompts)]
    recorder = engine.decoder.recorder
    found, rate = timed(engine, requests)
    engine._decoder = replace(engine.decoder, recorder=None)
    plain, slower = timed(engine, requests)
    same = sum(found[key] == plain[key] for key in found)
    state = engine._limits.state
    recorded = recorder is not None and recorder.works
    return (
        f"{name:18}{rate:>10,.0f}{slower:>10,.0f}{generated(model, prompts[0], args.tokens):>10,.0f}"
        f"{same:>5}/{len(found)}{off:>10.2g}{state:>7,} cols  {recorded}"
    )


def make(name: str, layers: int | None, width: int) -> Any:
    config_class, model_class, sizes = FAMILIES[name]
    sizes = {**sizes, "vocab_size": _VOCABULARY, "max_position_embeddings": 4096, "pad_token_id": 0}
    count = layers or sizes["num_hidden_layers"]
    if "layer_types" in sizes:
        sizes["layer_types"] = sizes["layer_types"][:count] if count > 5 else ["linear_attention", "full_attention"]
    elif model_class.startswith(("Qwen", "Lfm2")):
        kind = "conv" if model_class.startswith("Lfm2") else "linear_attention"
        each = 4 if count >= 4 else 2
        sizes["layer_types"] = [kind if at % each != each - 1 else "full_attention" for at in range(count)]
    sizes |= {"num_hidden_layers": count, "intermediate_size": sizes["intermediate_size"] // width}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes)).to(torch.bfloat16)
    return model.eval()


def timed(engine: TransformersEngine, requests: list[Request]) -> tuple[dict[str, Any], float]:
    """Answer the requests, after a few to warm up; return the token ids, and tokens a second, prefill included."""
    list(engine.generate([replace(each, sampling=each.sampling.changed(max_tokens=4)) for each in requests[:3]]))
    started = time.monotonic()
    found = {each.request_id: each.token_ids for each in engine.generate(requests)}
    return found, sum(map(len, found.values())) / (time.monotonic() - started)


def generated(model: Any, prompt: list[int], tokens: int) -> float:
    """Return the tokens a second of transformers' own `generate` for one prompt."""
    ids = torch.tensor([prompt], device=model.device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    count = min(tokens, 48)
    model.generate(ids, max_new_tokens=4, **settings)
    started = time.monotonic()
    model.generate(ids, max_new_tokens=count, **settings)
    return count / (time.monotonic() - started)


def machine() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"


if __name__ == "__main__":
    main()
