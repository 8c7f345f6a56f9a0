"""The figure of a training. Drawn by matplotlib, which is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from thinktune.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]


def training_figure(lines: Lines, title: str = "") -> Figure:
    """Draw the lines of metrics.jsonl: loss and token accuracy (with running means), those held out, the scores of
    evaluations during training where there were some, learning rate and gradient norm.

    Of a reinforcement, whose loss says nothing, rewards take its place, with entropy and lengths below.
    """
    from matplotlib.figure import Figure

    steps = [line for line in lines if "loss" in line]
    scored = [line for line in lines if "eval_accuracy" in line]
    reinforced = [line for line in lines if "rl/reward" in line]
    right = [line for line in lines if "token_accuracy" in line]
    heights = [2, *[1] * bool(right), *[1] * bool(scored), *[1] * bool(reinforced), 1]
    figure = Figure(figsize=(8, 2 * sum(heights)), layout="constrained")
    if title:
        figure.suptitle(title)
    first, *rest, last = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    if reinforced:
        _draw_rewards(first, reinforced)
        _draw_policy(rest[-1], reinforced)
    else:
        _draw_loss(first, steps, [line for line in lines if "eval_loss" in line])
    if right:
        _draw_token_accuracy(rest.pop(0), right, [line for line in lines if "eval_token_accuracy" in line])
    if scored:
        _draw_scores(rest[0], scored)
    _draw_norm_and_rate(last, steps)
    return figure


def save(figure: Figure, image: Path) -> None:
    """Write a PNG, replacing an older one only when the new one is whole."""
    image.parent.mkdir(parents=True, exist_ok=True)
    with replacing(image) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_loss(axes: Any, steps: Lines, held_out: Lines) -> None:
    _draw_learning(axes, steps, held_out, "loss")
    axes.set_ylabel("loss (nats a trained token)")
    axes.legend()


def _draw_token_accuracy(axes: Any, steps: Lines, held_out: Lines) -> None:
    _draw_learning(axes, steps, held_out, "token_accuracy", scale=100)
    axes.set_ylabel("% of tokens right")


def _draw_learning(axes: Any, steps: Lines, held_out: Lines, name: str, scale: float = 1) -> None:
    at = [line["step"] for line in steps]
    values = [scale * line[name] for line in steps]
    means = running_mean(values)
    if means == values:  # a short training
        axes.plot(at, values, color="tab:blue", label="training")
    else:
        axes.plot(at, values, color="tab:blue", alpha=0.35, linewidth=1, label="training")
        axes.plot(at, means, color="tab:blue", label="training, mean of its neighbours")
    if held_out:
        places, theirs = [line["step"] for line in held_out], [scale * line[f"eval_{name}"] for line in held_out]
        axes.plot(places, theirs, "o-", color="tab:orange", label="held out")
    axes.grid(alpha=0.3)


def _draw_rewards(axes: Any, lines: Lines) -> None:
    at = [line["step"] for line in lines]
    shown = {"reward": "tab:blue", "accuracy": "tab:green", "format_rate": "tab:gray", "no_signal": "tab:red"}
    for name, color in shown.items():
        values = [line[f"rl/{name}"] for line in lines]
        axes.plot(at, values, color=color, alpha=0.25, linewidth=1)
        axes.plot(at, running_mean(values), color=color, label=name.replace("_", " "))
    axes.set_ylabel("mean of all completions drawn")
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_policy(axes: Any, lines: Lines) -> None:
    at = [line["step"] for line in lines]
    entropies = [line.get("rl/entropy", math.nan) for line in lines]
    axes.plot(at, entropies, color="tab:purple", label="entropy")
    known = [line for line in lines if "rl/divergence" in line]  # not in every step
    divergences = [line["rl/divergence"] for line in known]
    axes.plot([line["step"] for line in known], divergences, color="tab:brown", label="divergence")
    axes.set_ylabel("nats a token")
    axes.legend()
    axes.grid(alpha=0.3)
    lengths = axes.twinx()
    lengths.plot(at, [line["rl/tokens"] for line in lines], color="tab:gray", linestyle="--", linewidth=1)
    lengths.set_ylabel("tokens of a completion", color="tab:gray")


def _draw_scores(axes: Any, scored: Lines) -> None:
    at = [line["step"] for line in scored]
    axes.plot(at, [100 * line["eval_format_rate"] for line in scored], "o-", color="tab:gray", label="well-formed")
    axes.plot(at, [100 * line["eval_accuracy"] for line in scored], "o-", color="tab:blue", label="right")
    axes.set_ylim(-5, 105)
    axes.set_ylabel(f"% of {scored[-1]['eval_samples']}")
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_norm_and_rate(axes: Any, steps: Lines) -> None:
    at = [line["step"] for line in steps]
    axes.plot(at, [line.get("grad_norm", math.nan) for line in steps], color="tab:green", linewidth=1)
    axes.set_ylabel("gradient norm", color="tab:green")
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.3)
    rate = axes.twinx()
    rate.plot(
        at, [line.get("learning_rate", math.nan) for line in steps], color="tab:gray", linestyle="--", linewidth=1
    )
    rate.set_ylabel("learning rate", color="tab:gray")


def running_mean(values: Sequence[float]) -> list[float]:
    """Compute the mean of each value and its neighbours, a twentieth of the run in all, as many before as after: a
    mean of the past alone lies above a loss that falls.

    >>> running_mean([3.0, 2.0, 1.0])
    [3.0, 2.0, 1.0]
    """
    most = len(values) // 40
    reach = [min(most, at, len(values) - 1 - at) for at in range(len(values))]
    return [fmean(values[at - wide : at + wide + 1]) for at, wide in enumerate(reach)]
