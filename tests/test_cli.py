"""The command line as a person meets it: what it prints, where, and with which exit status."""

from __future__ import annotations

import importlib.metadata
import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from thinktune import __version__, cli
from thinktune.cli import places
from thinktune.cli.next_steps import command, suggest
from thinktune.cli.tables import print_fitting
from thinktune.lighter_imports import _packages

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def thinktune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls the CLI in an empty folder; returns exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THINKTUNE_DEBUG", "")  # --debug sets it; undone after the test

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thinktune", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def write_config(folder: Path, model: object, **settings: object) -> Path:
    file = folder / "tiny.yaml"
    values = {
        "model": str(model),
        "load": {"device": "cpu", "dtype": "float32"},
        "data": {"sample": 12, "max_length": 512},
        "train": {"max_steps": 2},
        "ask": {"questions": []},
        "output": str(folder / "run"),
        **settings,
    }
    file.write_text(json.dumps(values))  # JSON is YAML
    return file


@pytest.mark.parametrize("statement", ["import thinktune", "import thinktune.cli"])
def test_importing_thinktune_imports_neither_torch_nor_transformers(statement: str) -> None:
    heavy = ("torch", "transformers", "peft", "datasets")
    code = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", [[], ["train"], ["eval"]])
def test_help_is_printed_before_anything_heavy_is_imported(verb: list[str]) -> None:
    heavy = ("pydantic", "yaml", "rich", "numpy", "torch", "transformers", "thinktune.config", "importlib.metadata")
    code = f"""
import sys
from thinktune.cli import main
sys.argv = ["thinktune", *{verb}, "--help"]
try:
    main()
finally:
    print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_verb(thinktune: Run) -> None:
    status, out, _ = thinktune("--help")
    assert status == 0
    for verb in (
        "quickstart",
        "run",
        "config",
        "data",
        "train",
        "ask",
        "merge",
        "infer",
        "eval",
        "score",
        "harness",
        "doctor",
    ):
        assert f"  {verb} " in out
    assert "..." not in out.partition("First steps:")[2]  # every summary is whole
    assert max(map(len, out.splitlines())) <= 80
    assert "More:" not in out  # every verb has its task


def test_the_version_is_told(thinktune: Run) -> None:
    assert thinktune("--version")[:2] == (0, f"thinktune {__version__}\n")


def test_a_shell_gets_its_completion_script(thinktune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/zsh")
    assert "#compdef thinktune" in thinktune("--show-completion")[1]


def test_a_shell_completes_verbs() -> None:
    asked = {"_THINKTUNE_COMPLETE": "complete_bash", "COMP_WORDS": "thinktune qui", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'thinktune'; from thinktune.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True)
    assert done.stdout.split() == ["quickstart"]


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    (folder / "run.json").write_text("{}")
    return folder


def test_a_run_is_found_by_its_plain_name_unless_something_here_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/quickstart"))
    assert list(map(places.find_run, ["quickstart", "gpt2", "a/b", ""])) == ["runs/quickstart", "gpt2", "a/b", ""]
    Path("quickstart").mkdir()
    assert places.find_run("quickstart") == "quickstart"


def test_results_without_a_place_go_into_their_run_or_below_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs/one"))
    Path("config.yaml").write_text("{}")  # of the user: it makes no run of the current folder
    for inside in (run, run / "adapter", run / "infer" / "A1.json"):
        assert places.home_of(inside) == run
    assert places.home_of("Qwen/Qwen2.5-3B-Instruct") == Path("runs/Qwen-Qwen2.5-3B-Instruct")
    assert places.home_of("res.json") == Path("runs/res.json")


def test_next_commands_can_be_copied_into_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    suggest((command("ask", "runs/my run", "What is 7 times 8?"), "ask it"))
    assert "next: thinktune ask 'runs/my run' 'What is 7 times 8?'\n" in capsys.readouterr().err


@pytest.mark.parametrize(("columns", "models"), [(2, 3), (9, 2), (9, 12)])
def test_a_table_fits_80_columns_with_every_cell_whole(columns: int, models: int) -> None:
    table = Table("", *(f"measure {at}" for at in range(columns)))
    for model in range(models):
        table.add_row(f"model {model}", *(f"{model}{at}.1% (97–100)" for at in range(columns)))
    out = StringIO()
    print_fitting(table, Console(file=out, width=80))
    assert max(map(len, out.getvalue().splitlines())) <= 80
    cells = [f"{model}{at}.1% (97–100)" for model in range(models) for at in range(columns)]
    assert [cell for cell in (*cells, f"model {models - 1}", "measure 0") if cell not in out.getvalue()] == []


def test_data_in_the_place_of_a_config_are_told_as_such(thinktune: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    status, _, err = thinktune("train", "rows.jsonl")
    assert (status, "thinktune init rows.jsonl" in err) == (2, True)


def test_a_run_folder_stands_for_its_config_wherever_it_has_moved(thinktune: Run, tmp_path: Path) -> None:
    (make_run(tmp_path / "runs" / "moved") / "config.yaml").write_text("output: runs/before\nseed: 5\n")
    out = thinktune("config", "runs/moved")[1]
    assert ("output: runs/moved" in out, "seed: 5" in out) == (True, True)
    status, _, err = thinktune("train", "moved", "--resume")
    assert (status, err.startswith("thinktune: runs/moved is trained to its end")) == (2, True)


def test_an_unknown_key_is_one_line_with_the_nearest_and_status_2(thinktune: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lora: {rank: 8}\n")
    status, out, err = thinktune("config", file, "lorra.r=3")
    assert status == 2
    assert out == ""
    assert "did you mean lora?" in err
    assert "Traceback" not in err


def test_the_resolved_config_goes_to_stdout_and_reads_back(thinktune: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lora: {r: 8}\n")
    status, out, _ = thinktune("config", file, "train.learning_rate=3e-4")
    assert status == 0
    (tmp_path / "again.yaml").write_text(out)
    assert thinktune("config", tmp_path / "again.yaml")[1] == out
    assert "r: 8" in out


def test_training_what_cannot_be_trained_says_why_and_leaves_nothing_behind(
    thinktune: Run, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"question": "1?", "answer": "so #### 1"}\n{"question": \n')
    (tmp_path / "strange.jsonl").write_text('{"colour": "red", "size": 3}\n')
    for data, words in (
        ("nowhere.jsonl", "no file or folder nowhere.jsonl"),
        ("empty.jsonl", "is empty"),
        ("broken.jsonl", "line 2"),
        ("strange.jsonl", "colour"),
    ):
        status, _, err = thinktune("train", write_config(tmp_path, tiny_model), f"data.source={data}")
        assert (status, words in err, "Traceback" in err) == (2, True, False), err
        assert not (tmp_path / "run").exists()


def test_a_run_that_failed_before_its_first_step_can_simply_be_repeated(
    thinktune: Run, tiny_model: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, tiny_model)
    assert thinktune("train", config, "data.source=nowhere.jsonl")[0] == 2
    status, _, err = thinktune("train", config)
    assert status == 0, err


def test_cuda_asked_for_and_absent_is_wrong_use(thinktune: Run, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    status, _, err = thinktune("train", write_config(tmp_path, tiny_model), "load.device=cuda")
    assert status == 2
    assert "cuda" in err


@pytest.mark.parametrize("verb", ["ask", "merge", "verify", "infer", "serve", "export", "eval", "demo"])
def test_how_a_model_is_loaded_can_be_said_wherever_one_is(thinktune: Run, tiny_model: Path, verb: str) -> None:
    data = {"infer": ["builtin:questions"], "eval": ["builtin:arithmetic"], "ask": ["hello"]}.get(verb, [])
    status, _, err = thinktune(verb, tiny_model, *data, "--load", "devise=cpu")
    assert (status, "did you mean device" in err) == (2, True)
    if verb not in ("merge", "verify", "demo"):  # which look at other things first
        status, _, err = thinktune(verb, tiny_model, *data, "--load", "dtype=float32", "--load", "device=cuda:99")
        assert (status, "cuda:99" in err) == (2, True)


def test_resume_and_overwrite_exclude_each_other(thinktune: Run, tiny_model: Path, tmp_path: Path) -> None:
    status, _, err = thinktune("train", write_config(tmp_path, tiny_model), "--resume", "--overwrite")
    assert (status, "exclude" in err) == (2, True)


def test_a_full_disk_is_said_and_is_a_failure(thinktune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(**_: object) -> None:
        raise OSError(28, "No space left on device", "results.json")

    monkeypatch.setattr("thinktune.workflows.doctor.show", fill)
    status, _, err = thinktune("doctor")
    assert status == 1
    assert "no space left" in err


def test_debug_shows_the_trace(thinktune: Run) -> None:
    from thinktune.errors import ConfigError

    with pytest.raises(ConfigError):
        thinktune("--debug", "config", "nowhere.yaml")


@pytest.mark.slow
def test_the_whole_way_from_config_to_scores_and_each_step_is_skipped_when_done(
    thinktune: Run, tiny_model: Path, tmp_path: Path
) -> None:
    short = {"max_tokens": 6}
    config = write_config(
        tmp_path,
        tiny_model,
        infer={"file": "builtin:questions", "profiles": dict.fromkeys(KINDS, short)},
        eval={"data": "builtin:arithmetic", "sample": 4, "sampling": short},
    )
    status, out, err = thinktune("run", config)
    assert status == 0, err
    run = tmp_path / "run"
    summary = json.loads((run / "eval" / "summary.json").read_text())
    for model in ("base", "tuned"):
        assert {"format_rate", "accuracy", "accuracy_lenient", "n"} <= summary[model].keys()
        assert summary[model]["n"] == 4
    assert {"train_seconds", "total_seconds", "train_tokens_per_second"} <= summary.keys()
    assert len(json.loads((run / "infer" / "results.json").read_text())["result"]["results"]) == 12
    assert (run / "merged" / "model.safetensors").exists()
    assert "tuned" in out

    written = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    status, again, err = thinktune("run", config)
    assert status == 0, err
    assert "is trained" in " ".join(err.split())  # a line may end between them
    assert again == out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == written
    assert json.loads((run / "eval" / "summary.json").read_text())["total_seconds"] >= summary["total_seconds"]

    status, _, err = thinktune("run", config, "lora.r=8")
    assert status == 2
    assert "other settings of lora" in err


KINDS = ("math", "choice", "code-generate", "generic-generate")


def test_a_faulty_batch_file_is_told_before_anything_is_trained(
    thinktune: Run, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "A1.jsonl").write_text('{"id": "a", "type": "maths", "prompt": "1+1?"}\n')
    status, _, err = thinktune("run", write_config(tmp_path, tiny_model, infer={"file": "A1.jsonl"}))
    assert status == 2
    assert "line 1" in err
    assert "math" in err
    assert not (tmp_path / "run").exists()


def write_batch(folder: Path) -> Path:
    file = folder / "items.jsonl"
    file.write_text('{"id": 1, "type": "math", "prompt": "q"}\n')
    return file


def test_a_result_never_replaces_the_batch_file(thinktune: Run, tiny_model: Path, tmp_path: Path) -> None:
    file = write_batch(tmp_path)
    before = file.read_text()
    status, _, err = thinktune("infer", tiny_model, file, "-o", f"../{tmp_path.name}/items.jsonl")
    assert (status, file.read_text()) == (2, before)
    assert "items.jsonl would be written over" in err
    kept = file.rename(tmp_path / "again.journal.jsonl")
    status, _, err = thinktune("infer", tiny_model, kept, "-o", "again.json", "--overwrite")
    assert (status, kept.read_text()) == (2, before)
    assert "again.journal.jsonl would be written over" in err


def test_a_pipe_or_a_device_does_not_become_a_result_file(thinktune: Run, tiny_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    status, _, err = thinktune("infer", tiny_model, write_batch(tmp_path), "-o", "pipe")
    assert status == 2
    assert "pipe is no plain file" in err
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_as_result_file_is_refused_before_anything_is_answered(
    thinktune: Run, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "answers").mkdir()
    status, _, err = thinktune("infer", tiny_model, write_batch(tmp_path), "-o", "answers")
    assert status == 2
    assert err == ("thinktune: the result file answers is a folder\n  → for example -o answers/results.json\n")


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_a_file_where_the_run_folder_should_be_is_said_before_the_model_is_loaded(
    thinktune: Run, tiny_model: Path, tmp_path: Path, place: str
) -> None:
    (tmp_path / "taken").write_text("mine")
    for verb in ("train", "run"):
        status, _, err = thinktune(verb, write_config(tmp_path, tiny_model, output=str(tmp_path / place)))
        assert status == 2
        assert f"{tmp_path / 'taken'} is a file" in err
        assert "loading" not in err


def test_a_place_that_cannot_be_written_is_one_line_and_wrong_use(thinktune: Run, tmp_path: Path) -> None:
    (tmp_path / "res.json").write_text('[{"id": 1, "content": "<think>a</think> <answer>4</answer>"}]')
    (tmp_path / "gold.jsonl").write_text('{"id": 1, "type": "math", "reference": "4"}\n')
    status, _, err = thinktune("score", "res.json", "gold.jsonl", "-o", "res.json")
    assert (status, err.count("\n")) == (2, 2)
    assert "thinktune: res.json" in err


def test_an_unknown_quantisation_is_answered_with_the_known_ones(thinktune: Run) -> None:
    status, _, err = thinktune("ask", "m", "q", "--quantize", "int3")
    assert status == 2
    assert "'none', 'int8', 'nf4', 'fp8'" in err


def test_a_disk_that_fills_up_while_a_file_is_written_is_told_with_the_file(
    thinktune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "res.json").write_text('[{"id": 1, "content": "<think>a</think> <answer>4</answer>"}]')
    (tmp_path / "gold.jsonl").write_text('{"id": 1, "type": "math", "reference": "4"}\n')
    monkeypatch.setattr("thinktune.files.os.fsync", fill)
    status, _, err = thinktune("score", "res.json", "gold.jsonl", "-o", "out")
    assert (status, "no space left on the disk: out/samples.jsonl" in err) == (1, True)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"data": {"source": "typo.jsonl"}}, "no file or folder typo.jsonl"),
        ({"data": {"source": [{"source": "builtin:arithmetic"}, {"source": "empty.jsonl"}]}}, "empty.jsonl: is empty"),
        ({"eval": {"data": "typo.jsonl", "every": None}}, "no file or folder typo.jsonl"),
    ],
)
def test_data_that_are_not_there_are_told_before_the_model_is_loaded(
    thinktune: Run, tiny_model: Path, tmp_path: Path, settings: dict[str, object], problem: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    status, _, err = thinktune("run", write_config(tmp_path, tiny_model, **settings))
    assert status == 2
    assert problem in err
    assert "loading" not in err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "run"])
def test_a_training_imports_no_optional_package_that_it_does_not_need(
    tiny_model: Path, tmp_path: Path, verb: str
) -> None:
    # bitsandbytes brings networkx and torch's compiler; what reads Parquet files and the hub brings pandas.
    heavy = "bitsandbytes datasets gradio librosa lm_eval networkx pandas pyarrow scipy sklearn torchvision trl vllm"
    if verb == "train":
        heavy += " torch._dynamo torch.distributed.fsdp torch.distributed.tensor"
    settings = {"infer": None, "eval": {"data": None}} if verb == "run" else {}
    file = write_config(tmp_path, tiny_model, train={"max_steps": 1}, **settings)
    code = f"""
import atexit, sys
from thinktune.cli import main
sys.argv = ["thinktune", {verb!r}, {str(file)!r}]
atexit.register(lambda: print([name for name in {heavy.split()} if name in sys.modules]))
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (tmp_path / "run" / "run.json").exists(), done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_package_that_transformers_knows_of_is_not_left_out_of_a_later_import(tmp_path: Path) -> None:
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("__version__ = '2.11.0'")
    code = """
from thinktune.imports import importing, leave_out
leave_out("torchaudio")
from transformers.utils import is_torchaudio_available
assert is_torchaudio_available()  # as reading an adapter makes transformers ask
with importing():
    import transformers.audio_utils
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr


def test_a_package_left_out_of_an_import_is_there_again_after_it() -> None:
    code = """
import gc, sys
from thinktune.imports import importing
try:
    with importing("colorsys"):
        import colorsys
except ImportError as error:
    print(error, gc.isenabled())
import colorsys
with importing("colorsys"):
    print(gc.isenabled(), "colorsys" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "None in sys.modules" in done.stdout
    assert done.stdout.split()[-3:] == ["True", "False", "True"]


@pytest.mark.parametrize(
    ("compiled", "mode", "kept"),
    [(False, 0o700, ["first.py", "second.py", "torch/__init__.py"]), (True, 0o700, []), (False, 0o770, [])],
)
def test_bytecode_is_kept_where_libraries_have_none_and_nobody_else_may_write(
    tmp_path: Path, compiled: bool, mode: int, kept: list[str]
) -> None:
    libraries, cache = tmp_path / "libraries", tmp_path / "cache"
    (libraries / "torch").mkdir(parents=True)
    (libraries / "torch" / "__init__.py").touch()
    (libraries / "first.py").touch()
    (libraries / "second.py").touch()
    if compiled:
        py_compile.compile(str(libraries / "torch" / "__init__.py"))
    cache.mkdir()
    cache.chmod(mode)
    code = f"""
import subprocess, sys
from pathlib import Path
from thinktune.imports import keep_bytecode
keep_bytecode(Path({str(cache)!r}))
import first, torch
subprocess.run([sys.executable, "-c", "import second"], check=True)
"""
    path = os.pathsep.join([str(libraries), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    found = {file.relative_to(cache / str(libraries)[1:]) for file in (cache / str(libraries)[1:]).rglob("*.pyc")}
    assert sorted(str(file.with_name(file.name.partition(".")[0] + ".py")) for file in found) == kept


def test_packages_are_found_in_their_distributions_as_python_finds_them() -> None:
    found = _packages()
    for package, distributions in importlib.metadata.packages_distributions().items():
        assert set(distributions) <= set(found[package]), package


def test_transformers_lists_its_modules_as_it_does_by_itself_when_it_is_asked_quickly() -> None:
    code = """
import sys
from pathlib import Path
from thinktune.imports import importing
if "quick" in sys.argv:
    with importing():
        import transformers.models
else:
    import transformers.models
from transformers.utils import import_utils
assert (import_utils.fetch__all__.__module__ == "thinktune.lighter_imports") == ("quick" in sys.argv)
models = Path(transformers.__file__).parent / "models"
for path in (models, models / "__init__.py", str(models / "qwen2" / "__init__.py")):
    listed = import_utils.define_import_structure(path)
    print(sorted((sorted(needed), sorted((file, sorted(names)) for file, names in found.items()))
                 for needed, found in listed.items()))
"""
    said = [
        subprocess.run([sys.executable, "-c", code, *how], capture_output=True, text=True, check=True).stdout
        for how in ((), ("quick",))
    ]
    assert "Qwen2ForCausalLM" in said[0]
    assert said[0] == said[1]


@pytest.mark.slow
def test_bitsandbytes_is_imported_without_the_compiler_of_torch_and_has_it_when_it_is_called() -> None:
    pytest.importorskip("bitsandbytes")
    code = """
import gc, sys
from thinktune.imports import import_bitsandbytes, importing
with importing():
    import_bitsandbytes()
assert gc.get_freeze_count() > 100_000 and gc.isenabled()
assert "torch._inductor.compile_fx" not in sys.modules
import torch
from bitsandbytes.backends.default import ops
from thinktune.imports import _compile_later
assert _compile_later(backend="eager")(lambda x: 2 * x)(torch.ones(2)).tolist() == [2, 2]
assert "compile_later" not in repr(torch.compile)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
