"""Verbs that take a model: ask, merge, verify, infer, serve, export."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thinktune.cli.common import (
    ENGINE_HELP,
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
    load,
    notify,
    prepare_libraries,
    stderr,
)
from thinktune.cli.next_steps import command, suggest
from thinktune.cli.places import find_run, home_of, name_of
from thinktune.errors import UsageError

if TYPE_CHECKING:
    from thinktune.config import Config


@app.command()
def ask(
    model: ModelReference,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION", help="leave out to chat")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="print the completion as generated, with its tags")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: greedy")] = 0.1,
    max_tokens: Annotated[int, typer.Option(min=1, help="max new tokens")] = 2048,
    think_budget: ThinkBudget = None,
    seed: Seed = SEED,
    engine: Engine = "transformers",
    quantize: Quantization = "none",
    how: HowLoaded = None,
) -> None:
    """Ask a model a question, or chat with it.

    Answers are streamed, with the thinking dimmed.
    """
    prepare_libraries()
    from thinktune.config import Sampling
    from thinktune.inference.chat_cli import ask

    model = find_run(model)
    sampling = Sampling().changed(temperature=temperature, max_tokens=max_tokens, seed=seed, think_budget=think_budget)
    ask(model, question, sampling=sampling, settings=engine_settings(engine, how, quantize), raw=raw, messages=stderr())
    if question is not None:
        suggest((command("ask", model), "a conversation"), (command("demo", model), "the same on a web page"))


@app.command()
def merge(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run or adapter folder")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="output folder; default: RUN/merged")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        typer.Option("--dtype", help="dtype of the merged weights; default: the base model's"),
    ] = None,
    how: HowLoaded = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge an adapter into its base model.

    Merges into the original, unquantized weights, then compares the merged model with the adapter.
    """
    prepare_libraries()
    from thinktune.config import parse_load
    from thinktune.export.merge import merge

    run = find_run(run)
    print(merge(run, out, load=parse_load(how), dtype=dtype, overwrite=overwrite).summary())
    suggest(
        (command("verify", run), "prove that adapter, merged model and engine agree"),
        (command("infer", run, "questions.jsonl"), "answer a batch file"),
    )


@app.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder with a merged model")],
    prompts: Annotated[int, typer.Option(min=1, help="number of held-out prompts to compare on")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="max new tokens per prompt; default: 256 on a GPU, 48 on a CPU")
    ] = None,
    engine: Engine = "auto",
    how: HowLoaded = None,
    json: AsJson = False,
) -> None:
    """Check that adapter, merged model and engine agree.

    Also checks that the model ends its turns. Exits with 1 if a check fails.
    """
    prepare_libraries()
    from rich.console import Console

    from thinktune.export.verify import verify
    from thinktune.inference.engines import open_engine

    run = find_run(run)
    with open_engine(run, engine_settings(engine, how)) as opened:
        verified = verify(opened, run, prompts=prompts, max_tokens=max_tokens)
    if json:
        print(dumps(verified.as_dict(), ensure_ascii=False, indent=2))
    else:
        Console().print(verified.table())
    if not verified.passed:
        sys.exit(1)
    if not json:
        suggest(
            (command("infer", run, "questions.jsonl"), "answer a batch file"),
            (command("export", run), "a GGUF file, for llama.cpp and Ollama"),
        )


@app.command()
def infer(
    model: ModelReference,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="JSON lines {id, type, prompt}, or builtin:questions")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="result file, or their folder; default: RUN/infer/FILE.json")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="config file to take infer.* and load.* from")] = None,
    profile: Annotated[
        Literal["default", "article"] | None,
        typer.Option("--profile", help="sampling settings: default, or article (the guide's)"),
    ] = None,
    think_budget: ThinkBudget = None,
    form: Annotated[
        Literal["results", "lines", "openai"],
        typer.Option("--format", help="result format: results, lines (JSON lines) or openai (its batch API)"),
    ] = "results",
    engine: Annotated[str | None, typer.Option("--engine", metavar="NAME", help=ENGINE_HELP)] = None,
    unmerged: Annotated[
        bool, typer.Option("--unmerged", help="run the adapter beside its base instead of merged into it")
    ] = False,
    quantize: Quantization = "none",
    how: HowLoaded = None,
    workers: Workers = None,
    cluster: Cluster = None,
    seed: Annotated[int | None, typer.Option("--seed", help="random seed; default: the config's, else 3407")] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="answer one of N parts, 0/N to N-1/N, into a journal of its own"),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="turn invalid lines into error items instead of stopping")
    ] = False,
    overwrite: Overwrite = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="regenerate only the items that failed")] = False,
) -> None:
    """Answer batch files.

    The model is loaded once for all files, and a stopped call resumes where it stopped.
    """
    prepare_libraries()
    from thinktune.config import parse_load
    from thinktune.inference.batch import infer_files
    from thinktune.inference.engines import EngineSettings
    from thinktune.inference.profiles import samplings
    from thinktune.inference.shard import Shard

    if retry_errors and overwrite:
        raise UsageError("--retry-errors and --overwrite exclude each other")
    part = Shard.parse(shard) if shard else None
    # What is given here goes over the config's; a profile named here over the config's types too.
    over = given(profile=profile, think_budget=think_budget, engine=engine, workers=workers)
    over |= {"merge": False} if unmerged else {}
    if profile:
        over["profiles"] = {}
    settings = _settings(config, over)
    model = find_run(model)
    results = _result_files(files, out, home_of(model) / "infer")
    infer_files(
        model,
        results,
        EngineSettings.of(settings.infer, parse_load(how, settings.load), quantize, cluster),
        samplings=samplings(settings.infer, settings.seed if seed is None else seed),
        skip_bad=skip_bad,
        overwrite=overwrite,
        retry_errors=retry_errors,
        form=form,
        shard=part,
        console=stderr(),
    )
    suggest((command("score", next(iter(results.values())), "gold.jsonl"), "score it by the right answers"))


def _result_files(files: list[str], out: Path | None, folder: Path) -> dict[str | Path, Path]:
    """Choose the result file of each batch file; without `out` in `folder`.

    Raises:
        UsageError: two are the same, one is no plain file, or one is a batch file itself.
    """
    from thinktune.inference.shard import journal_of

    if out is not None and len(files) == 1:
        found: dict[str | Path, Path] = {files[0]: out}
    else:
        found = {file: (out or folder) / f"{name_of(file)}.json" for file in files}
    if len(set(found.values())) < len(files):
        raise UsageError("two of the batch files have the same name", hint="answer them one by one, each with its -o")
    for result in found.values():
        if result.is_dir():
            raise UsageError(f"the result file {result} is a folder", hint=f"for example -o {result / 'results.json'}")
        if result.exists() and not result.is_file():  # a pipe or a device, in whose place a file would be put
            raise UsageError(f"the result file {result} is no plain file", hint="for example -o results.json")
        for written in (result, journal_of(result)):
            if written.exists() and any(Path(file).exists() and written.samefile(file) for file in files):
                raise UsageError(f"the batch file {written} would be written over", hint="choose another name with -o")
    return found


@app.command()
def serve(
    model: ModelReference,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=RUN", help="another adapter of the same base; can be repeated"),
    ] = None,
    engine: Annotated[
        Literal["auto", "vllm", "transformers"],
        typer.Option("--engine", help="auto: vLLM if it is installed, else transformers"),
    ] = "auto",
    host: Annotated[
        str, typer.Option(help="address to listen on; 0.0.0.0 lets everybody in, without a password")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 8000,
    config: Annotated[
        Path | None, typer.Option("--config", help="config file to take infer.vllm and load.* from")
    ] = None,
    how: HowLoaded = None,
) -> None:
    """Serve a model through an OpenAI-compatible API.

    Each adapter is served as a model under its own name.
    """
    prepare_libraries()
    from thinktune.config import parse_load
    from thinktune.inference.engines.settings import EngineSettings
    from thinktune.inference.serve import serve

    settings = _settings(config, {})
    run_by = EngineSettings(engine, parse_load(how, settings.load), vllm=settings.infer.vllm)
    server = serve(find_run(model), run_by, adapters=adapter or [], host=host, port=port)
    notify(f"{server.url} will have {', '.join(server.models)}")
    server.run()


def _settings(file: Path | None, over: dict[str, Any]) -> Config:
    """Read `infer`, `load` and `seed` of a config file (None: the defaults), and override settings of `infer`."""
    from thinktune.config import parse_config

    config = load(file, None).model_dump(include={"infer", "load", "seed"}) if file else {}
    return parse_config({**config, "infer": {**config.get("infer", {}), **over}}, where="infer")


@app.command()
def export(
    model: ModelReference,
    gguf: Annotated[
        Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"], typer.Option("--gguf", help="precision of the weights")
    ] = "q8_0",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="output file; default: RUN/NAME-GGUF.gguf")] = None,
    how: HowLoaded = None,
    overwrite: Overwrite = False,
) -> None:
    """Export a model as a GGUF file, for llama.cpp and Ollama.

    The file is read back and compared, and a Modelfile for Ollama is written beside it.
    """
    prepare_libraries()
    from thinktune.config import parse_load
    from thinktune.export.gguf import export

    model = find_run(model)
    out = out or home_of(model) / f"{name_of(Path(model).name)}-{gguf}.gguf"
    print(export(model, out, gguf, load=parse_load(how), overwrite=overwrite))
    suggest((command("ask", out), "the same question of the exported file"))


@app.command()
def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder")],
    target: Annotated[
        str,
        typer.Argument(metavar="OWNER/NAME", help="repository on the Hugging Face hub; ms:OWNER/NAME on ModelScope"),
    ],
    merged: Annotated[bool, typer.Option("--merged", help="push the merged model instead of the adapter")] = False,
    public: Annotated[bool, typer.Option("--public", help="for everybody to see; default: private")] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="OWNER/NAME", help="id of a base model that is a folder here")
    ] = None,
) -> None:
    """Push a run's adapter or merged model to a hub.

    With a model card of its scores, data and settings.
    """
    prepare_libraries()
    from thinktune.export.push import push

    print(push(Path(find_run(run)), target, merged=merged, public=public, base=base))
    suggest((command("ask", target), "ask it, from anywhere"))
