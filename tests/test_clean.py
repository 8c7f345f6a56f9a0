"""Only what can be made again, or was never finished, is removed, and only when asked to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from test_models_loading import FLOAT32, make_run
from thinktune.cli import app
from thinktune.errors import UsageError
from thinktune.export.merge import merge
from thinktune.imports import BYTECODE
from thinktune.models.cache import cache_folder
from thinktune.workflows.clean import KINDS, clean

ALL = frozenset(KINDS)
ENDED = 2**22 + 1  # no process has a number above Linux' limit


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def merged_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("merged") / "one"
    merge(make_run(tiny_model, run), load=FLOAT32, max_tokens=2)
    return run


@pytest.fixture
def runs(merged_run: Path, tmp_path: Path) -> Path:
    runs = tmp_path / "runs"
    shutil.copytree(merged_run, runs / "one")
    (runs / "one" / f".merged.{ENDED}.tmp").mkdir()
    (runs / "one" / f".results.json.{ENDED}.tmp").write_text("half")
    (runs / "one" / f".summary.json.{os.getpid()}.tmp").write_text("at work")
    (runs / "other" / "merged").mkdir(parents=True)
    (runs / "other" / "merged" / "thesis.tex").write_text("mine")
    converted = cache_folder() / "models" / "smollm2"
    converted.mkdir(parents=True)
    (converted / "manifest.json").write_text("{}")
    (cache_folder() / "photos").mkdir()
    (cache_folder() / BYTECODE / "usr").mkdir(parents=True)
    return runs


def everything(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_nothing_is_removed_unless_asked_for(runs: Path) -> None:
    before = everything(runs)
    report = clean(runs, ALL)
    assert everything(runs) == before
    assert not report["deleted"]
    found = {(Path(each["path"]).name, each["kind"]) for each in report["found"]}
    assert found == {
        (f".merged.{ENDED}.tmp", "left-over"),
        (f".results.json.{ENDED}.tmp", "left-over"),
        ("merged", "merged"),
        ("smollm2", "cache"),
        (BYTECODE, "cache"),
    }
    assert report["bytes"] > 10_000


def test_what_a_killed_export_and_a_killed_engine_leave_is_found(runs: Path) -> None:
    left = [runs / "one" / f".model.gguf.{ENDED}.tmp.gguf", runs.parent / f"thinktune-vllm-{ENDED}-ab_c.log"]
    kept = [runs / "one" / "model.gguf", runs.parent / f"thinktune-vllm-{os.getpid()}-abc.log"]
    for file in (*left, *kept):
        file.write_text("")
    found = {each["path"] for each in clean(runs, frozenset({"left-over"}), really=True)["found"]}
    assert found >= {str(file) for file in left}
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in kept)


def test_what_is_precious_stays(runs: Path) -> None:
    before = everything(runs)
    assert clean(runs, ALL, really=True)["deleted"]
    gone = {str(path.relative_to("one")) for path in before - everything(runs)}
    assert {name for name in gone if "/" not in name} == {
        "merged", f".merged.{ENDED}.tmp", f".results.json.{ENDED}.tmp",
    }  # fmt: skip
    assert (runs / "other" / "merged" / "thesis.tex").exists()
    assert (cache_folder() / "photos").exists()
    assert clean(runs, ALL)["found"] == []


def test_one_kind_can_be_chosen(runs: Path) -> None:
    clean(runs, frozenset({"left-over"}), really=True)
    assert {each["kind"] for each in clean(runs, ALL)["found"]} == {"merged", "cache"}


def test_a_merged_model_whose_adapter_is_gone_is_kept(runs: Path) -> None:
    (runs / "one" / "adapter" / "adapter_config.json").unlink()
    assert clean(runs, frozenset({"merged"}))["found"] == []


def test_the_command_lists_and_removes(runs: Path) -> None:
    listed = CliRunner().invoke(app, ["clean", str(runs), "--only", "left-over"])
    assert listed.exit_code == 0
    assert listed.stdout.count("left-over") == 2
    assert CliRunner().invoke(app, ["clean", str(runs), "--delete", "--json"]).exit_code == 0
    assert clean(runs, ALL)["found"] == []
    with pytest.raises(UsageError, match="no kind everything"):
        clean(runs, ["everything"])


def test_a_missing_folder_holds_nothing_and_a_file_is_refused(tmp_path: Path) -> None:
    assert clean(tmp_path / "none", ALL)["found"] == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder"):
        clean(tmp_path / "file", ALL)
