"""Curves of runs over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from thinktune.studio.training_jobs import Run
from thinktune.studio.translations import label

CURVES = {
    "loss": ("training_loss", "loss"),
    "eval_loss": ("held_out_loss", "held-out"),
    "token_accuracy": ("token_accuracy", "tokens-right"),
    "eval_token_accuracy": ("held_out_token_accuracy", "held-out-tokens-right"),
    "eval_accuracy": ("right_rate", "right"),
    "rl/accuracy": ("drawn_right", "drawn-right"),
    "rl/reward": ("reward", "reward"),
}
"""Keys of metrics.jsonl: their text, and the end of their element's id."""
_POINTS = 400  # of one curve
_RUN_COLORS = ("#2d8a67", "#d9730d", "#3b82f6", "#a855f7", "#e5484d", "#0a98b8", "#b58a0b", "#e0529c")  # on both themes


def plot(text: str, name: str) -> gr.LinePlot:
    return gr.LinePlot(
        x="step", y="value", color="run", x_title=" ", y_title=" ", label=label(text), height=240, elem_id=name,
        min_width=260,
    )  # fmt: skip


def curve(runs: Sequence[Run], key: str) -> Any:
    import pandas

    scale = 100 if key.endswith("accuracy") else 1
    points = []
    for run in runs:
        lines = [line for line in run.metrics if key in line]
        every = max(1, len(lines) // _POINTS)
        points += [(line["step"], scale * line[key], run.name) for line in lines[::every]]
    frame = pandas.DataFrame(points, columns=["step", "value", "run"])
    # A single point makes no line: the table has its value.
    shown = key == "loss" or len(points) > len({name for *_, name in points})
    return gr.update(value=frame, visible=shown, color_map=colors(runs), colors_in_legend=[])


def colors(runs: Sequence[Run]) -> dict[str, str]:
    return {run.name: _RUN_COLORS[number % len(_RUN_COLORS)] for number, run in enumerate(runs)}
