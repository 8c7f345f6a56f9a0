"""Verbs that score models and result files."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thinktune.cli.common import (
    SEED,
    AsJson,
    Cluster,
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
from thinktune.cli.sampling import Gold, MaxTokens, OwnScorer, Sample, Split, TellFormat
from thinktune.errors import DataError, UsageError

if TYPE_CHECKING:
    from thinktune.config import Data
    from thinktune.evaluation.predictions import PredictionScores
    from thinktune.inference.engines import EngineSettings


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
    gold: Gold = None,
    suite: Annotated[
        str | None,
        typer.Option(help="benchmarks in place of DATA: quick, reasoning, names of benchmarks, or a YAML file"),
    ] = None,
    scorer: OwnScorer = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="output folder; default: RUN/scores/DATA, RUN/suites")
    ] = None,
    split: Split = "test",
    sample: Sample = None,
    max_tokens: MaxTokens = None,
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
    elif model is not None and suite is not None:
        if data is not None or gold is not None or scorer is not None:
            raise UsageError("a suite brings problems and scorers of its own: thinktune eval MODEL --suite SUITE")
        settings = engine_settings(engine, how, quantize, workers, cluster)
        _eval_suite(
            model, suite, out, settings, changes=sampling, sample=sample, tell_format=tell_format, seed=seed,
            overwrite=overwrite, json=json,
        )  # fmt: skip
    elif model is None or data is None:
        raise UsageError(
            "name a MODEL and DATA",
            hint="--suite takes benchmarks in place of DATA, thinktune score PREDICTIONS GOLD scores a result file, "
            "thinktune harness MODEL TASKS takes tasks of lm-evaluation-harness",
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


def _eval_suite(
    model: str, suite: str, out: Path | None, settings: EngineSettings, *, json: bool, **options: Any
) -> None:
    prepare_libraries()
    from thinktune.evaluation.suites import evaluate_suite, read_suite

    out = out or home_of(model) / "suites"
    result = evaluate_suite(model, read_suite(suite), out, settings, console=stderr(), **options)
    show(result.as_dict(), result.table(), json=json)
    for remark in result.remarks():
        notify(remark)
    if not result.scores:
        raise UsageError(f"no benchmark of {suite} could be run")
    notify(f"every sample is in {out}/BENCHMARK/samples.jsonl")
    _suggest_after_scores(out, json=json)
    if result.failed:
        raise DataError(f"not scored: {', '.join(result.failed)}; see above", hint="the others are")


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
