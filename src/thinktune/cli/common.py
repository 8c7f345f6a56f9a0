"""Shared by the verbs: the app itself, arguments and options that several take, and the display of results.

Nothing heavy is imported before a verb needs it, so that `thinktune --help` answers at once.
"""

from __future__ import annotations

import os
import re
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from thinktune.config import Config, Quantize
    from thinktune.inference.engines.settings import EngineSettings

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
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings that override the config's, such as lora.r=16")
]
ModelReference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a run, adapter or model folder, a GGUF file, a Hugging Face id, ms:ID of ModelScope, or builtin:smollm2",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing results")]
Quantization = Annotated[
    Literal["none", "int8", "nf4", "fp8"], typer.Option("--quantize", help="quantize the base weights")
]
HowLoaded = Annotated[
    list[str] | None,
    typer.Option(
        "--load",
        metavar="KEY=VALUE",
        help="a load.* setting, such as device=cpu, dtype=float32 or trust_remote_code=true; can be repeated",
    ),
]
ThinkBudget = Annotated[
    int | None, typer.Option("--think-budget", min=1, help="max thinking tokens; every completion is then well-formed")
]
ENGINE_HELP = "auto (vLLM if it is installed and there is a GPU), vllm, transformers, or module:function"
Engine = Annotated[str, typer.Option("--engine", metavar="NAME", help=ENGINE_HELP)]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="engines that share the work, a GPU each, through Ray")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="ADDRESS", help="Ray cluster to run them on (auto: RAY_ADDRESS); default: this host"
    ),
]
SEED = 3407  # config.SEED, without the time that importing it takes
Seed = Annotated[int, typer.Option("--seed", help="random seed")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def _show_help(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print(context.get_help())
        raise typer.Exit()


@app.callback(add_help_option=False)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    # Typer's own has no default, and to coerce that it imports pydantic before a verb's --help is printed.
    show_help: Annotated[
        bool, typer.Option("--help", "-h", is_eager=True, callback=_show_help, help="Show this message and exit.")
    ] = False,
) -> None:
    from thinktune.notices import show_notices

    if debug:
        os.environ["THINKTUNE_DEBUG"] = "1"
    show_notices()


def load(file: Path, overrides: list[str] | None) -> Config:
    from thinktune.config import load_config

    return load_config(file, overrides or [])


def given(**options: Any) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def engine_settings(
    engine: str,
    how: list[str] | None,
    quantize: Quantize = "none",
    workers: int | None = None,
    cluster: str | None = None,
) -> EngineSettings:
    """Join `--engine`, `--load`, `--quantize`, `--workers` and `--cluster`."""
    from thinktune.config import parse_load
    from thinktune.inference.engines.settings import EngineSettings

    return EngineSettings(engine, parse_load(how), quantize, workers=workers, cluster=cluster)


def notify(line: str) -> None:
    print(line, file=sys.stderr)


def show(values: Any, table: Table, *, json: bool) -> None:
    """Print a result: a table for people, or JSON for programs."""
    from rich.console import Console

    if json:
        print(dumps(values, ensure_ascii=False, indent=2))
        return
    stdout = Console()
    natural = stdout.measure(table, options=stdout.options.update(max_width=1000)).maximum
    Console(width=max(stdout.width, natural)).print(table)  # cells cut short would be of no use


def name_of(reference: str) -> str:
    """Turn a reference into part of a file name."""
    return re.sub(r"[^\w.-]+", "-", Path(reference).stem if Path(reference).is_file() else reference).strip("-.")


def stderr() -> Console:
    """Make the console for progress; notices go through it from now on."""
    return _console(quiet=False)


def silent() -> Console:
    """Make the console of a process that leaves progress and notices to another one."""
    return _console(quiet=True)


def _console(*, quiet: bool) -> Console:
    from rich.console import Console

    from thinktune.notices import show_notices

    console = Console(stderr=True, quiet=quiet)
    show_notices(console)
    return console


def prepare_libraries() -> None:
    """Set, before torch is imported, that threads sleep while they wait and libraries are silent but under --debug."""
    import logging
    import warnings

    from thinktune.imports import leave_out

    # transformers imports them for assisted generation, losses of detectors, images, sounds, and its Trainer's data.
    leave_out("sklearn", "scipy", "torchvision", "torchaudio", "librosa", "soundfile", "datasets")
    # Threads of OpenMP that wait by spinning take the cores from those they wait for: beside one other busy program,
    # training on two cores ran 17 times slower than with threads that soon sleep. Alone, this costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # oneDNN, and PyTorch's layer over it, would keep what they made for each of 1,024 shapes, and packs have ever other
    # lengths.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
    if os.environ.get("THINKTUNE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    for name in ("torch", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
