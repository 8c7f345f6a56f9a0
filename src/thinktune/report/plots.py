"""The figure of a comparison, and figures as elements of a page. Drawn by matplotlib, imported when one is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape, unescape
from typing import TYPE_CHECKING, Any

from thinktune.report.translations import in_chinese
from thinktune.training.plots import Lines, running_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def comparison_figure(
    names: Sequence[str], summaries: Sequence[Mapping[str, Any] | None], runs: Sequence[Lines]
) -> Figure:
    """Draw scores with their intervals, a group of bars a model, beside the running mean of each run's loss.

    Args:
        summaries: by name; None if a model was not scored.
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
            loss.plot([line["step"] for line in steps], running_mean([line["loss"] for line in steps]), label=name)
    loss.set_xlabel("optimizer step")
    loss.set_ylabel("loss, running mean")
    loss.grid(alpha=0.3)
    if len(loss.lines) > 1:  # of a single run, the bars have the name
        loss.legend(fontsize="small")
    return figure


_TEXT = re.compile(r"<text ([^>]*)>([^<]*)</text>")


def inline_svg(figure: Figure, names: Collection[str] = ()) -> str:
    """Return the figure as an element of a page, with each of its own texts in English and Chinese: the page shows one.

    Texts stay texts, which the browser sets in fonts that it has; paper and ink are the page's, by day and by night.
    Everything is escaped.

    Args:
        names: of runs; they stay as they are.
    """
    import matplotlib

    for axes in figure.axes:
        axes.patch.set_visible(False)
        if legend := axes.get_legend():
            legend.set_frame_on(False)
    figure.patch.set_visible(False)
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "thinktune"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"(font-size: [\d.]+px); font-family: [^;]*;", r"\1;", svg)
    return _TEXT.sub(lambda found: _in_both(found, names), re.sub(r"\n\s*", "\n", svg))


def _in_both(found: re.Match[str], names: Collection[str]) -> str:
    text = unescape(found[2])
    chinese = None if text in names else in_chinese(text)
    if chinese is None:
        return found[0]
    return (
        f'<text class="en" {found[1]}>{found[2]}</text><text class="zh" lang="zh" {found[1]}>{escape(chinese)}</text>'
    )
