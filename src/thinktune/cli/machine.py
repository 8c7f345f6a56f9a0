"""Verbs for the studio and for this machine: its files and its abilities."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from thinktune.cli.common import AsJson, HowLoaded, Quantization, app, engine_settings, notify, prepare_libraries
from thinktune.cli.next_steps import command, suggest
from thinktune.cli.places import find_run


@app.command()
def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="models to offer, named as for ask; trained runs are always offered"),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="folder with the run folders")] = Path("runs"),
    host: Annotated[
        str, typer.Option("--host", help="address to listen on; any but localhost requires a password")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="port to listen on; default: the first free one from 7860"),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="publish through Gradio's relay, behind the password")] = False,
    password: Annotated[
        str | None, typer.Option("--password", envvar="THINKTUNE_PASSWORD", help="password for the user named studio")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="data that trainings started from the page may use; can be repeated"),
    ] = None,
    quantize: Quantization = "none",
    how: HowLoaded = None,
) -> None:
    """Open the studio, a web page.

    Chat with models side by side, rate them blind, answer batch files, watch and start trainings.
    """
    prepare_libraries()
    from thinktune.studio.app import USER, serve

    server = serve(
        list(map(find_run, models or [])),
        runs=runs,
        host=host,
        port=port,
        share=share,
        password=password,
        data=data or [],
        settings=engine_settings("transformers", how, quantize),
    )
    print(server.url, flush=True)
    if server.password is not None:
        notify(f"sign in as {USER}, with the password {server.password}; or open {server.address}")
    server.wait()


@app.command()
def clean(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="folder with the run folders")] = Path("runs"),
    only: Annotated[
        list[str] | None, typer.Option("--only", help="left-over, merged or cache; can be repeated")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="delete the files instead of listing them")] = False,
    json: AsJson = False,
) -> None:
    """List, or delete, files that are not needed.

    These are merged and converted models and compiled bytecode, which can be recreated, and leftovers of crashes.
    """
    prepare_libraries()
    from thinktune.workflows.clean import KINDS, clean

    report = clean(runs, only or list(KINDS), really=delete)
    if json:
        print(dumps(report, ensure_ascii=False, indent=2))
        return
    for waste in report["found"]:
        print(f"{waste['size'] / 2**20:10,.1f} MiB  {waste['kind']:9}  {waste['path']}")
    notify(f"{report['bytes'] / 2**20:,.1f} MiB {'removed' if delete else 'can go'}")
    if report["found"] and not delete:
        chosen = [word for name in only or () for word in ("--only", name)]
        suggest((command("clean", runs, *chosen, "--delete"), "delete these files"))


@app.command()
def doctor(json: AsJson = False) -> None:
    """Check this machine and this installation.

    Reports what works, what will be slow or impossible, and what to do about it.
    """
    prepare_libraries()
    from thinktune.workflows.doctor import show

    show(json=json)
    if not json:
        suggest((command("quickstart"), "a small model learns to think: minutes on a CPU"))
