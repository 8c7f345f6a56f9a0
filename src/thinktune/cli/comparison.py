"""Verbs that set models side by side: sweeps, comparisons, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from thinktune.cli.common import AsJson, Cluster, ConfigFile, Overwrite, app, notify, prepare_libraries, show, stderr
from thinktune.cli.next_steps import command, suggest
from thinktune.cli.places import find_run
from thinktune.imports import importing

RunFolders = Annotated[list[str], typer.Argument(metavar="RUN", help="run folders")]
Rated = Annotated[Path | None, typer.Option("--ratings", help="human ratings of these models; default: the studio's")]


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
    from thinktune.report.benchmarks import benchmark_table
    from thinktune.report.compare import compare, harness_table, sentences, table
    from thinktune.report.html import write_comparison

    comparison = compare(runs, ratings=ratings)
    show(comparison.as_dict(), table(comparison), json=json)
    if not json:
        for more in (benchmark_table(comparison.benchmarks), harness_table(comparison)):
            if more is not None:
                show(None, more, json=False)
        for sentence in sentences(comparison):
            print(sentence)
    notify(f"samples side by side: {write_comparison(comparison, out)}")
