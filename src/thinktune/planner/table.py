"""The table that `thinktune plan` prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from json import dumps

from rich.console import Console
from rich.table import Table

from thinktune.config import Config
from thinktune.planner.hardware import GIB
from thinktune.planner.plan import Plan, duration
from thinktune.planner.plan_config import plan_config

EFFICIENT = 0.95
"""Of several GPUs: below, the plan says what to change."""
_ENOUGH_PACKS = 4
"""A GPU and step: dealt by cost, packs of any lengths then keep all GPUs busy but for some 2%."""


def show(config: Config, *, gpu: str | None, fitted: bool, json: bool, gpus: int = 1) -> None:
    """Print the plan to stdout, as a table or as JSON."""
    plan = plan_config(config, gpu=gpu, fitted=fitted, gpus=gpus)
    overrides = plan.overrides(config) if fitted else []
    if json:
        print(dumps({**asdict(plan), "overrides": overrides}, indent=2, ensure_ascii=False))
        return
    console = Console()
    console.print(_table(plan))
    for line in _remarks(plan, overrides, fitted):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(plan: Plan) -> Table:
    table = Table("memory", "GiB", "of", title=f"{plan.model} on {_hardware(plan)}", title_justify="left")
    table.columns[1].justify = "right"
    meanings = {
        "weights": "all trained: float32, and the copy that products take"
        if plan.whole
        else f"the frozen base{'' if plan.quantize == 'none' else ', ' + plan.quantize}{_spread(plan)}",
        "adapter": "float32 weights and gradients, and the copy that products take",
        "optimizer": "its state",
        "runtime": "libraries",
        "batch": f"token ids and targets of the longest batch, {plan.longest:,} tokens",
        "activations": "kept for the backward pass",
        "logits": "the loss, a chunk at a time",
        "workspace": "of one layer's backward pass; never beside the logits",
    }
    for name, meaning in meanings.items():
        shown = ("gradients", "float32") if plan.whole and name == "adapter" else (name, meaning)
        table.add_row(shown[0], f"{plan.parts[name] / GIB:.2f}", shown[1])
    table.add_section()
    table.add_row("peak", f"{plan.parts['peak'] / GIB:.2f}", f"{plan.limit / GIB:.2f} that may be used")
    return table


def _spread(plan: Plan) -> str:
    return f": 1/{plan.gpus} of its layers, and two whole ones" if plan.kept < 1 else ""


def _hardware(plan: Plan) -> str:
    return plan.hardware if plan.gpus == 1 else f"each of {plan.gpus} GPUs: {plan.hardware}"


def _on_several(plan: Plan) -> Iterator[str]:
    """Say how well several GPUs are used, and what to change where that is not well."""
    apart, adding = plan.waits
    yield (
        f"{plan.gpus} GPUs: {plan.efficiency:.1%} of {plan.gpus} times one; a step waits {1e3 * apart:.0f} ms for the "
        f"slowest GPU, and {1e3 * adding:.1f} ms for gradients"
    )
    if plan.kept < 1:
        late = f"{1e3 * plan.late:.0f} ms of a step wait for them" if plan.late else "behind the computing of others"
        yield f"the base is spread over {plan.gpus} GPUs, and layers come while they are needed: {late}"
    if plan.efficiency >= EFFICIENT or plan.tokens_per_second is None:
        return
    own, seconds = plan.packs * plan.accumulation, plan.step_tokens / plan.tokens_per_second
    if own < _ENOUGH_PACKS and apart > (1 - EFFICIENT) / 2 * seconds:
        yield (
            f"{own} pack{'s' * (own > 1)} a GPU and step: with {_ENOUGH_PACKS} or more they would be busier. Raise "
            "train.accumulation; or halve train.pack_length (not below data.max_length), with twice the packs a step"
        )
    else:
        few = f"{plan.step_tokens / plan.gpus:,.0f} tokens a GPU and step are few"
        yield f"{few}: raise train.accumulation, or use fewer GPUs"


def _remarks(plan: Plan, overrides: list[str], fitted: bool) -> Iterator[str]:
    yield "fits" if plan.fits else f"does not fit into {plan.limit / GIB:.1f} GiB"
    yield plan.describe()
    if plan.whole:
        yield "full fine-tuning (lora: null): weights, gradients and moments in float32, layers of transformers"
    elif not plan.fused:
        yield "layers without our GPU kernels" + (f": {plan.why_not_fused}" if plan.why_not_fused else "")
    if plan.unknown:
        yield plan.not_known()
    yield f"data: {plan.data}; {plan.step_tokens:,.0f} tokens an optimizer step"
    yield plan.rate.line()
    if plan.tokens_per_second is None:
        yield "speed: not told by a size; name a GPU, such as --gpu rtx4090"
    else:
        length = f"{plan.steps:,} steps, {duration(plan.hours)}" if plan.hours and plan.steps else "unknown length"
        yield f"speed: about {plan.tokens_per_second:,.0f} tokens/s; {length}"
        if plan.states:
            yield (
                "layers with a state run in plain PyTorch: their speed is estimated from the operations that a "
                "trace of them counts; packages with kernels for them are faster"
            )
    if plan.gpus > 1 and plan.tokens_per_second is not None:
        yield from _on_several(plan)
    if fitted:
        yield "use: " + (" ".join(overrides) or "the config as it is")
    elif not plan.fits:
        yield "--fit looks for settings that do"
