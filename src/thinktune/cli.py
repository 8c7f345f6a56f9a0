"""The command line: one short function a verb. Results go to stdout, progress and notices to stderr.

Nothing heavy is imported before a verb needs it, so that `thinktune --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thinktune.errors import DiskFull, ThinktuneError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from thinktune.config import Config

app = typer.Typer(
    help="Teach a chat model to think before it answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings over the file's: lora.r=16", show_default=False),
]
ModelReference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="a run, adapter or model folder, a GGUF file, a hub id, ms:ID, builtin:smollm2"
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what is there")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for programs")]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show the trace of an error")] = False,
) -> None:
    if debug:
        os.environ["THINKTUNE_DEBUG"] = "1"


@app.command()
def quickstart(
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Train, merge, try and score the built-in model on built-in data: everything, in minutes, on a CPU."""
    from thinktune.pipeline import quickstart

    quickstart(overrides or [], console=_stderr(), overwrite=overwrite)


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Data, training, merge, inference and evaluation in one; what is done already and unchanged is skipped."""
    from thinktune.pipeline import run

    run(_load(config, overrides), console=_stderr(), overwrite=overwrite)


@app.command()
def config(
    file: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="a YAML file")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of config files")] = False,
) -> None:
    """Print what a config resolves to, or the schema that editors complete and check with."""
    from thinktune.config import config_schema, dump_config

    if schema:
        print(config_schema())
    elif file is None:
        raise UsageError("name a config file, or ask for the --schema")
    else:
        print(dump_config(_load(file, overrides)), end="")


@app.command()
def data(config: ConfigFile, overrides: Overrides = None, json: AsJson = False) -> None:
    """Show what training would see: rows kept and dropped, lengths, examples, and one packed batch token by token."""
    from thinktune.data.show import show

    show(_load(config, overrides), json=json)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest whole checkpoint")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune: a config becomes a run folder with an adapter in it."""
    _quiet_libraries()
    from thinktune.train import train

    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    train(_load(config, overrides), console=_stderr(), resume=resume, overwrite=overwrite)


@app.command()
def doctor(json: AsJson = False) -> None:
    """Tell what this machine and installation can do, what will be slow or impossible, and what to do about it."""
    _quiet_libraries()
    from thinktune.doctor import show

    show(json=json)


def _load(file: Path, overrides: list[str] | None) -> Config:
    from thinktune.config import load_config

    return load_config(file, overrides or [])


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _quiet_libraries() -> None:
    """What the libraries say about themselves is not what the person asked for; --debug lets them speak."""
    import logging
    import warnings

    if os.environ.get("THINKTUNE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    logging.getLogger("torch").setLevel(logging.ERROR)


def main() -> None:
    """Run the CLI: a ThinktuneError becomes its message and its exit code, everything else stays a trace."""
    try:
        app()
    except ThinktuneError as error:
        _fail(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(DiskFull(f"no space left on the disk: {error.filename or error}", hint="free some, then run it again"))
    except KeyboardInterrupt:
        _fail(ThinktuneError("stopped"))


def _fail(error: ThinktuneError) -> None:
    if os.environ.get("THINKTUNE_DEBUG"):
        raise error
    print(f"thinktune: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  → {error.hint}", file=sys.stderr)
    sys.exit(error.exit_code)
