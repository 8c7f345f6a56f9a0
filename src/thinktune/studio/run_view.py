"""A run as HTML: what it is, how far it has come, its scores beside its base, what changed, its data and its files.

All text is escaped; nothing of a run becomes an element of the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune import tags
from thinktune.evaluation.problems import place_of
from thinktune.report.candidates import read_scores, read_settings, read_summary
from thinktune.report.rollout_samples import rollout_samples
from thinktune.run_folder import RunFolder
from thinktune.studio.progress import Progress
from thinktune.studio.training_jobs import Run
from thinktune.studio.translations import Words

if TYPE_CHECKING:
    from thinktune.planner.plan import Plan

_LONG = 26  # characters of a value that takes a line of its own
_CHANGED = 40  # samples that are shown
_LONGEST = 3000  # characters of a sample
_SETTINGS = (
    "method", "model", "data.source", "data.sample", "data.max_length", "lora.r", "lora.alpha", "lora.targets",
    "train.learning_rate", "train.epochs", "train.max_steps", "train.batch_size", "quantize", "seed",
)  # fmt: skip
_KINDS = {"failed": "bad", "done": "good", "trained": "good", "swept": "good", "stopped": "warn"}


def duration(seconds: float, words: Words) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return words("hours", hours=hours, minutes=minutes)
    return words("minutes", minutes=minutes, seconds=rest) if minutes else words("seconds", seconds=rest)


def works(progress: Progress) -> bool:
    """Return whether a run is being worked on."""
    return progress.phase not in _KINDS


def head(run: Run, progress: Progress, words: Words) -> str:
    """Render name, phase, bar, time left, and the error that ended it."""
    parts = [words(f"phase_{progress.phase}")]
    if progress.done is not None:
        total = progress.total
        parts.append(words("n_of_n", done=progress.done, total=total) if total else f"{progress.done:,}")
    if progress.seconds_left is not None:
        parts.append(words("left_over", time=duration(progress.seconds_left, words)))
    value = f' value="{progress.done}" max="{progress.total}"' if progress.done is not None and progress.total else ""
    bar = f'<progress aria-label="{escape(parts[0])}"{value}></progress>' if works(progress) else ""
    error = f'<p class="error" role="alert">{escape(words.problem(progress.error))}</p>' if progress.error else ""
    kind = _KINDS.get(progress.phase, "warn")
    may = {"failed": "resumable", "stopped": "resumable", "done": "whole", "trained": "whole", "swept": ""}
    may_now = may.get(progress.phase, "works")
    classes = f"run-head phase-{progress.phase} {may_now}"
    title = f'<h2>{escape(run.name)}</h2><span class="chip {kind}" role="status">{escape(" · ".join(parts))}</span>'
    return f'<div class="{classes}">{title}</div><div class="run-bar">{bar}</div>{error}'


def facts(run: Run, record: dict[str, Any], words: Words) -> str:
    """Render the settings that matter, and what the training took."""
    settings = read_settings(run.folder) if run.folder.config.exists() else {}
    rows = [(key, settings[key]) for key in _SETTINGS if settings.get(key) is not None]
    took = [
        (words("took"), duration(record["train_seconds"], words)) if "train_seconds" in record else None,
        (words("step"), f"{record['steps']:,}") if "steps" in record else None,
        (words("tokens_per_second"), f"{record['tokens_per_second']:,.0f}") if "tokens_per_second" in record else None,
        (words("memory"), f"{record['peak_memory_gib']} GiB") if "peak_memory_gib" in record else None,
        (words("loss"), f"{record['final_loss']:.3f}") if "final_loss" in record else None,
        (words("final_token_accuracy"), f"{record['final_token_accuracy']:.1%}")
        if "final_token_accuracy" in record
        else None,
        (words("kept_checkpoint"), words("kept_of_step", step=record["best"]["step"])) if "best" in record else None,
    ]
    return _pairs([*filter(None, took), *((key, _shown(value)) for key, value in rows)])


def plan(planned: Plan, words: Words) -> str:
    """Render what a training is planned to take, how its batches go through the model, and its learning rate."""
    from thinktune.planner.hardware import GIB

    memory = words("plan_gib", peak=planned.parts["peak"] / GIB, limit=planned.limit / GIB)
    speed, hours, rate = planned.tokens_per_second, planned.hours, planned.rate
    pairs = [
        (words("plan_memory"), memory if planned.fits else words("plan_not_fit", memory=memory)),
        (words("plan_time"), _about(hours, words)) if hours else None,
        (words("plan_speed"), words("plan_tokens", speed=speed)) if speed else None,
        (words("plan_batches"), words.own(planned.describe())),
        (words("learning_rate").lower(), f"{rate.value:g}" + (f" = {words.own(rate.rule)}" if rate.rule else "")),
    ]
    unknown = f'<p class="remark">{escape(words.own(planned.not_known()))}</p>' if planned.unknown else ""
    return _pairs(filter(None, pairs)) + unknown


def _about(hours: float, words: Words) -> str:
    return words("plan_hours", hours=hours) if hours >= 1 else words("plan_minutes", minutes=max(1, round(60 * hours)))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict) and "source" in value:  # one of several
        return f"{value['source']} × {value.get('weight', 1):g}"
    return str(value)


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    cells = (
        f"<div{' class=long' if len(value) > _LONG else ''}><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>"
        for key, value in pairs
    )
    return f'<dl class="pairs">{"".join(cells)}</dl>'


def scores(folder: RunFolder, words: Words) -> str:
    """Render accuracy and format rate of base and tuned model, with their intervals."""
    found = {name: read_scores(folder, name)[0] for name in ("base", "tuned")}
    if not any(found.values()):
        return f'<p class="empty">{escape(words("not_scored_yet"))}</p>'
    rows = []
    for key in ("accuracy", "accuracy_lenient", "format_rate"):
        cells = "".join(f"<td>{_bar(summary, key, name)}</td>" for name, summary in found.items())
        rows.append(f'<tr><th scope="row">{escape(words(f"rate_{key}"))}</th>{cells}</tr>')
    heads = "".join(f'<th scope="col">{escape(words(f"side_{name}"))}</th>' for name in found)
    return f'<table class="scores"><thead><tr><td></td>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def members(runs: Sequence[Run], words: Words) -> str:
    """Render the members of a sweep that were begun: state, loss, and the share that is right."""
    rows = []
    for run in runs:
        loss, summary = run.last("loss"), read_summary(run.folder, "tuned")
        right = f"{summary['accuracy']:.1%}" if summary and "accuracy" in summary else ""
        state = words(f"state_{run.state}")
        rows.append((run.folder.path.name, state, "" if loss is None else f"{loss:.4f}", right))
    return table([words(key) for key in ("name", "state", "loss", "accuracy")], rows)


def _bar(summary: Any, key: str, name: str) -> str:
    if not summary or summary.get(key) is None:
        return "–"
    low, high = summary.get(f"{key}_interval") or (summary[key], summary[key])
    bar = f'<span class="bar {name}"><i style="width:{summary[key]:.1%}"></i></span>'
    return f"<b>{summary[key]:.1%}</b> <small>{low:.1%} – {high:.1%}</small>{bar}"


def changed(folder: RunFolder, words: Words) -> str:
    """Render samples of both models: those first that are right now and were not, then those that are not any more."""
    tuned, base = (read_scores(folder, name)[1] for name in ("tuned", "base"))
    before = {(place_of(line), line["sample"]): line for line in base}
    pairs = [(before.get((place_of(line), line["sample"])), line) for line in tuned]
    order = ("fixed", "lost", "both_wrong", "both_right")
    pairs.sort(key=lambda pair: order.index(_change(*pair)))
    counts = {kind: sum(_change(*pair) == kind for pair in pairs) for kind in order} if base else {}
    summary = "".join(
        f'<span class="chip {_change_kind(kind)}">{escape(words(kind))}: {count}</span>'
        for kind, count in counts.items()
    )
    items = "".join(_sample(old, new, words) for old, new in pairs[:_CHANGED])
    return (
        f'<div class="facts">{summary}</div>{items}' if pairs else f'<p class="empty">{escape(words("none_yet"))}</p>'
    )


def _change(old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    was, now = bool(old and old["correct"]), bool(new["correct"])
    return ("both_right" if was else "fixed") if now else ("lost" if was else "both_wrong")


def _change_kind(kind: str) -> str:
    return {"fixed": "good", "lost": "bad"}.get(kind, "")


def _sample(old: dict[str, Any] | None, new: dict[str, Any], words: Words) -> str:
    kind = _change(old, new)
    question = str(new.get("prompt") or "").removesuffix(tags.INSTRUCTION).strip()[:_LONGEST]
    sides = [("side_base", old)] if old else []
    texts = "".join(
        f'<div><h4>{escape(words(name))}</h4><pre class="text">{escape(str(line["completion"])[:_LONGEST])}</pre></div>'
        for name, line in [*sides, ("side_tuned", new)]
    )
    reference = f"<p><b>{escape(words('reference'))}:</b> {escape(str(new.get('reference', ''))[:_LONGEST])}</p>"
    chip = f'<span class="chip {_change_kind(kind)}">{escape(words(kind))}</span>' if old else ""
    return (
        f'<details class="sample"><summary>{chip} {escape(question)}</summary>{reference}'
        f'<div class="beside">{texts}</div></details>'
    )


def rollouts(folder: RunFolder, words: Words) -> str:
    """Render completions that a reinforcement drew, a column for each of several steps; "" for a run that drew none."""
    columns = "".join(
        f"<div><h4>{escape(words('step'))} {step['step']}</h4>"
        f"<p>{escape(', '.join(f'{words.own(name)} {value:.3g}' for name, value in step['facts'].items()))}</p>"
        f"{''.join(_group(group, words) for group in step['groups'])}</div>"
        for step in rollout_samples(folder)
    )
    return f'<h3>{escape(words("rollouts"))}</h3><div class="beside">{columns}</div>' if columns else ""


def _group(group: dict[str, Any], words: Words) -> str:
    drawn = "".join(
        f'<p>{escape(words.own(each["told"]))}</p><pre class="text">{escape(each["text"])}</pre>'
        for each in group["rollouts"]
    )
    return f'<details class="sample"><summary>{escape(group["prompt"][:_LONGEST])}</summary>{drawn}</details>'


def data_account(report: dict[str, Any], words: Words) -> str:
    """Render the rows of each source: how many were read, kept and dropped, and why."""
    return table((words("rows"), words("what")), [(f"{count:,}", text) for count, text in account(report, words)])


def account(report: dict[str, Any], words: Words) -> Iterator[tuple[int, str]]:
    for source in report["sources"]:
        yield source["read"], words("read", source=Path(source["source"]).name)
    yield report["kept"], words("kept")
    for dropped, rows in report["dropped"].items():
        yield rows, words("dropped", reason=words.own(dropped))
    if report["held_out"]:
        yield report["held_out"], words("held_out")
    if report["lengths"]:
        yield report["lengths"]["total"], words("tokens")
        yield report["lengths"]["trained"], words("trained_tokens")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="plain"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def files_of(folder: RunFolder, words: Words) -> str:
    """Render the files of a run, folders with their size."""
    rows = []
    visible = [path for path in folder.path.glob("*") if not path.name.startswith(".")]
    for path in sorted(visible):
        found = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        size = sum(each.stat().st_size for each in found)
        rows.append((f"{path.name}/" if path.is_dir() else path.name, _size(size)))
    return f'<p class="empty"><code>{escape(str(folder.path))}</code></p>' + table((words("file"), words("size")), rows)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
