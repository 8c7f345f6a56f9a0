"""How good models are: scores, sweeps, comparisons, reports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinktune.cli.common import (
    SEED,
    AsJson,
    ConfigFile,
    Engine,
    HowLoaded,
    Overwrite,
    Quantization,
    Seed,
    ThinkBudget,
    app,
    name_of,
    notify,
    prepare_libraries,
    show,
    stderr,
)
from thinktune.errors import UsageError

if TYPE_CHECKING:
    from thinktune.evaluation.predictions import PredictionScores

Rated = Annotated[
    Path | None, typer.Option("--ratings", help="people's ratings of these models, from the demo", show_default=False)
]


@app.command()
def eval(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="as for ask", show_default=False)] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="rows with answers: a file, hub id or builtin:arithmetic; with --gold, a batch file as for infer",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="score this result file instead of a model", show_default=False)
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(help="references by id: JSON lines {id, type, reference}", show_default=False)
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(help="take these tasks of lm-evaluation-harness instead: gsm8k,arc_easy", show_default=False),
    ] = None,
    harness_path: Annotated[
        Path | None, typer.Option(help="a folder with tasks of your own for --harness", show_default=False)
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="solved examples in a --harness prompt", show_default="the task's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="default: eval/MODEL-DATA; of a run's --harness RUN/eval/tuned"),
    ] = None,
    split: Annotated[str, typer.Option(help="which split of the data")] = "test",
    sample: Annotated[
        int | None, typer.Option(min=1, help="so many problems, drawn by seed; with --harness the first of each task")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, show_default="1024, or the item type's")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, show_default="0, or the item type's")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="completions a problem", show_default="1, or its type's")] = None,
    think_budget: ThinkBudget = None,
    tell_format: Annotated[
        bool | None, typer.Option("--tell-format/--no-tell-format", help="default: only untuned models are told")
    ] = None,
    seed: Seed = SEED,
    engine: Engine = "auto",
    quantize: Quantization = "none",
    how: HowLoaded = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Score a model, or a result file: well-formed completions and accuracy, strict and lenient, with 95% intervals."""
    prepare_libraries()
    from thinktune.config import parse_load

    load = parse_load(how)
    given = {"max_tokens": max_tokens, "temperature": temperature, "n": n, "think_budget": think_budget}
    sampling = {name: value for name, value in given.items() if value is not None}
    if predictions is not None:
        if gold is None or model is not None or harness is not None:
            raise UsageError("--predictions goes with --gold, and without a MODEL or --harness")
        _eval_predictions(predictions, gold, out, json=json)
    elif model is not None and harness is not None:
        if data is not None or gold is not None or sampling.keys() - {"max_tokens"}:
            raise UsageError("--harness brings data and sampling of its own: only --max-tokens, where a task sets none")
        _eval_harness(
            model, harness, out, path=harness_path, sample=sample, shots=shots, max_tokens=max_tokens or 1024,
            engine=engine, load=load, quantize=quantize, overwrite=overwrite, json=json,
        )  # fmt: skip
    elif model is None or data is None:
        raise UsageError("name a MODEL and DATA, or --predictions and --gold, or a MODEL and --harness")
    elif gold is not None:
        _eval_items(
            model, data, gold, out, changes=sampling, tell_format=tell_format, engine=engine, load=load,
            quantize=quantize, seed=seed, overwrite=overwrite, json=json,
        )  # fmt: skip
    else:
        _eval_data(
            model, data, out, split=split, sample=sample, changes=sampling, tell_format=tell_format, engine=engine,
            load=load, quantize=quantize, seed=seed, overwrite=overwrite, json=json,
        )  # fmt: skip


def _eval_data(
    model: str, data: str, out: Path | None, *, changes: dict[str, Any], json: bool, **settings: Any
) -> None:
    from thinktune.config import Sampling
    from thinktune.evaluation.evaluate import comparison_table, evaluate_data

    out = out or Path("eval") / f"{name_of(model)}-{name_of(data)}"
    sampling = Sampling().changed(**changes)
    summary = evaluate_data(model, data, out, sampling=sampling, console=stderr(), **settings)
    show(summary.as_dict(), comparison_table({model: summary}), json=json)
    notify(f"every sample is in {out / 'samples.jsonl'}")


def _eval_items(model: str, file: str, gold: Path, out: Path | None, *, json: bool, **settings: Any) -> None:
    from thinktune.evaluation.evaluate import evaluate_items

    out = out or Path("eval") / f"{name_of(model)}-{name_of(file)}"
    _show_predictions(evaluate_items(model, file, gold, out, console=stderr(), **settings), out, json=json)


def _eval_predictions(predictions: Path, gold: Path, out: Path | None, *, json: bool) -> None:
    from thinktune.evaluation.predictions import score_predictions

    out = out or Path("eval") / predictions.stem
    _show_predictions(score_predictions(predictions, gold, out), out, json=json)


def _show_predictions(scores: PredictionScores, out: Path, *, json: bool) -> None:
    from thinktune.evaluation.predictions import scores_table

    show(scores.as_dict(), scores_table(scores), json=json)
    for remark in scores.remarks():
        notify(remark)
    notify(f"every sample is in {out / 'samples.jsonl'}")


def _eval_harness(model: str, tasks: str, out: Path | None, *, json: bool, **settings: Any) -> None:
    from dataclasses import asdict

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; we show a line of our own
    from thinktune.evaluation.lm_eval import evaluate_harness, figures_table
    from thinktune.run_folder import RunFolder

    run = RunFolder(Path(model))
    out = out or (run.eval / "tuned" if run.is_trained else Path("eval") / f"{name_of(model)}-harness")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    figures = evaluate_harness(model, names, out, console=stderr(), **settings)
    show([asdict(each) for each in figures], figures_table(figures), json=json)
    notify(f"every sample is in {out / 'harness-samples.jsonl'}")


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE,VALUE...", help="settings to try, all combinations: lora.r=4,8,16"),
    ],
    overwrite: Overwrite = False,
) -> None:
    """Train and score a grid of settings, with the base model loaded once; what is done already is skipped."""
    prepare_libraries()
    from thinktune.workflows.sweep import sweep

    swept = sweep(config, overrides, console=stderr(), overwrite=overwrite)
    if swept.runs:
        _print_comparison([str(run) for run in swept.runs], swept.folder)
    swept.require_whole()


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run folders")],
    ratings: Rated = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for report.html, comparison.json and .png")] = Path(
        "comparison"
    ),
    json: AsJson = False,
) -> None:
    """Set runs side by side: cost, loss, scores with intervals, and which differences are real."""
    _print_comparison(runs, out, ratings=ratings, json=json)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run folders")], ratings: Rated = None
) -> None:
    """Write RUN/report.html: curves, data, config, scores and samples on one page that loads nothing."""
    from thinktune.report.html import write_report

    for run in runs:
        print(write_report(run, ratings=ratings))


def _print_comparison(runs: list[str], out: Path, *, ratings: Path | None = None, json: bool = False) -> None:
    """The tables and the differences in words, or JSON, on stdout; the page and the plot into `out`."""
    from thinktune.report.compare import compare, harness_table, sentences, table
    from thinktune.report.html import write_comparison

    comparison = compare(runs, ratings=ratings)
    show(comparison.as_dict(), table(comparison), json=json)
    if not json:
        if (harness := harness_table(comparison)) is not None:
            show(None, harness, json=False)
        for sentence in sentences(comparison):
            print(sentence)
    notify(f"samples side by side: {write_comparison(comparison, out)}")
