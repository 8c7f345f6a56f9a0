"""The figures: how a training went, and how runs compare. Drawn by matplotlib, which is imported when one is drawn."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = Sequence[Mapping[str, Any]]


def training_figure(lines: Lines) -> Figure:
    """Draw the lines of metrics.jsonl: loss (with a running mean), held-out loss, the scores of evaluations during
    training where there were some, learning rate and gradient norm."""
    from matplotlib.figure import Figure

    steps = [line for line in lines if "loss" in line]
    scored = [line for line in lines if "eval_accuracy" in line]
    heights = (2, 1, 1) if scored else (2, 1)
    figure = Figure(figsize=(8, 2 * sum(heights)), layout="constrained")
    loss, *rest = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_loss(loss, steps, [line for line in lines if "eval_loss" in line])
    if scored:
        _draw_scores(rest[0], scored)
    _draw_norm_and_rate(rest[-1], steps)
    return figure


def comparison_figure(
    names: Sequence[str], summaries: Sequence[Mapping[str, Any] | None], runs: Sequence[Lines]
) -> Figure:
    """Scores with their intervals, a group of bars a model, beside the running mean of each run's loss.

    Args:
        summaries: by name; None where a model was not scored.
        runs: the lines of metrics.jsonl by name; empty for a model that was not trained.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, max(3.2, 0.55 * len(names) + 1.4)), layout="constrained")
    scores, loss = figure.subplots(1, 2)
    kinds = (("format_rate", "well-formed", "tab:gray"), ("accuracy", "right", "tab:blue"))
    for offset, (field, label, color) in zip((-0.17, 0.17), kinds, strict=True):
        places = [at for at, summary in enumerate(summaries) if summary is not None and field in summary]
        shares = [100 * summaries[at][field] for at in places]  # type: ignore[index]
        intervals = [summaries[at][f"{field}_interval"] for at in places]  # type: ignore[index]
        errors = [
            [max(0.0, share - 100 * low) for share, (low, _) in zip(shares, intervals, strict=True)],
            [max(0.0, 100 * high - share) for share, (_, high) in zip(shares, intervals, strict=True)],
        ]
        where = [at + offset for at in places]
        scores.barh(where, shares, height=0.32, color=color, alpha=0.75, label=label, xerr=errors, capsize=2)
    unscored = [summary is None for summary in summaries]
    labels = [f"{name}\n(not scored)" if left_out else name for name, left_out in zip(names, unscored, strict=True)]
    scores.set_yticks(range(len(names)), labels)
    scores.set_ylim(-0.5, len(names) - 0.5)  # also where the last has no bars
    scores.invert_yaxis()
    scores.set_xlim(0, 100)
    scores.set_xlabel("% of the problems, with 95% intervals")
    scores.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
    scores.grid(axis="x", alpha=0.3)
    for name, lines in zip(names, runs, strict=True):
        if steps := [line for line in lines if "loss" in line]:
            loss.plot([line["step"] for line in steps], _running_mean([line["loss"] for line in steps]), label=name)
    loss.set_xlabel("optimizer step")
    loss.set_ylabel("loss, running mean")
    loss.grid(alpha=0.3)
    if loss.lines:
        loss.legend(fontsize="small")
    return figure


def save(figure: Figure, image: Path) -> None:
    """Write a PNG, replacing an older one only when the new one is whole."""
    image.parent.mkdir(parents=True, exist_ok=True)
    with replacing(image) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def data_url(figure: Figure) -> str:
    """The figure as SVG in a data: URL, so that a page holds it without its names getting into the page."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _draw_loss(axes: Any, steps: Lines, held_out: Lines) -> None:
    at = [line["step"] for line in steps]
    values = [line["loss"] for line in steps]
    axes.plot(at, values, color="tab:blue", alpha=0.35, linewidth=1, label="training, each line")
    axes.plot(at, _running_mean(values), color="tab:blue", label="training, running mean")
    if held_out:
        places, losses = [line["step"] for line in held_out], [line["eval_loss"] for line in held_out]
        axes.plot(places, losses, "o-", color="tab:orange", label="held out")
    axes.set_ylabel("loss (nats a trained token)")
    axes.legend()
    axes.grid(alpha=0.3)


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


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential, over about a twentieth of the run, not biased towards the first value."""
    decay = 1 - 1 / max(1.0, len(values) / 20)
    means, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        means.append(mean / weight)
    return means
