"""Each family of models whose layers can be fused: how right the gradients are, and what fusing brings.

    python bench/families.py                                       # all families, at their published widths
    python bench/families.py --families phi4,qwen3-30b-a3b --layers 2
    TRITON_INTERPRET=1 python bench/families.py --tiny             # on a CPU: does it run?

Random weights of the published shapes, a few layers deep. `error` is |g - g32| / |g32| over all LoRA gradients of a
packed batch as one vector, against float32 PEFT on the same weights, a document at a time with eager attention: of
layers as `thinktune train` runs them in bfloat16 with `train.fused: false` (`plain`), and of fused ones; both pack.
Times are of the decoder layers alone, forward and backward, nothing recomputed: tokens/s through all layers of the
published depth. A family that is not fused says why.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from thinktune.planner.adapter_targets import auto_targets
from thinktune.planner.recompute_policy import RecomputePolicy
from thinktune.training.collator import PackedCollator
from thinktune.training.fused.fuse_model import fuse_layers
from thinktune.training.fused.lora_linear import fuse_lora
from thinktune.training.fused.packed_attention import packed_documents
from thinktune.training.fused.support import why_not_fused
from workload import as_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32  # Triton's interpreter has no bfloat16
YARN = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
LONGROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}


def shape(kind: str, hidden: int, f: int, heads: int, kv: int, dim: int, layers: int, **more: Any) -> Any:
    sizes = {
        "hidden_size": hidden, "intermediate_size": f, "num_attention_heads": heads, "num_key_value_heads": kv,
        "head_dim": dim, "num_hidden_layers": layers, "vocab_size": 32000, "max_position_embeddings": 32768,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    return kind, sizes | more


FAMILIES = {
    "llama-3.1-8b": shape("LlamaConfig", 4096, 14336, 32, 8, 128, 32),
    "qwen3-4b": shape("Qwen3Config", 2560, 9728, 32, 8, 128, 36),
    "smollm3-3b": shape("SmolLM3Config", 2048, 11008, 16, 4, 128, 36, no_rope_layers=[1, 0] * 18),
    "ministral-8b": shape("MinistralConfig", 4096, 12288, 32, 8, 128, 36, layer_types=["full_attention"] * 36),
    "ministral3-8b": shape(
        "Ministral3Config", 4096, 14336, 32, 8, 128, 34, rope_parameters=YARN, max_position_embeddings=262144
    ),
    "seed-oss-36b": shape(
        "SeedOssConfig", 5120, 27648, 80, 8, 128, 64, attention_out_bias=False,
        attention_dropout=0.0, residual_dropout=0.0,
    ),
    "granite-3.3-8b": shape(
        "GraniteConfig", 4096, 12800, 32, 8, 128, 40, residual_multiplier=0.22, attention_multiplier=0.0078125
    ),
    "granite-4-micro": shape(
        "GraniteMoeHybridConfig", 2560, 8192, 40, 8, 64, 40, residual_multiplier=0.22, attention_multiplier=0.015625,
        num_local_experts=0, shared_intermediate_size=8192, layer_types=["attention"] * 40,
        position_embedding_type="rope",
    ),
    "phi-4": shape("Phi3Config", 5120, 17920, 40, 10, 128, 40, sliding_window=None),
    "phi-4-mini": shape("Phi3Config", 3072, 8192, 24, 8, 128, 32, rope_parameters=LONGROPE, sliding_window=None),
    "olmo-3-7b": shape("Olmo3Config", 4096, 11008, 32, 32, 128, 32, layer_types=["full_attention"] * 32),
    "gemma-3-4b": shape(
        "Gemma3TextConfig", 2560, 10240, 8, 4, 256, 34, layer_types=["full_attention"] * 34, query_pre_attn_scalar=256
    ),
    "qwen3.5-4b": shape(
        "Qwen3_5TextConfig", 2560, 9216, 16, 4, 256, 32, linear_num_value_heads=32, linear_num_key_heads=16,
        layer_types=["linear_attention", "full_attention"] * 16,
    ),
    "qwen3-30b-a3b": shape(
        "Qwen3MoeConfig", 2048, 6144, 32, 4, 128, 48, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768
    ),
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": 160, "shared_intermediate_size": 96, "num_experts": 4, "moe_intermediate_size": 48,
    "num_experts_per_tok": 2, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
}  # fmt: skip


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--families", default=",".join(FAMILIES))
    cli.add_argument("--layers", type=int, default=2, help="of the models that run; times are for the published depth")
    cli.add_argument("--rows", type=int, default=12, help="documents of 1,500 tokens whose step is timed")
    cli.add_argument("--rank", type=int, default=16)
    cli.add_argument("--tiny", action="store_true")
    args = cli.parse_args()
    head = f"{'':18}{'error: plain':>13}{'fused':>8}{'ratio':>7}{'tokens/s: plain':>17}{'fused':>9}{'times':>7}"
    print(f"{head}{'GiB: plain':>12}{'fused':>7}", flush=True)
    for name in args.families.split(","):
        started = time.perf_counter()
        try:
            told = measure(name, args)
        except Exception as error:  # noqa: BLE001 - a family that cannot run is a line of the table
            told = f"  {type(error).__name__}: {str(error).strip().splitlines()[0][:110]}"
        print(f"{name:18}{told}   ({time.perf_counter() - started:.0f} s)", flush=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure(name: str, args: argparse.Namespace) -> str:
    kind, published = FAMILIES[name]
    values = dict(published)
    depth = values["num_hidden_layers"]
    values |= {"num_hidden_layers": args.layers} | (
        {key: TINY[key] for key in TINY if key in values} if args.tiny else {}
    )
    if "layer_types" in values:
        values["layer_types"] = values["layer_types"][: args.layers]
    model = make(getattr(transformers, kind)(**values), args.rank)
    if (reason := why_not_fused(model)) is not None:
        return f"  not fused: {reason}"
    lengths = [9, 21] if args.tiny else [500, 1000, 700]
    if "linear_attention" in values.get("layer_types", ()):  # a state would go on into the next document
        lengths = [sum(lengths)]
    exact = gradients(model.float(), lengths, alone=True)
    model.get_base_model().to(DTYPE)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # adapters stay float32, as in a training
    errors, speeds, peaks = [], [], []
    fuse_lora(model)
    for fused in (False, True):
        with ExitStack() as stack:
            stack.enter_context(packed_documents(model.get_base_model()))
            if fused:
                stack.callback(fuse_layers(model, RecomputePolicy(("none",))).undo)
            found = gradients(model, lengths, alone=False)
            errors.append(float((found - exact).norm() / exact.norm()))
            seconds, peak = timed(model, [8, 8] if args.tiny else [1500] * args.rows)
            speeds.append(sum([8, 8] if args.tiny else [1500] * args.rows) / (seconds * depth / args.layers))
            peaks.append(peak)
    return (
        f"{errors[0]:>13.4f}{errors[1]:>8.4f}{errors[1] / errors[0]:>7.2f}{speeds[0]:>17,.0f}{speeds[1]:>9,.0f}"
        f"{speeds[1] / speeds[0]:>7.2f}{peaks[0]:>12.1f}{peaks[1]:>7.1f}"
    )


def make(config: Any, rank: int) -> PeftModel:
    """A random model, its weights rounded to bfloat16, and an adapter on all linear layers with neither matrix zero."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        for name, parameter in base.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.0 if "embed" in name else parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                torch.nn.init.uniform_(parameter, 0.7, 1.3)
        targets = list(auto_targets(base))
        lora = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=targets)
        model = get_peft_model(base.requires_grad_(False), lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def batch(lengths: list[int], vocabulary: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    tokens = as_tokens([torch.randint(3, vocabulary, (length,), generator=draw).tolist() for length in lengths])
    inputs = PackedCollator(tokens)([{"documents": list(range(len(tokens)))}])
    unused = ("positions", "targets", "labels", "weights")
    return {k: v.to(DEVICE) if torch.is_tensor(v) else v for k, v in inputs.items() if k not in unused}


def gradients(model: PeftModel, lengths: list[int], *, alone: bool) -> torch.Tensor:
    """The gradients of a random function of the last hidden states, as one vector in float64."""
    base, inputs = model.get_base_model(), batch(lengths, model.config.vocab_size)
    weights = torch.randn(sum(lengths), model.config.hidden_size, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    if alone:
        before = base.config._attn_implementation
        base.set_attn_implementation("eager")
        for ids, part in zip(inputs["input_ids"][0].split(lengths), weights.split(lengths), strict=True):
            (base.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0] * part).sum().backward()
        base.set_attn_implementation(before)
    else:
        (base.base_model(**inputs, use_cache=False).last_hidden_state[0].float() * weights).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.cat([parameter.grad.double().flatten() for parameter in trained])
    model.zero_grad()
    return found


def timed(model: PeftModel, lengths: list[int]) -> tuple[float, float]:
    """Seconds of a step through the decoder, the median of five, and the peak in GiB."""
    base, inputs = model.get_base_model(), batch(lengths, model.config.vocab_size)
    base.enable_input_require_grads()  # as in a deeper model: the first layer's input has a gradient too

    def step() -> None:
        base.base_model(**inputs, use_cache=False).last_hidden_state.sum().backward()
        model.zero_grad()

    try:
        return median_seconds(step), torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
    finally:
        base.disable_input_require_grads()


def median_seconds(step: Callable[[], None]) -> float:
    seconds = []
    for _ in range(8 if DEVICE == "cuda" else 2):
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[3:] or seconds)[len(seconds[3:] or seconds) // 2]


if __name__ == "__main__":
    main()
