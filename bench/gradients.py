"""How right the gradients are: every LoRA gradient against a float32 PEFT reference on the same weights and batches.

    python bench/gradients.py                                      # Llama-, Qwen2-, Qwen3-style models, and SmolLM2
    python bench/gradients.py --models qwen2 --variants plain,ours,ours-fp8
    python bench/gradients.py --rank 128 --dropout 0.1             # PEFT drops what our kernels drop
    python bench/gradients.py --width 64 --length 64               # on a CPU

The adapter's B matrices are not at zero, so that every gradient is there. Plain is transformers and PEFT in bfloat16
with nothing of ours, `plain-int8` and `plain-nf4` the same on bitsandbytes' bases; `ours*` is what `thinktune train`
runs. The error is of all batches together: |g - g32| / |g32|, over all parameters as one vector, and for each one.
Its ratio is to the plain error of the same base (to plain bfloat16's for fp8, which plain PEFT does not have). Random
models have about four layers of width 1024; their weights are drawn so that the states neither die nor grow.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from thinktune.config import Config, parse_config
from thinktune.data import Tokens
from thinktune.data.packing import packs_of
from thinktune.files import replacing
from thinktune.models import load_model, resolve
from thinktune.planner.pack_lengths import measure_packs
from thinktune.training.adapter import adapter_to_train
from thinktune.training.collator import PackedCollator
from thinktune.training.model_with_loss import ModelWithLoss
from thinktune.training.plan import resolve_plan
from thinktune.training.prepare_model import set_up
from workload import TARGETS, as_tokens, byte_tokenizer

Gradients = dict[str, torch.Tensor]
STYLES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
VARIANTS = ("plain", "ours", "ours-fp8", "plain-int8", "ours-int8", "plain-nf4", "ours-nf4")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--models", default="llama,qwen2,qwen3,builtin:smollm2", help="styles, or model references")
    cli.add_argument("--variants", default=",".join(VARIANTS))
    cli.add_argument("--batches", type=int, default=8)
    cli.add_argument("--rows", type=int, default=4, help="documents a batch, of unequal lengths")
    cli.add_argument("--length", type=int, default=512, help="tokens of the longest")
    cli.add_argument("--width", type=int, default=1024, help="of the random models")
    cli.add_argument("--layers", type=int, default=4)
    cli.add_argument("--rank", type=int, default=8)
    cli.add_argument("--dropout", type=float, default=0.0, help="needs kernels: a GPU, or TRITON_INTERPRET=1")
    args = cli.parse_args()
    head = f"{'':30}{'error':>9}{'ratio':>7}{'median':>8}{'worst':>7}{'cosine: least':>15}{'median':>8}{'loss off':>10}"
    print(f"{head}\n{'':39}{'of all':>7}{'of parameters':>15}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        for name in args.models.split(","):
            folder = make_model(name, Path(place), args) if name in STYLES else Path(name)
            compare(name, str(folder), Path(place) / f"adapter-{name.replace(':', '-')}", args)


def make_model(style: str, place: Path, args: argparse.Namespace) -> Path:
    """A random model of a style, its weights rounded to bfloat16 so that every variant starts from the same."""
    torch.manual_seed(0)
    heads = max(2, args.width // 64)
    config = STYLES[style](
        hidden_size=args.width, intermediate_size=args.width * 11 // 4 // 16 * 16, num_hidden_layers=args.layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 4), head_dim=max(32, args.width // heads),
        vocab_size=4096, max_position_embeddings=8192, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                scale = 1.0 if "embed" in name else parameter.shape[1] ** -0.5
                parameter.normal_(0, scale)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.uniform_(0.7, 1.3)
    folder = place / style
    with replacing(folder) as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary)
        byte_tokenizer().save_pretrained(temporary)
    return folder


def make_adapter(reference: str, folder: Path, rank: int, dropout: float) -> None:
    """An adapter with both matrices random, in PEFT's format."""
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=dropout, target_modules=list(TARGETS)
    )
    model = get_peft_model(load_base(reference, torch.float32), lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    model.save_pretrained(folder)


def load_base(reference: str, dtype: torch.dtype, base: str = "none") -> Any:
    from thinktune.config import Load
    from thinktune.models.loading import _bitsandbytes

    folder = resolve(reference, Load()).folder
    arguments: dict[str, Any] = {"device_map": {"": 0 if DEVICE == "cuda" else "cpu"}}
    if base != "none":
        arguments["quantization_config"] = _bitsandbytes(base)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **arguments)


def make_batches(vocabulary: int, args: argparse.Namespace) -> list[list[Tokens]]:
    draw = torch.Generator().manual_seed(2)
    lengths = [max(8, args.length * (row + 1) // args.rows) for row in range(args.rows)]
    return [
        as_tokens([torch.randint(3, vocabulary, (length,), generator=draw).tolist() for length in lengths])
        for _ in range(args.batches)
    ]


def compare(name: str, reference: str, adapter: Path, args: argparse.Namespace) -> None:
    make_adapter(reference, adapter, args.rank, args.dropout)
    vocabulary = load_base(reference, torch.float32).config.vocab_size
    batches = make_batches(vocabulary, args)
    torch.backends.cuda.matmul.allow_tf32 = False
    exact, exact_losses = plain(reference, adapter, batches, "none", torch.float32)
    errors: dict[str, dict[str, float]] = {}
    for variant in args.variants.split(","):
        who, _, base = variant.partition("-")
        run = plain if who == "plain" else ours
        try:
            found, losses = run(reference, adapter, batches, base or "none", torch.bfloat16)
        except Exception as error:  # noqa: BLE001 - a variant that cannot run is a line of the table
            print(
                f"{name} {variant:20}  {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}", flush=True
            )
            continue
        errors[variant] = each = error_by_parameter(found, exact)
        against = errors.get("plain" if base in ("", "fp8") else f"plain-{base}")
        off = max(abs(a / b - 1) for a, b in zip(losses, exact_losses, strict=True))
        print(row(f"{name.removeprefix('builtin:')} {variant}", found, exact, each, against, off), flush=True)
        free()


def plain(
    reference: str, adapter: Path, batches: list[list[Tokens]], base: str, dtype: torch.dtype
) -> tuple[list[Gradients], list[float]]:
    """Gradients of every batch by transformers and PEFT alone, a document at a time, nothing padded."""
    model = PeftModel.from_pretrained(load_base(reference, dtype, base), adapter, is_trainable=True)
    model.train()
    masks = draw_our_masks(model)
    found, losses = [], []
    for batch in batches:
        total, loss = sum(document.trained for document in batch), 0.0
        keys = PackedCollator(batch)([{"documents": list(range(len(batch)))}])["token_keys"].to(DEVICE)
        for document, own in zip(batch, keys.split([len(document) for document in batch]), strict=True):
            for mask in masks:
                mask.tokens = own
            ids = torch.tensor([document.input_ids], device=DEVICE)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            part = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / total
            part.backward()
            loss += float(part)
        found.append(take_gradients(model))
        losses.append(loss)
    return found, losses


class OurMask(torch.nn.Module):
    """Drops what our kernels drop of the projection at a place, of the tokens it is told."""

    def __init__(self, place: int, probability: float) -> None:
        super().__init__()
        self.place, self.probability, self.tokens = place, probability, torch.empty(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from thinktune.training.fused.kernels.dropout import Dropout, dropped, threshold_of

        seed = torch.zeros(1, dtype=torch.int32, device=x.device)
        of = Dropout(seed, self.tokens, self.place, threshold_of(self.probability))
        return x * dropped(torch.ones_like(x[0], dtype=torch.float32), of).to(x.dtype)


def draw_our_masks(model: PeftModel) -> list[OurMask]:
    """Let PEFT's dropout draw our masks, where there is any."""
    masks = []
    for number, layer in enumerate(model.get_base_model().model.layers):
        for place, name in enumerate(TARGETS):
            module = getattr(layer.mlp if hasattr(layer.mlp, name) else layer.self_attn, name)
            (dropout,) = module.lora_dropout.values()
            if isinstance(dropout, torch.nn.Dropout):
                masks.append(OurMask(8 * number + place, dropout.p))
                module.lora_dropout[next(iter(module.lora_dropout))] = masks[-1]
    return masks


def ours(
    reference: str, adapter: Path, batches: list[list[Tokens]], base: str, dtype: torch.dtype
) -> tuple[list[Gradients], list[float]]:
    """The same as `thinktune train` computes them: the documents of a batch packed."""
    config = config_for(reference, adapter, base, dtype, batches)
    loaded = load_model(reference, load=config.load, quantize=config.quantize)
    examples = [document for batch in batches for document in batch]
    packs = measure_packs(examples, packs_of([len(example) for example in examples], config))
    found, losses = [], []
    with ExitStack() as stack:
        model = stack.enter_context(adapter_to_train(loaded, config))
        with_loss = ModelWithLoss(model)
        plan = resolve_plan(model, config, loaded, packs)
        stack.enter_context(set_up(model, loaded, plan))
        model.train()
        for batch in batches:
            inputs = PackedCollator(batch)([{"documents": list(range(len(batch)))}])
            inputs = {k: v.to(loaded.device) if torch.is_tensor(v) else v for k, v in inputs.items()}
            loss = with_loss(**inputs) / inputs["targets"].numel()
            loss.backward()
            found.append(take_gradients(model))
            losses.append(float(loss))
    return found, losses


def config_for(reference: str, adapter: Path, base: str, dtype: torch.dtype, batches: list[list[Tokens]]) -> Config:
    return parse_config(
        {
            "model": reference,
            "quantize": base,
            "load": {"dtype": str(dtype).removeprefix("torch."), "device": DEVICE},
            "lora": {"init": str(adapter), "r": 8},
            "data": {"max_length": max(16, max(len(document) for batch in batches for document in batch))},
            "train": {"packing": False, "batch_size": len(batches[0])},
        }
    )


def take_gradients(model: Any) -> Gradients:
    """The gradients by name, in float64 in main memory; the model has none then."""
    taken = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            taken[name] = parameter.grad.detach().double().cpu()
            parameter.grad = None
    return taken


def _stacked(batches: list[Gradients]) -> Iterator[tuple[str, torch.Tensor]]:
    """By name, the gradients of all batches as one vector."""
    for name in batches[0]:
        yield name, torch.cat([batch[name].flatten() for batch in batches])


def error_by_parameter(found: list[Gradients], exact: list[Gradients]) -> dict[str, float]:
    """|g - g32| / |g32| for each parameter, and for all of them as one vector under the empty name."""
    reference, errors = dict(_stacked(exact)), {}
    difference = norm = 0.0
    for name, gradient in _stacked(found):
        off, size = float((gradient - reference[name]).norm()), float(reference[name].norm())
        errors[name] = off / size
        difference, norm = difference + off**2, norm + size**2
    return {**errors, "": (difference / norm) ** 0.5}


def row(
    name: str,
    found: list[Gradients],
    exact: list[Gradients],
    errors: dict[str, float],
    against: dict[str, float] | None,
    off: float,
) -> str:
    reference = dict(_stacked(exact))
    cosines = [
        float(torch.nn.functional.cosine_similarity(gradient, reference[parameter], dim=0))
        for parameter, gradient in _stacked(found)
    ]
    ratios = [errors[parameter] / against[parameter] for parameter in reference] if against else []
    compared = f"{errors[''] / against['']:>7.2f}{median(ratios):>8.2f}{max(ratios):>7.2f}" if against else f"{'-':>22}"
    return f"{name:30}{errors['']:>9.4f}{compared}{min(cosines):>15.5f}{median(cosines):>8.5f}{off:>10.3%}"


def free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
