"""Verbs that make rows to train on of a model's answers and of people's ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from thinktune.cli.common import (
    SEED,
    AsJson,
    Engine,
    HowLoaded,
    ModelReference,
    Overwrite,
    Quantization,
    Seed,
    ThinkBudget,
    app,
    engine_settings,
    given,
    notify,
    prepare_libraries,
    show,
    stderr,
)
from thinktune.cli.next_steps import command, suggest
from thinktune.cli.places import find_run
from thinktune.cli.sampling import Gold, MaxTokens, OwnScorer, Sample, Split, TellFormat


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
    gold: Gold = None,
    scorer: OwnScorer = None,
    split: Split = "train",
    sample: Sample = None,
    max_tokens: MaxTokens = None,
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
