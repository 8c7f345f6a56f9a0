"""report.html: all of a run, or of a comparison, on one page that loads nothing from anywhere.

The template engine escapes all text of models, and a content security policy lets no script run but the
page's own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from thinktune import tags
from thinktune.evaluation.problems import place_of, problem_of
from thinktune.export.model_card import write_cards
from thinktune.files import write_json, write_text
from thinktune.records import DataRecord, RunRecord, read_record
from thinktune.report import plots
from thinktune.report.candidates import Candidate
from thinktune.report.compare import COLUMNS, NOT_SCORED, Comparison, compare, sentences
from thinktune.report.first_screen import facts_of, first_screen, headline
from thinktune.report.rollout_samples import rollout_samples
from thinktune.report.translations import in_chinese
from thinktune.run_folder import RunFolder
from thinktune.training import plots as training_plots

MOST_PROBLEMS = 400
"""Problems that a page shows; a page of thousands would not open on a phone."""
_MOST_CHARACTERS = 20_000


def write_report(run: str | Path, *, ratings: Path | None = None) -> Path:
    """Write RUN/report.html and return its path; the model cards of the run get the scores, too.

    Args:
        ratings: a file of people's ratings of the run and its base model.

    Raises:
        RunFolderError: the folder is no run, its training has not ended, or a file of it is damaged.
        DataError: the ratings cannot be read.
    """
    folder = RunFolder(Path(run))
    comparison = compare([folder.path], ["tuned"], ratings=ratings)
    tuned = comparison.candidates[-1]
    record = read_record(folder.record, RunRecord, whole=True)
    page = _render(
        "run.html",
        title=folder.path.resolve().name,
        record=record,
        facts=facts_of(record),
        answers=first_screen(folder, comparison, record),
        curves=plots.inline_svg(training_plots.training_figure(tuned.metrics)),
        more_scores=list(_more_scores(folder)),
        data=read_record(folder.data_report, DataRecord) if folder.data_report.exists() else None,
        rollouts=rollout_samples(folder),
        config=folder.config.read_text(encoding="utf-8"),
        **_scores(comparison),
    )
    write_text(folder.report, page)
    write_cards(folder)  # which have the scores, too
    return folder.report


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write report.html, comparison.json and comparison.png to `folder` and return the path of the page."""
    figure = _comparison_figure(comparison)
    training_plots.save(figure, folder / "comparison.png")
    write_json(folder / "comparison.json", comparison.as_dict())
    page = _render(
        "comparison.html",
        title=" · ".join(each.name for each in comparison.candidates),
        curves=plots.inline_svg(figure, [each.name for each in comparison.candidates]),
        differing=comparison.differing,
        runs=[each.name for each in comparison.candidates if each.facts],
        **_scores(comparison),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("thinktune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (files("thinktune.report") / "templates" / "page.js").read_text(encoding="utf-8")
    environment.globals["chinese"] = in_chinese
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template(template).render(script=script, script_digest=digest, **values)


def _scores(comparison: Comparison) -> dict[str, Any]:
    """Collect the scores and samples that both pages show."""
    candidates = comparison.candidates
    # Those that changed first: lost, gained, of another outcome, the rest.
    problems = sorted(_problems(candidates), key=lambda problem: CHANGES.index(problem["change"]))
    changes = Counter(problem["change"] for problem in problems)
    columns = [(name, cell) for name, cell in COLUMNS if any(cell(each) != "–" for each in candidates)]
    return {
        "changes": {name: changes[name] for name in CHANGES if changes[name]},
        "headline": headline(comparison),
        "bars": _bars(candidates),
        "headings": [heading for heading, _ in columns],
        "rows": [(each.name, [cell(each) for _, cell in columns]) for each in candidates],
        "outcomes": _outcomes(candidates),
        "sentences": list(sentences(comparison)),
        "figures": comparison.figures(),
        "benchmarks": comparison.benchmarks.rows(),
        "told": [each.name for each in candidates if each.summary and each.summary.get("told_format")],
        "sides": [each.name for each in candidates if each.samples],
        "problems": problems[:MOST_PROBLEMS],
        "problem_count": len(problems),
    }


def _outcomes(candidates: Sequence[Candidate]) -> dict[str, list[str]]:
    """Count the samples of each candidate by outcome, the most frequent outcome first; of one that has no samples
    nothing is known, which is not 0."""
    counts = [Counter(line["outcome"] for line in each.samples) for each in candidates]
    total = sum(counts, Counter())
    return {
        outcome: [str(count[outcome]) if count else NOT_SCORED for count in counts]
        for outcome, _ in total.most_common()
    }


def _problems(candidates: Sequence[Candidate]) -> Iterator[dict[str, Any]]:
    """Return each problem with every candidate's answers, in the order of the samples files."""
    asked = [each for each in candidates if each.samples]
    by_item = [_by_problem(each.samples) for each in asked]
    for item in dict.fromkeys(item for lines in by_item for item in lines):
        found = [lines.get(item) for lines in by_item]
        first = next(line for line in found if line is not None)
        places = dict.fromkeys(place_of(line) for line in found if line is not None)
        where = " / ".join(f"{source}, row {row}" if source else row for source, row in places)
        yield {
            "where": where + (f", sample {first['sample'] + 1}" if first["sample"] else ""),
            "prompt": _shorten(str(first.get("prompt") or "").removesuffix(tags.INSTRUCTION).rstrip()),
            "reference": first["reference"],
            "sides": [line and _side(each.name, line) for each, line in zip(asked, found, strict=True)],
            "change": _change(found),
        }


CHANGES = ("lost", "gained", "differing", "same")


def _change(lines: Sequence[dict[str, Any] | None]) -> str:
    """Tell the change from the first candidate that was asked to the last: lost, gained, differing or same."""
    asked = [line for line in lines if line is not None]
    if len(asked) < 2 or len({line["outcome"] for line in asked}) == 1:
        return "same"
    right = bool(asked[0]["correct"]), bool(asked[-1]["correct"])
    return {(True, False): "lost", (False, True): "gained"}.get(right, "differing")


def _bars(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Collect the bars of the first chart: shares right and well-formed, with their intervals, in percent."""
    return [
        {
            "name": each.name,
            "measure": measure,
            "field": field,
            "value": 100 * each.summary[field],
            "low": 100 * each.summary[f"{field}_interval"][0],
            "high": 100 * each.summary[f"{field}_interval"][1],
        }
        for field, measure in (("accuracy", "right"), ("format_rate", "well-formed"))
        for each in candidates
        if each.summary and field in each.summary
    ]


def _more_scores(folder: RunFolder) -> Iterator[tuple[str, str, str, str]]:
    """Yield the scores in RUN/scores, of `eval` and `score`: name, problems, well-formed, right."""
    for file in sorted((folder.path / "scores").glob("*/summary.json")):
        values = read_record(file, dict[str, Any])
        for kind, scores in values.get("types", {"": values}).items():
            name = f"{file.parent.name}, {kind}" if kind else file.parent.name
            yield (
                name,
                str(scores.get("n", "")),
                _rate(scores, "format", "format_rate"),
                _rate(scores, "strict", "accuracy"),
            )


def _rate(scores: dict[str, Any], rate: str, field: str) -> str:
    """Write a rate with its interval, as result files or as rows have it."""
    if isinstance(found := scores.get(rate), dict):
        return f"{found['value']:.1%} ({100 * found['low']:.0f}–{100 * found['high']:.0f})"
    if field not in scores:
        return "–"
    low, high = scores[f"{field}_interval"]
    return f"{scores[field]:.1%} ({100 * low:.0f}–{100 * high:.0f})"


def _by_problem(samples: Sequence[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """Group lines by problem, as `compare` pairs them, and not by place; a repeated problem gets a number."""
    seen: Counter[Any] = Counter()
    lines = {}
    for line in samples:
        key = problem_of(line), line["sample"]
        lines[*key, seen[key]] = line
        seen[key] += 1
    return lines


def _side(name: str, line: dict[str, Any]) -> dict[str, Any]:
    """Prepare one completion for the page: taken apart if it is well-formed, else as it was written."""
    text = _shorten(line["completion"])
    parsed = tags.parse(line["completion"])
    return {
        "name": name,
        "outcome": line["outcome"],
        "think": _shorten(parsed.think or "") if parsed.well_formed else None,
        "answer": _shorten(parsed.answer or "") if parsed.well_formed else None,
        "raw": None if parsed.well_formed else text,
        "remarks": [str(line[key]) for key in ("format_problem", "error", "note") if line.get(key)],
        "tokens": line.get("tokens"),
        "lenient": bool(line.get("lenient")) and not line["correct"],
    }


def _shorten(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]} … ({len(text) - _MOST_CHARACTERS:,} more characters are in samples.jsonl)"


def _comparison_figure(comparison: Comparison) -> Any:
    candidates = comparison.candidates
    return plots.comparison_figure(
        [each.name for each in candidates],
        [each.summary for each in candidates],
        [each.metrics for each in candidates],
    )
