"""Verbs that evaluate models: scores, sweeps, comparisons, reports."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thinktune.cli.common import (
    SEED,
    AsJson,
    Cluster,
    ConfigFile,
    Engine,
    HowLoaded,
    ModelReference,
    Overwrite,
    Quantization,
    Seed,
    ThinkBudget,
    Workers,
    app,
    engine_settings,
    given,
    notify,
    prepare_libraries,
    show,
    stderr,
)
from thinktune.cli.next_steps import command, suggest
from thinktune.cli.places import RUNS, find_run, home_of, is_run, name_of
from thinktune.errors import UsageError
from thinktune.imports import importing

if TYPE_CHECKING:
    from thinktune.config import Data
    from thinktune.evaluation.predictions import PredictionScores
    from thinktune.inference.engines import EngineSettings

RunFolders = Annotated[list[str], typer.Argument(metavar="RUN", help="run folders")]
Rated = Annotated[Path | None, typer.Option("--ratings", help="human ratings of these models; default: the studio's")]
OwnScorer = Annotated[
    str | None,
    typer.Option(
        "--scorer", metavar="MODULE:FUNCTION", help="score with a function of your own: (answer, gold) -> True or False"
    ),
]

TellFormat = Annotated[
    bool | None,
    typer.Option(
        "--tell-format/--no-tell-format", help="explain the format in the prompt; default: only to untuned models"
    ),
]


@app.command()
def eval(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="a model, named as for ask")] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="rows with answers: a file, a hub id or builtin:arithmetic; with --gold, a batch file as for infer",
        ),
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(help="references of the batch file: JSON lines {id, type, reference}")
    ] = None,
    scorer: OwnScorer = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="output folder; default: RUN/scores/DATA")] = None,
    split: Annotated[str, typer.Option(help="split of the data")] = "test",
    sample: Annotated[int | None, typer.Option(min=1, help="number of problems, drawn by seed; default: all")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="max new tokens", show_default="1024, or the item type's")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0: greedy", show_default="0, or the item type's")
    ] = None,
    n: Annotated[
        int | None, typer.Option(min=1, help="completions per problem", show_default="1, or the item type's")
    ] = None,
    think_budget: ThinkBudget = None,
    tell_format: TellFormat = None,
    seed: Seed = SEED,
    engine: Engine = "auto",
    quantize: Quantization = "none",
    how: HowLoaded = None,
    workers: Workers = None,
    cluster: Cluster = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
    predictions: Annotated[Path | None, typer.Option(hidden=True)] = None,
    harness_tasks: Annotated[str | None, typer.Option("--harness", hidden=True)] = None,
    harness_path: Annotated[Path | None, typer.Option(hidden=True)] = None,
    shots: Annotated[int | None, typer.Option(min=0, hidden=True)] = None,
) -> None:
    """Ask a model problems and score its answers.

    Prints format rate and accuracy, strict and lenient, with 95% intervals.
    """
    sampling = given(max_tokens=max_tokens, temperature=temperature, n=n, think_budget=think_budget)
    model = model and find_run(model)
    if predictions is not None:
        if gold is None or model is not None or harness_tasks is not None:
            raise UsageError("a result file is scored by its references: thinktune score PREDICTIONS GOLD")
        _tell_new_spelling("eval --predictions", "score", predictions, gold)
        score(predictions, gold, scorer, out, json)
    elif model is not None and harness_tasks is not None:
        if data is not None or gold is not None or sampling.keys() - {"max_tokens"}:
            raise UsageError("lm-evaluation-harness brings data and sampling of its own: thinktune harness MODEL TASKS")
        _tell_new_spelling("eval --harness", "harness", model, harness_tasks)
        harness(
            model, harness_tasks, harness_path, shots, sample, max_tokens or 1024, out, engine, quantize, how,
            workers, cluster, overwrite, json,
        )  # fmt: skip
    elif model is None or data is None:
        raise UsageError(
            "name a MODEL and DATA",
            hint="thinktune score PREDICTIONS GOLD scores a result file, thinktune harness MODEL TASKS takes tasks of "
            "lm-evaluation-harness",
        )
    else:
        prepare_libraries()
        from thinktune.config import Data
        from thinktune.evaluation.evaluate import evaluate_items

        out = out or home_of(model) / "scores" / name_of(data)
        settings = engine_settings(engine, how, quantize, workers, cluster)
        options: dict[str, Any] = {
            "tell_format": tell_format,
            "seed": seed,
            "overwrite": overwrite,
            "console": stderr(),
        }
        if gold is not None:
            scores = evaluate_items(model, data, gold, out, settings, changes=sampling, scorer=scorer, **options)
            _show_predictions(scores, out, json=json)
            _suggest_after_scores(out, json=json)
        else:
            rows = Data(source=data, split=split, sample=sample)
            _eval_rows(model, rows, out, settings, sampling, scorer, json=json, **options)


def _tell_new_spelling(old: str, verb: str, *arguments: object) -> None:
    notify(f"{old} is deprecated; write: thinktune {shlex.join([verb, *map(str, arguments)])}")


def _eval_rows(
    model: str,
    data: Data,
    out: Path,
    settings: EngineSettings,
    changes: dict[str, Any],
    scorer: str | None,
    *,
    json: bool,
    **options: Any,
) -> None:
    from thinktune.config import Sampling
    from thinktune.evaluation.evaluate import comparison_table, evaluate_data
    from thinktune.inference.engines import open_engine
    from thinktune.scoring import ROW_TASK, tasks_scored_by

    # What is wrong with these is told before a model is looked for.
    options |= {"sampling": Sampling().changed(**changes), "scorer": tasks_scored_by(scorer)[ROW_TASK.name].score}
    with open_engine(model, settings) as opened:
        summary = evaluate_data(opened, data, out, **options)
    show(summary.as_dict(), comparison_table({model: summary}), json=json)
    notify(f"every sample is in {out / 'samples.jsonl'}")
    _suggest_after_scores(out, json=json)


def _suggest_after_scores(out: Path, *, json: bool) -> None:
    """Suggest the page on which the scores of a run are shown."""
    run = home_of(out)
    if not json and (run / "run.json").exists():
        suggest((command("report", run), "these scores beside the others of the run, on one page"))
    elif not json:
        suggest((command("demo"), "the studio: read and rate answers"))


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="result file, of infer or any other tool")],
    gold: Annotated[
        Path, typer.Argument(metavar="GOLD", help="references: JSON lines {id, type, reference}; code has tests")
    ],
    scorer: OwnScorer = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="output folder; default: RUN/scores/NAME")] = None,
    json: AsJson = False,
) -> None:
    """Score a result file of this or any other tool.

    By item type: math, multiple choice, code, free text.
    """
    prepare_libraries()
    from thinktune.evaluation.predictions import score_predictions

    run = home_of(predictions)
    out = out or (run if is_run(run) else RUNS) / "scores" / predictions.stem
    _show_predictions(score_predictions(predictions, gold, out, scorer=scorer), out, json=json)
    _suggest_after_scores(out, json=json)


@app.command()
def collect(
    model: ModelReference,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="rows with answers: a file, a hub id or builtin:arithmetic; or a batch file with references",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="file of rows to train on: JSON lines")],
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also write pairs of a right and a wrong completion, for dpo")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="completions per problem")] = 8,
    keep: Annotated[int, typer.Option(min=1, help="max rows, and pairs, per problem")] = 4,
    choose: Annotated[
        Literal["distinct", "shortest", "difficulty"],
        typer.Option(help="of the right completions: the first distinct ones, the shortest, or more of hard problems"),
    ] = "distinct",
    gold: Annotated[
        Path | None, typer.Option(help="references of a batch file: JSON lines {id, type, reference}")
    ] = None,
    scorer: OwnScorer = None,
    split: Annotated[str, typer.Option(help="split of the data")] = "train",
    sample: Annotated[int | None, typer.Option(min=1, help="number of problems, drawn by seed; default: all")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="max new tokens", show_default="1024, or the item type's")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.01)] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0)] = 1.0,
    think_budget: ThinkBudget = None,
    tell_format: TellFormat = None,
    seed: Seed = SEED,
    engine: Engine = "auto",
    quantize: Quantization = "none",
    how: HowLoaded = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Collect a model's own right answers as rows to train on.

    Draws several completions per problem, keeps the right and well-formed ones, and prints pass@k.
    """
    prepare_libraries()
    from thinktune.config import Data
    from thinktune.evaluation.collect import Choice
    from thinktune.evaluation.collect import collect as collect_rows

    collected = collect_rows(
        find_run(model),
        Data(source=data, split=split, sample=sample),
        out,
        engine_settings(engine, how, quantize),
        choice=Choice(choose, keep),
        pairs=pairs,
        gold=gold,
        changes={"n": n, "temperature": temperature, "top_p": top_p}
        | given(max_tokens=max_tokens, think_budget=think_budget),
        tell_format=tell_format,
        seed=seed,
        scorer=scorer,
        overwrite=overwrite,
        console=stderr(),
    )
    show(collected.as_dict(), collected.table(), json=json)
    for remark in collected.remarks():
        notify(remark)
    notify(f"rows: {out}" + (f"; pairs: {pairs}" if pairs else ""))
    if not json:
        suggest((command("init", out), "a config that trains on them"))


@app.command()
def pairs(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="a folder in runs/studio/studies")],
    out: Annotated[Path, typer.Option("--out", "-o", help="file of pairs: JSON lines")],
) -> None:
    """Write the answers that raters prefer, and the others, as pairs for dpo."""
    from thinktune.evaluation.rated_pairs import write_rated_pairs

    notify(f"{write_rated_pairs(study, out)}: {out}")


def _show_predictions(scores: PredictionScores, out: Path, *, json: bool) -> None:
    show(scores.as_dict(), scores.table(), json=json)
    for remark in scores.remarks():
        notify(remark)
    notify(f"every sample is in {out / 'samples.jsonl'}")


@app.command()
def harness(
    model: ModelReference,
    tasks: Annotated[
        str, typer.Argument(metavar="TASKS", help="names, groups, tags or patterns of tasks, such as gsm8k,arc_easy")
    ],
    include_path: Annotated[Path | None, typer.Option(help="a folder with tasks of your own")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="few-shot examples in the prompt", show_default="the task's")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first problems of each task")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="max new tokens where a task sets none")] = 1024,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="output folder; default: RUN/eval/tuned")] = None,
    engine: Engine = "auto",
    quantize: Quantization = "none",
    how: HowLoaded = None,
    workers: Workers = None,
    cluster: Cluster = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Run tasks of lm-evaluation-harness on a model.

    Generates with thinktune's engines; report and compare show the metrics.
    """
    prepare_libraries()
    from dataclasses import asdict

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; we show a line of our own
    from thinktune.evaluation.lm_eval import evaluate_harness, figures_table, load_tasks
    from thinktune.inference.engines import open_engine
    from thinktune.run_folder import RunFolder

    model = find_run(model)
    run = RunFolder(Path(model))
    out = out or (run.eval / "tuned" if run.is_trained else home_of(model) / "scores" / "harness")
    loaded = load_tasks([name.strip() for name in tasks.split(",") if name.strip()], include_path, shots)
    console = stderr()
    with open_engine(model, engine_settings(engine, how, quantize, workers, cluster)) as opened:
        figures = evaluate_harness(
            opened, loaded, out, sample=limit, max_tokens=max_tokens, overwrite=overwrite, console=console
        )
    show([asdict(each) for each in figures], figures_table(figures), json=json)
    notify(f"every sample is in {out / 'harness-samples.jsonl'}")
    _suggest_after_scores(out, json=json)


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE,VALUE", help="settings to try in all combinations, such as lora.r=4,8,16"),
    ],
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="members at a time, a GPU each, through Ray")
    ] = None,
    cluster: Cluster = None,
    overwrite: Overwrite = False,
) -> None:
    """Train and score a grid of settings.

    The base model is loaded once, and finished runs are skipped.
    """
    prepare_libraries()
    with importing():
        from thinktune.workflows.parallel_sweep import sweep_in_parallel
        from thinktune.workflows.sweep import sweep

    if cluster or (workers or 1) > 1:
        swept = sweep_in_parallel(
            config, overrides, console=stderr(), overwrite=overwrite, workers=workers, cluster=cluster
        )
    else:
        swept = sweep(config, overrides, console=stderr(), overwrite=overwrite)
    if swept.runs:
        _print_comparison([str(run) for run in swept.runs], swept.folder)
    swept.require_whole()
    suggest((command("demo", *swept.runs[:2]), "ask two of them side by side"))


@app.command()
def compare(
    runs: RunFolders,
    ratings: Rated = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="folder for report.html, comparison.json and comparison.png; default: beside the runs"
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Compare runs side by side.

    Cost, loss, scores with intervals, and which differences are significant.
    """
    runs = list(map(find_run, runs))
    _print_comparison(runs, out or Path(runs[0]).parent / "comparison", ratings=ratings, json=json)
    if not json:
        suggest((command("demo", *runs[:2]), "ask two of them side by side, or rate their answers blind"))


@app.command()
def report(runs: RunFolders, ratings: Rated = None) -> None:
    """Write an HTML report of a run.

    RUN/report.html has curves, data, config, scores and samples, and needs no network.
    """
    from thinktune.report.html import write_report

    runs = list(map(find_run, runs))
    for run in runs:
        print(write_report(run, ratings=ratings))
    others = "another-run" if len(runs) == 1 else ""
    suggest((command("compare", *runs, *filter(None, [others])), "runs side by side, and which differences are real"))


def _print_comparison(runs: list[str], out: Path, *, ratings: Path | None = None, json: bool = False) -> None:
    """Print the tables and the differences in words, or JSON; write the page and the plot to `out`."""
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
