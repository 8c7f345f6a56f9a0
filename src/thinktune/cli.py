"""The command line: one short function a verb. Results go to stdout, progress and notices to stderr.

Nothing heavy is imported before a verb needs it, so that `thinktune --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from thinktune.errors import DiskFull, ThinktuneError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from thinktune.config import Config, Infer
    from thinktune.predictions import PredictionScores

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
Quantization = Annotated[
    Literal["none", "int8", "nf4", "fp8"], typer.Option("--quantize", help="hold the weights in fewer bits")
]
ThinkBudget = Annotated[
    int | None,
    typer.Option(
        "--think-budget",
        min=1,
        help="so many tokens of thought at most, then the answer: every completion is well-formed",
        show_default=False,
    ),
]
Engine = Annotated[
    Literal["auto", "vllm", "transformers"],
    typer.Option("--engine", help="auto: vLLM where it is installed and there is a GPU"),
]
Rated = Annotated[
    Path | None, typer.Option("--ratings", help="people's ratings of these models, from the demo", show_default=False)
]
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
    _prepare_libraries()
    from thinktune.pipeline import quickstart

    quickstart(overrides or [], console=_stderr(), overwrite=overwrite)


@app.command()
def run(config: ConfigFile, overrides: Overrides = None, overwrite: Overwrite = False) -> None:
    """Data, training, merge, inference and evaluation in one; what is done already and unchanged is skipped."""
    _prepare_libraries()
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
    _prepare_libraries()
    from thinktune.data.show import show

    show(_load(config, overrides), json=json)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="plan for h100, rtx4090, 16GiB, …; default: what is here", show_default=False),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="find the fastest settings that fit, for the same steps")] = False,
    json: AsJson = False,
) -> None:
    """Predict memory by part, speed and hours of a training, without loading the model."""
    _prepare_libraries()
    from thinktune.plan_table import show

    show(_load(config, overrides), gpu=gpu, fitted=fit, json=json, notify=_notify)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest whole checkpoint")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune: a config becomes a run folder with an adapter in it."""
    _prepare_libraries()
    from thinktune.train import train

    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    train(_load(config, overrides), console=_stderr(), resume=resume, overwrite=overwrite)


@app.command()
def ask(
    model: ModelReference,
    question: Annotated[str | None, typer.Argument(help="leave out for a conversation")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="print exactly what the model writes")] = False,
    temperature: Annotated[float, typer.Option(min=0.0)] = 0.1,
    max_tokens: Annotated[int, typer.Option(min=1)] = 2048,
    think_budget: ThinkBudget = None,
    seed: Annotated[int, typer.Option()] = 3407,
    engine: Annotated[
        Literal["vllm", "transformers"], typer.Option("--engine", help="transformers starts in seconds")
    ] = "transformers",
    quantize: Quantization = "none",
) -> None:
    """Stream an answer, thinking dimmed; without a question, hold a conversation."""
    _prepare_libraries()
    from thinktune.ask import ask
    from thinktune.config import Sampling

    sampling = Sampling().changed(temperature=temperature, max_tokens=max_tokens, seed=seed, think_budget=think_budget)
    ask(model, question, sampling=sampling, engine=engine, quantize=quantize, raw=raw)


@app.command()
def merge(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run or adapter folder")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="default: RUN/merged", show_default=False)] = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge the adapter into the original, unquantised weights, and compare the two."""
    _prepare_libraries()
    from thinktune.merge import merge

    print(merge(run, out, overwrite=overwrite, notify=_notify).summary())


@app.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder with a merged model")],
    prompts: Annotated[int, typer.Option(min=1, help="held-out prompts to compare on")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="default: 256 on a GPU, 48 on a CPU", show_default=False)
    ] = None,
    engine: Engine = "auto",
    json: AsJson = False,
) -> None:
    """Prove that adapter, merged model and engine are the same model, and that it ends its turns; else exit with 1."""
    _prepare_libraries()
    from rich.console import Console

    from thinktune.verify import verify

    verified = verify(run, engine=engine, prompts=prompts, max_tokens=max_tokens, notify=_notify)
    if json:
        print(dumps(verified.as_dict(), ensure_ascii=False, indent=2))
    else:
        Console().print(verified.table())
    if not verified.passed:
        sys.exit(1)


@app.command()
def infer(
    model: ModelReference,
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="JSON lines {id, type, prompt}, or builtin:questions")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="the result file; of several, their folder (default: results)", show_default=False
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="take infer.* settings from it")] = None,
    profile: Annotated[
        Literal["default", "article"] | None,
        typer.Option("--profile", help="sampling: default, or article (the guide's)", show_default=False),
    ] = None,
    think_budget: ThinkBudget = None,
    form: Annotated[
        Literal["results", "lines", "openai"],
        typer.Option("--format", help="of the result: results, lines (JSON lines), or openai (its batch API's)"),
    ] = "results",
    engine: Annotated[
        Literal["auto", "vllm", "transformers"] | None,
        typer.Option("--engine", help="auto: vLLM where it is installed and there is a GPU", show_default=False),
    ] = None,
    unmerged: Annotated[
        bool, typer.Option("--unmerged", help="run an adapter beside its base, not the merged model")
    ] = False,
    quantize: Quantization = "none",
    seed: Annotated[int, typer.Option()] = 3407,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="faulty lines become error items")] = False,
    overwrite: Overwrite = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="generate only for items that failed before")
    ] = False,
) -> None:
    """Answer batch files, with the model loaded once; a stopped call goes on where it was."""
    _prepare_libraries()
    from thinktune.infer import infer_files

    if retry_errors and overwrite:
        raise UsageError("--retry-errors and --overwrite exclude each other")
    # What is given here goes over the config's; a profile named here over the config's types too.
    given: dict[str, Any] = {
        "profile": profile,
        "profiles": {} if profile else None,
        "think_budget": think_budget,
        "engine": engine,
        "merge": False if unmerged else None,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    infer_files(
        model,
        _result_files(files, out),
        settings=_infer_settings(config, settings),
        quantize=quantize,
        seed=seed,
        skip_bad=skip_bad,
        overwrite=overwrite,
        retry_errors=retry_errors,
        form=form,
        console=_stderr(),
    )


@app.command()
def serve(
    model: ModelReference,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=RUN", help="a further adapter of the same base; repeat for more"),
    ] = None,
    engine: Annotated[
        Literal["auto", "vllm", "transformers"], typer.Option("--engine", help="auto: vLLM where it is installed")
    ] = "auto",
    host: Annotated[str, typer.Option(help="0.0.0.0 lets everybody in, unasked")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    config: Annotated[Path | None, typer.Option("--config", help="take infer.vllm settings from it")] = None,
) -> None:
    """Start an OpenAI-compatible server with the model, and its adapters under names of their own."""
    _prepare_libraries()
    from thinktune.serve import serve

    server = serve(
        model,
        adapters=adapter or [],
        engine=engine,
        host=host,
        port=port,
        vllm=_infer_settings(config, {}).vllm,
        notify=_notify,
    )
    _notify(f"{server.url} will have {', '.join(server.models)}")
    server.run()


@app.command()
def export(
    model: ModelReference,
    gguf: Annotated[Literal["f16", "q8_0"], typer.Option("--gguf", help="the numbers in the file")] = "q8_0",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="default: MODEL-PRECISION.gguf", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a GGUF file for llama.cpp, and a Modelfile for Ollama; the file is read back and compared."""
    _prepare_libraries()
    from thinktune.export import export

    out = out or Path(f"{_name(Path(model).name)}-{gguf}.gguf")
    print(export(model, out, gguf, overwrite=overwrite, notify=_notify))


@app.command()
def eval(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="as for ask", show_default=False)] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="rows with answers: a file, hub id or builtin:arithmetic; with --gold, a batch file as for infer",
            show_default=False,
        ),
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="score this result file instead of a model", show_default=False)
    ] = None,
    gold: Annotated[
        Path | None, typer.Option(help="references by id: JSON lines {id, type, reference}", show_default=False)
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(help="take these tasks of lm-evaluation-harness instead: gsm8k,arc_easy", show_default=False),
    ] = None,
    harness_path: Annotated[
        Path | None, typer.Option(help="a folder with tasks of your own for --harness", show_default=False)
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="solved examples in a --harness prompt", show_default="the task's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="default: eval/MODEL-DATA; of a run's --harness RUN/eval/tuned"),
    ] = None,
    split: Annotated[str, typer.Option(help="which split of the data")] = "test",
    sample: Annotated[
        int | None, typer.Option(min=1, help="so many problems, drawn by seed; with --harness the first of each task")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, show_default="1024, or the item type's")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, show_default="0, or the item type's")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="completions a problem", show_default="1, or its type's")] = None,
    think_budget: ThinkBudget = None,
    tell_format: Annotated[
        bool | None, typer.Option("--tell-format/--no-tell-format", help="default: only untuned models are told")
    ] = None,
    seed: Annotated[int, typer.Option()] = 3407,
    engine: Engine = "auto",
    quantize: Quantization = "none",
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Score a model, or a result file: well-formed completions and accuracy, strict and lenient, with 95% intervals."""
    _prepare_libraries()
    given = {"max_tokens": max_tokens, "temperature": temperature, "n": n, "think_budget": think_budget}
    sampling = {name: value for name, value in given.items() if value is not None}
    if predictions is not None:
        if gold is None or model is not None or harness is not None:
            raise UsageError("--predictions goes with --gold, and without a MODEL or --harness")
        _eval_predictions(predictions, gold, out, json=json)
    elif model is not None and harness is not None:
        if data is not None or gold is not None or sampling.keys() - {"max_tokens"}:
            raise UsageError("--harness brings data and sampling of its own: only --max-tokens, where a task sets none")
        _eval_harness(
            model, harness, out, path=harness_path, sample=sample, shots=shots, max_tokens=max_tokens or 1024,
            engine=engine, quantize=quantize, overwrite=overwrite, json=json,
        )  # fmt: skip
    elif model is None or data is None:
        raise UsageError("name a MODEL and DATA, or --predictions and --gold, or a MODEL and --harness")
    elif gold is not None:
        _eval_items(
            model, data, gold, out, changes=sampling, tell_format=tell_format, engine=engine,
            quantize=quantize, seed=seed, overwrite=overwrite, json=json,
        )  # fmt: skip
    else:
        _eval_data(
            model, data, out, split=split, sample=sample, changes=sampling, tell_format=tell_format, engine=engine,
            quantize=quantize, seed=seed, overwrite=overwrite, json=json,
        )  # fmt: skip


def _eval_data(
    model: str, data: str, out: Path | None, *, changes: dict[str, Any], json: bool, **settings: Any
) -> None:
    from thinktune.config import Sampling
    from thinktune.evaluate import comparison_table, evaluate_data

    out = out or Path("eval") / f"{_name(model)}-{_name(data)}"
    sampling = Sampling().changed(**changes)
    summary = evaluate_data(model, data, out, sampling=sampling, console=_stderr(), **settings)
    _show(summary.as_dict(), comparison_table({model: summary}), json=json)
    _notify(f"every sample is in {out / 'samples.jsonl'}")


def _eval_items(model: str, file: str, gold: Path, out: Path | None, *, json: bool, **settings: Any) -> None:
    from thinktune.evaluate import evaluate_items

    out = out or Path("eval") / f"{_name(model)}-{_name(file)}"
    _show_predictions(evaluate_items(model, file, gold, out, console=_stderr(), **settings), out, json=json)


def _eval_predictions(predictions: Path, gold: Path, out: Path | None, *, json: bool) -> None:
    from thinktune.predictions import score_predictions

    out = out or Path("eval") / predictions.stem
    _show_predictions(score_predictions(predictions, gold, out), out, json=json)


def _show_predictions(scores: PredictionScores, out: Path, *, json: bool) -> None:
    from thinktune.predictions import scores_table

    _show(scores.as_dict(), scores_table(scores), json=json)
    for remark in scores.remarks():
        _notify(remark)
    _notify(f"every sample is in {out / 'samples.jsonl'}")


def _eval_harness(model: str, tasks: str, out: Path | None, *, json: bool, **settings: Any) -> None:
    from dataclasses import asdict

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; we show a line of our own
    from thinktune.harness import evaluate_harness, figures_table
    from thinktune.runs import RunFolder

    run = RunFolder(Path(model))
    out = out or (run.eval / "tuned" if run.is_trained else Path("eval") / f"{_name(model)}-harness")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    figures = evaluate_harness(model, names, out, console=_stderr(), **settings)
    _show([asdict(each) for each in figures], figures_table(figures), json=json)
    _notify(f"every sample is in {out / 'harness-samples.jsonl'}")


@app.command()
def clean(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="the folder of your run folders")] = Path("runs"),
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="left-over, merged or cache; can be given several times", show_default=False),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="remove it; else it is listed only")] = False,
    json: AsJson = False,
) -> None:
    """List what can be made again (merged models, converted models) and what crashes left over; --delete removes it."""
    _prepare_libraries()
    from thinktune.clean import KINDS, clean

    report = clean(runs, only or list(KINDS), really=delete)
    if json:
        print(dumps(report, ensure_ascii=False, indent=2))
        return
    for waste in report["found"]:
        print(f"{waste['size'] / 2**20:10,.1f} MiB  {waste['kind']:9}  {waste['path']}")
    total = f"{report['bytes'] / 2**20:,.1f} MiB"
    hint = "" if delete or not report["found"] else "; thinktune clean --delete removes it"
    _notify(f"{total} {'removed' if delete else 'can go'}{hint}")


@app.command()
def sweep(
    config: ConfigFile,
    overrides: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE,VALUE...", help="settings to try, all combinations: lora.r=4,8,16"),
    ],
    overwrite: Overwrite = False,
) -> None:
    """Train and score a grid of settings, with the base model loaded once; what is done already is skipped."""
    _prepare_libraries()
    from thinktune.sweep import sweep

    swept = sweep(config, overrides, console=_stderr(), overwrite=overwrite)
    if swept.runs:
        _print_comparison([str(run) for run in swept.runs], swept.folder)
    swept.require_whole()


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run folders")],
    ratings: Rated = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for report.html, comparison.json and .png")] = Path(
        "comparison"
    ),
    json: AsJson = False,
) -> None:
    """Set runs side by side: cost, loss, scores with intervals, and which differences are real."""
    _print_comparison(runs, out, ratings=ratings, json=json)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run folders")], ratings: Rated = None
) -> None:
    """Write RUN/report.html: curves, data, config, scores and samples on one page that loads nothing."""
    from thinktune.report import write_report

    for run in runs:
        print(write_report(run, ratings=ratings))


@app.command()
def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="as for ask; runs with an adapter are offered besides"),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="the folder of your run folders")] = Path("runs"),
    host: Annotated[
        str, typer.Option("--host", help="another than this machine's own asks for a password")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="default: the first free one from 7860 on", show_default=False),
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="publish through Gradio's relay, behind the password")] = False,
    password: Annotated[
        str | None,
        typer.Option("--password", envvar="THINKTUNE_PASSWORD", help="to sign in with, as studio", show_default=False),
    ] = None,
    quantize: Quantization = "none",
) -> None:
    """Open the studio, a web page: chat, compare, rate blind, answer files, watch and start trainings."""
    _prepare_libraries()
    from thinktune.web.app import USER, serve

    server = serve(
        models or [],
        runs=runs,
        host=host,
        port=port,
        share=share,
        password=password,
        quantize=quantize,
        notify=_notify,
    )
    print(server.url, flush=True)
    if server.password is not None:
        _notify(f"sign in as {USER}, with the password {server.password}")
    server.wait()


@app.command()
def doctor(json: AsJson = False) -> None:
    """Tell what this machine and installation can do, what will be slow or impossible, and what to do about it."""
    _prepare_libraries()
    from thinktune.doctor import show

    show(json=json)


def _load(file: Path, overrides: list[str] | None) -> Config:
    from thinktune.config import load_config

    return load_config(file, overrides or [])


def _infer_settings(config: Path | None, given: dict[str, Any]) -> Infer:
    from thinktune.config import parse_config

    values = _load(config, None).infer.model_dump() if config else {}
    return parse_config({"infer": {**values, **given}}, where="infer").infer


def _notify(line: str) -> None:
    print(line, file=sys.stderr)


def _print_comparison(runs: list[str], out: Path, *, ratings: Path | None = None, json: bool = False) -> None:
    """The tables and the differences in words, or JSON, on stdout; the page and the plot into `out`."""
    from thinktune.compare import compare, harness_table, sentences, table
    from thinktune.report import write_comparison

    comparison = compare(runs, ratings=ratings)
    _show(comparison.as_dict(), table(comparison), json=json)
    if not json:
        if (harness := harness_table(comparison)) is not None:
            _show(None, harness, json=False)
        for sentence in sentences(comparison):
            print(sentence)
    _notify(f"samples side by side: {write_comparison(comparison, out)}")


def _show(values: Any, table: Table, *, json: bool) -> None:
    """The result: a table for people, or JSON for programs."""
    from rich.console import Console

    if json:
        print(dumps(values, ensure_ascii=False, indent=2))
        return
    stdout = Console()
    natural = stdout.measure(table, options=stdout.options.update(max_width=1000)).maximum
    Console(width=max(stdout.width, natural)).print(table)  # cells cut short would be of no use


def _name(reference: str) -> str:
    """A reference as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", Path(reference).stem if Path(reference).is_file() else reference).strip("-.")


def _result_files(files: list[str], out: Path | None) -> dict[str | Path, Path]:
    """Where the answers of each batch file go."""
    if len(files) == 1:
        found: dict[str | Path, Path] = {files[0]: out or Path("results.json")}
    else:
        found = {file: (out or Path("results")) / f"{_name(file)}.json" for file in files}
    if len(set(found.values())) < len(files):
        raise UsageError("two of the batch files have the same name", hint="answer them one by one, each with its -o")
    for result in found.values():
        if result.is_dir():
            raise UsageError(f"the result file {result} is a folder", hint=f"for example -o {result / 'results.json'}")
        if result.exists() and any(Path(file).exists() and result.samefile(file) for file in files):
            raise UsageError(f"the result would replace the batch file {result}", hint="give it another name with -o")
    return found


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _prepare_libraries() -> None:
    """Before torch is imported: threads that sleep while they wait, and libraries that speak only under --debug."""
    import logging
    import warnings

    # Threads of OpenMP that wait by spinning take the cores from those they wait for: beside one other busy program,
    # training on two cores ran 17 times slower than with threads that soon sleep. Alone, this costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if os.environ.get("THINKTUNE_DEBUG"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore")
    for name in ("torch", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    """Run the CLI: a ThinktuneError becomes its message and its exit code, everything else stays a trace."""
    try:
        app()
    except ThinktuneError as error:
        _fail(error)
    except OSError as error:
        _fail_at_file(error)
    except KeyboardInterrupt:
        _fail(ThinktuneError("stopped"))


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_WRONG_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


def _fail_at_file(error: OSError) -> None:
    """What a disk, its rights or a name that a person chose stand in the way of; anything else is a bug."""
    place = error.filename2 or error.filename
    if error.errno in _NO_SPACE:
        _fail(DiskFull(f"no space left on the disk: {place or error}", hint="free some, then run it again"))
    elif place and error.errno in _WRONG_PLACE:
        _fail(UsageError(f"{place}: {error.strerror}", hint="choose another place, or make this one writable"))
    else:
        raise error


def _fail(error: ThinktuneError) -> None:
    if os.environ.get("THINKTUNE_DEBUG"):
        raise error
    print(f"thinktune: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  → {error.hint}", file=sys.stderr)
    sys.exit(error.exit_code)
