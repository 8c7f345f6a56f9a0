"""A checkpoint whose marker is there and whose files are not, as after a power cut."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from thinktune.errors import RunFolderError
from thinktune.training.checkpoints import MARKER, damage, newest_whole, whole_checkpoints
from thinktune.training.train import train
from training import assert_same_outcome, make_config, quietly

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MARKER)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    quietly(make_config(tiny_model, run, train={"max_steps": 4, "save_every": 2}))
    return run


def copy_of(finished: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A run that is not at its end, and its older and newer checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "run.json").unlink()
    (_, older), (_, newer) = whole_checkpoints(run / "checkpoints")
    return run, older, newer


@pytest.mark.parametrize("harm", [cut, zero, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES[:-1])
def test_damage_to_any_file_is_seen_and_the_older_checkpoint_used(
    finished: Path, tmp_path: Path, name: str, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run, older, newer = copy_of(finished, tmp_path)
    harm(newer / name)
    assert newest_whole(run / "checkpoints") == (2, older)
    assert name in caplog.messages[0]
    assert "checkpoint-2 is used instead" in caplog.messages[0]
    assert not newer.exists()
    assert newer.with_name("damaged-4").exists()


@pytest.mark.parametrize("harm", [cut, zero])
def test_a_marker_that_cannot_be_read_is_damage(
    finished: Path, tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run, older, newer = copy_of(finished, tmp_path)
    harm(newer / MARKER)
    assert newest_whole(run / "checkpoints") == (2, older)
    assert MARKER in caplog.messages[0]


def test_a_training_resumed_from_the_older_one_says_so_and_ends_as_ever(
    finished: Path, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, _, newer = copy_of(finished, tmp_path)
    zero(newer / "optimizer.pt")
    said = io.StringIO()
    console = Console(file=said, width=400)
    train(make_config(tiny_model, run, train={"max_steps": 4, "save_every": 2}), console=console, resume=True)
    assert "checkpoint-4 is damaged" in caplog.text
    assert "resuming after step 2" in said.getvalue()
    assert_same_outcome(run, finished)


def test_where_no_checkpoint_is_whole_the_files_are_named_and_left(finished: Path, tmp_path: Path) -> None:
    run, older, newer = copy_of(finished, tmp_path)
    cut(older / "optimizer.pt")
    cut(newer / "adapter_model.safetensors")
    with pytest.raises(RunFolderError, match=r"adapter_model.safetensors .*optimizer.pt") as raised:
        newest_whole(run / "checkpoints")
    assert "--overwrite" in raised.value.hint
    assert older.exists()
    assert newer.exists()


def test_checkpoints_of_earlier_versions_have_no_digests_and_are_resumed(finished: Path, tmp_path: Path) -> None:
    _, _, newer = copy_of(finished, tmp_path)
    marker = json.loads((newer / MARKER).read_text())
    del marker["files"]
    (newer / MARKER).write_text(json.dumps(marker))
    assert damage(newer) is None
    cut(newer / "adapter_model.safetensors")
    assert "cut off" in str(damage(newer))


@pytest.mark.parametrize("change", ["lacks", "no place"])
def test_an_adapter_that_does_not_fit_the_model_is_not_resumed(
    finished: Path, tiny_model: Path, tmp_path: Path, change: str
) -> None:
    run, _, newer = copy_of(finished, tmp_path)
    file = newer / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    if change == "lacks":
        del weights[name]
    else:
        weights[name.replace("layers.0", "layers.9")] = torch.zeros(2, 2)
    save_file(weights, file)
    marker = json.loads((newer / MARKER).read_text())
    del marker["files"]
    (newer / MARKER).write_text(json.dumps(marker))
    config = make_config(tiny_model, run, train={"max_steps": 4, "save_every": 2})
    with pytest.raises(RunFolderError, match=f"adapter: .*{change}"):
        quietly(config, resume=True)
