"""Verbs that take a config: its data, its plan, its training, its run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktune.cli.common import (
    AsJson,
    Cluster,
    ConfigFile,
    HowLoaded,
    Overrides,
    Overwrite,
    Workers,
    app,
    load,
    notify,
    prepare_libraries,
    silent,
    stderr,
)
from thinktune.cli.next_steps import after_training, command, suggest
from thinktune.cli.places import name_of
from thinktune.errors import UsageError
from thinktune.training.ranks import here

if TYPE_CHECKING:
    from thinktune.config import Config


Gpus = Annotated[
    str | None,
    typer.Option("--gpus", metavar="N|all", help="GPUs of this host to train on; results do not change"),
]


@app.command()
def quickstart(overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Train, merge, ask and score a small model within minutes.

    Model and data come with the package; a CPU is enough.
    """
    prepare_libraries()
    from thinktune.workflows.run import quickstart_config, run

    loaded = quickstart_config(overrides or [])
    run(loaded, console=stderr(), overwrite=overwrite)
    suggest(
        *after_training(loaded.run_folder, ["What is 7 times 8?"]),
        (command("init", "rows.jsonl"), "a config for rows of your own"),
        (command("run", "configs/qwen2.5-3b.yaml"), "the same for Qwen2.5-3B-Instruct, on a GPU"),
    )


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    workers: Workers = None,
    cluster: Cluster = None,
    overwrite: Overwrite = False,
    gpus: Gpus = None,
) -> None:
    """Run the whole pipeline of a config.

    Data, training, merge, verification, inference and evaluation; finished, unchanged steps are skipped.
    """
    loaded = load(config, [*(overrides or []), *([f"infer.workers={workers}"] if workers else [])])
    prepare_libraries()
    count = _count_gpus(loaded, gpus)
    if here().size > 1:
        raise UsageError("run starts the processes of its training itself", hint="without torchrun, and with --gpus")
    from thinktune.workflows.run import run

    run(loaded, console=stderr(), overwrite=overwrite, cluster=cluster, gpus=count)
    suggest(
        *after_training(loaded.run_folder, loaded.ask.questions),
        (command("infer", loaded.run_folder, "questions.jsonl"), "answer a batch file"),
    )


@app.command()
def init(
    rows: Annotated[Path, typer.Argument(metavar="ROWS", help="a file of rows, or a folder of such files")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="folder of the config and the split rows; default: ROWS' name")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="base model", show_default="by this machine")] = None,
    how: HowLoaded = None,
) -> None:
    """Write a config fitted to rows of your own.

    Lengths, packs and steps fit the rows; some of them are held out, to score the model on.
    """
    prepare_libraries()
    from thinktune.config import parse_load
    from thinktune.planner.new_config import default_model, write_config

    load_settings = parse_load(how)
    made = write_config(
        rows, out or Path(name_of(str(rows))), model or default_model(load_settings), load=load_settings
    )
    notify(made.report.one_line())
    for remedy in made.remedies():
        notify(f"  {remedy}")
    print(made)
    suggest(
        (command("data", made.file), "the rows as the model will see them, and those that were dropped"),
        (command("run", made.file), "train, merge and score it"),
    )


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="a YAML file")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of config files")] = False,
) -> None:
    """Print a config with all its defaults.

    --schema prints the JSON schema that editors use to complete and check config files.
    """
    from thinktune.config import config_schema, dump_config
    from thinktune.config.shipped import purpose_of, shipped_configs

    if schema:
        print(config_schema())
    elif file is None:
        shipped = [f"configs/{each.name:22} {purpose_of(each)}" for each in shipped_configs()]
        raise UsageError("name a config file, or ask for the --schema", hint="\n".join(["shipped:", *shipped]))
    else:
        print(dump_config(load(file, overrides)), end="")
        suggest((command("data", file, *overrides or []), "the data as the model will see it"))


@app.command()
def data(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="ROWS.jsonl", help="write the rows that are kept, and a card")
    ] = None,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Show the training data as the model will see it.

    Rows kept and dropped, lengths, examples, and one packed batch token by token.
    """
    prepare_libraries()
    from thinktune.report.data_preview import show

    show(load(config, overrides), out=out, overwrite=overwrite, json=json)
    if not json:
        suggest((command("plan", config, *overrides or []), "whether it fits this machine, and how long it takes"))


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="GPU to plan for: h100, rtx4090, 16GiB, …; default: this machine's")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="find the fastest settings that fit, with the same optimizer steps")
    ] = False,
    gpus: Annotated[int, typer.Option("--gpus", min=1, metavar="N", help="GPUs that share each step")] = 1,
    json: AsJson = False,
) -> None:
    """Predict a training's memory, speed and duration.

    The model is not loaded.
    """
    prepare_libraries()
    from thinktune.planner.table import show

    show(load(config, overrides), gpu=gpu, fitted=fit, json=json, gpus=gpus)
    if not json:
        suggest((command("run", config, *overrides or []), "train, merge and score it"))


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="resume from the newest complete checkpoint")] = False,
    overwrite: Overwrite = False,
    gpus: Gpus = None,
) -> None:
    """Fine-tune a LoRA adapter, or all weights.

    The result is a run folder with the adapter, checkpoints and metrics. Started by torchrun, it trains in all of its
    processes, on several hosts too.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    from thinktune.training.head_start import load_torch_libraries

    load_torch_libraries()
    loaded = load(config, overrides)
    prepare_libraries()
    if (count := _count_gpus(loaded, gpus)) > 1:
        from thinktune.training.launch import launch_training

        launch_training(loaded, count, resume=resume, overwrite=overwrite)
        return
    from thinktune.training.imports import import_train

    console = stderr() if here().is_first else silent()
    import_train(loaded)(loaded, console=console, resume=resume, overwrite=overwrite)
    if here().is_first:
        _suggest_after_training(loaded)


def _suggest_after_training(config: Config) -> None:
    suggest(
        *after_training(config.run_folder, config.ask.questions),
        (command("merge", config.run_folder), "put the adapter into the weights, for speed and for others")
        if config.lora is not None
        else (command("verify", config.run_folder), "hold the engine against the model"),
    )


def _count_gpus(config: Config, asked: str | None) -> int:
    if asked is None:
        return 1
    from thinktune.training.launch import gpu_count

    return gpu_count(config, asked)
