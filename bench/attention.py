"""What attention costs that asks for more than causal: windows, sinks, soft caps, wide heads; and whether it is right.

    python bench/attention.py                           # 8 documents of 1,500 tokens, then 2 of 8,000, bfloat16
    python bench/attention.py --packs 3x40 --device cpu # at sizes of a test

One layer's attention over a pack, forward and backward: milliseconds (median of five), peak memory beyond its inputs,
and the relative error of output and of gradients against the same in float32.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from thinktune.training.fused.packed_attention import packed_attention

LAYERS: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "Llama 3.1 8B": ((32, 8, 128), {}),
    "Gemma 3 4B, window 1,024": ((8, 4, 256), {"sliding_window": 1024}),
    "OLMo 3 7B, window 4,096": ((32, 32, 128), {"sliding_window": 4096}),
    "gpt-oss 20B, sinks": ((64, 8, 64), {"s_aux": 1.0}),
    "gpt-oss 20B, sinks, window 128": ((64, 8, 64), {"s_aux": 1.0, "sliding_window": 128}),
    "Gemma 2 9B, soft cap": ((16, 8, 256), {"softcap": 50.0}),
    "Gemma 2 9B, soft cap, window 4,096": ((16, 8, 256), {"softcap": 50.0, "sliding_window": 4096}),
    "Gemma 4, heads of 512": ((8, 2, 512), {}),
}
"""Query heads, key heads, head size; arguments of `packed_attention`."""


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--packs", nargs="*", default=["8x1500", "2x8000"], metavar="DOCUMENTSxTOKENS")
    cli.add_argument("--device", default="cuda")
    args = cli.parse_args()
    print(f"torch {torch.__version__}, {args.device}")
    for pack in args.packs:
        documents, length = map(int, pack.split("x"))
        print(f"\n{documents} x {length:,}\n{'layer':38}{'ms':>8}{'GiB':>8}{'out':>9}{'dq':>9}{'dk':>9}{'dv':>9}")
        for name, (heads, asked) in LAYERS.items():
            try:
                print(f"{name:38}{measure(heads, asked, [length] * documents, args.device)}", flush=True)
            except Exception as error:  # noqa: BLE001 - one layer must not keep the others from being measured
                print(f"{name:38} {type(error).__name__}: {str(error).splitlines()[0][:90]}", flush=True)


def measure(heads: tuple[int, int, int], asked: dict[str, Any], lengths: list[int], device: str) -> str:
    exact = run(heads, asked, lengths, device, torch.float32)
    found = run(heads, asked, lengths, device, torch.bfloat16)
    errors = [float((one.float() - two).norm() / two.norm()) for one, two in zip(found, exact, strict=True)]
    del exact, found
    times = []
    on_gpu = device == "cuda"
    for _ in range(5):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        run(heads, asked, lengths, device, torch.bfloat16)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if on_gpu else 0.0
    return f"{sorted(times)[2]:8.2f}{peak:8.2f}" + "".join(f"{error:9.4f}" for error in errors)


def run(
    heads: tuple[int, int, int], asked: dict[str, Any], lengths: list[int], device: str, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Return output and gradients of queries, keys and values."""
    query_heads, key_heads, size = heads
    generator = torch.Generator(device=device).manual_seed(0)
    inputs = [
        torch.randn(1, sum(lengths), count, size, generator=generator, device=device, dtype=torch.bfloat16)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for count in (query_heads, key_heads, key_heads)
    ]
    if "s_aux" in asked:
        asked = {**asked, "s_aux": torch.linspace(-2, 4, query_heads, device=device).to(dtype)}
    out, _ = packed_attention(
        torch.nn.Identity(), *inputs, None, cu_seq_lens_q=torch.tensor([0, *lengths], device=device).cumsum(0).int(),
        max_length_q=max(lengths), document_lengths=lengths, **asked,
    )  # fmt: skip
    grad = torch.randn(out.shape, generator=generator, device=device, dtype=torch.bfloat16).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


if __name__ == "__main__":
    main()
