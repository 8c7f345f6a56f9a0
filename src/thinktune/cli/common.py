"""Shared by the verbs: the app itself, arguments and options that several take, and the display of results.

Nothing heavy is imported before a verb needs it, so that `thinktune --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from thinktune.cli.places import find_run, is_run
from thinktune.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from thinktune.config import Config, Quantize
    from thinktune.inference.engines.settings import EngineSettings

VERBS = {
    "First steps": ("quickstart", "init", "doctor", "demo"),
    "Data and training": ("config", "data", "plan", "train", "run", "sweep", "collect", "pairs"),
    "Models": ("ask", "infer", "serve", "merge", "verify", "export", "push"),
    "Scores": ("eval", "score", "harness", "compare", "report"),
    "Files": ("clean",),
}
"""The verbs by task, as `--help` lists them; one that is not here comes under `More`."""


class Verbs(TyperGroup):
    """The verbs, which `--help` lists by task."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        named = {verb for verbs in VERBS.values() for verb in verbs}
        rest = tuple(verb for verb in self.list_commands(ctx) if verb not in named)
        width = max(map(len, self.commands))
        for task, verbs in {**VERBS, "More": rest}.items():
            # Every summary whole: a line that is too long is broken, not cut.
            found = [
                (verb.ljust(width), self.commands[verb].get_short_help_str(1000))
                for verb in verbs
                if verb in self.commands
            ]
            if found:
                with formatter.section(task):
                    formatter.write_dl(found)


app = typer.Typer(
    cls=Verbs,
    help="Teach a chat model to think before it answers.",
    no_args_is_help=True,
    add_completion=False,  # Typer's options have no default, and to coerce that it imports pydantic before --help
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml, or a run")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="settings that override the config's, such as lora.r=16")
]

ModelReference = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="a run, adapter or model folder, a GGUF file, a Hugging Face id, ms:ID of ModelScope, builtin:smollm2, "
        "or openai:MODEL@URL, a model behind a server",
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


def _show_version(wanted: bool) -> None:
    if wanted:
        from thinktune.version import __version__

        print(f"thinktune {__version__}")
        raise typer.Exit()


def _show_completion(wanted: bool) -> None:
    if wanted:
        from typer._completion_shared import get_completion_script

        shell = Path(os.environ.get("SHELL", "bash")).name
        print(get_completion_script(prog_name="thinktune", complete_var="_THINKTUNE_COMPLETE", shell=shell))
        raise typer.Exit()


@app.callback(add_help_option=False)
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="show the version")
    ] = False,
    completion: Annotated[
        bool,
        typer.Option(
            "--show-completion", is_eager=True, callback=_show_completion, help="show a completion script for $SHELL"
        ),
    ] = False,
    # Typer's own has no default, and to coerce that it imports pydantic before a verb's --help is printed.
    show_help: Annotated[
        bool, typer.Option("--help", "-h", is_eager=True, callback=_show_help, help="show this message")
    ] = False,
) -> None:
    from thinktune.notices import show_notices

    if debug:
        os.environ["THINKTUNE_DEBUG"] = "1"
    show_notices()


def load(file: Path, overrides: list[str] | None) -> Config:
    """Read a config file; a run folder stands for its own config.

    Raises:
        UsageError: the file is one of data.
    """
    from thinktune.config import load_config
    from thinktune.data.files import is_data_file

    file = Path(find_run(str(file)))
    if is_data_file(file) and file.suffix != ".json":
        raise UsageError(f"{file} holds data; a config says how to train on them", hint=f"thinktune init {file}")
    if is_run(file):
        return load_config(file / "config.yaml", [f"output={file}", *(overrides or [])])
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
    if json:
        print(dumps(values, ensure_ascii=False, indent=2))
        return
    from rich.console import Console

    from thinktune.cli.tables import print_fitting

    print_fitting(table, Console())


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

    from thinktune.imports import BYTECODE, DISTRIBUTED, keep_bytecode, leave_out
    from thinktune.models.cache import cache_folder

    keep_bytecode(cache_folder() / BYTECODE)
    # transformers imports them for assisted generation, losses of detectors, images, sounds, and its Trainer's data.
    leave_out("sklearn", "scipy", "torchvision", "torchaudio", "librosa", "soundfile", "datasets", DISTRIBUTED)
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
