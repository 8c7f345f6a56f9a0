"""Every way in which a disk that is full is told, on one that really is."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import make_tiny_tokenizer
from thinktune.errors import DataError, DiskFull, DownloadError
from thinktune.files import is_full_disk, telling_full_disk, write_text
from thinktune.models.cache import space_required
from thinktune.retry import MayPass, Offline, download

WEIGHTS = torch.zeros(100_000)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def _write_gguf(file: Path) -> None:
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_tensor("weights", np.zeros(100_000, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()


def _download_rows(file: Path) -> None:
    rows = file.with_suffix(".txt")
    rows.write_text("row\n" * 2_000)
    datasets.load_dataset("text", data_files=str(rows), cache_dir=str(file.parent / "cache"))


@pytest.mark.parametrize(
    "write",
    [
        lambda file: write_text(file, "x" * 100_000),
        lambda file: torch.save(WEIGHTS, file),
        lambda file: torch.save(WEIGHTS, file, _use_new_zipfile_serialization=False),
        lambda file: save_file({"weights": WEIGHTS}, file),
        _write_gguf,
        _download_rows,
    ],
    ids=["text", "torch", "torch of old", "safetensors", "gguf", "datasets"],
)
def test_every_librarys_error_of_a_full_disk_becomes_one(disk: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(DiskFull, match="no space left on the disk while writing"), telling_full_disk(disk / "file"):
        write(disk / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_text("x"),
        lambda file: torch.save(WEIGHTS, file),
        lambda file: make_tiny_tokenizer().backend_tokenizer.save(str(file)),
    ],
    ids=["text", "torch", "tokenizers"],
)
def test_a_device_that_is_full_is_told_as_a_disk(write: Callable[[Path], None]) -> None:
    with pytest.raises(DiskFull, match="the model to /dev"), space_required(Path("/dev"), 1, "the model"):
        write(Path("/dev/full"))


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError("Not enough disk space. Needed: 2 GB"), True),
        (_raised(DataError("it cannot be read"), OSError(errno.ENOSPC, "No space left")), True),
        (OSError(errno.EACCES, "denied", "No space left"), False),
        (ValueError("no space"), False),
        (None, False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception | None, full: bool) -> None:
    assert is_full_disk(error) is full


def test_an_error_raised_from_itself_comes_to_an_end() -> None:
    error = ValueError("broken")
    assert not is_full_disk(_raised(error, error))


@pytest.mark.parametrize(
    ("errors", "raised", "message"),
    [
        ([MayPass("busy"), MayPass("busy"), MayPass("busy")], DownloadError, "busy, after 3 attempts"),
        ([MayPass("busy"), Offline("no network")], DownloadError, "no network, and there is no whole copy"),
        ([_raised(MayPass("broken"), OSError(errno.ENOSPC, "full"))], DiskFull, "while downloading it"),
        ([ValueError("a bug")], ValueError, "a bug"),
    ],
)
def test_only_what_may_pass_is_tried_again(errors: list[Exception], raised: type[Exception], message: str) -> None:
    left = list(errors)

    def fetch() -> None:
        raise left.pop(0)

    with pytest.raises(raised, match=message):
        download("it", fetch, attempts=3, wait=0, more_space="free some")
    assert left == []


def test_the_result_after_a_fault_is_returned(caplog: pytest.LogCaptureFixture) -> None:
    left: list[Exception] = [MayPass("busy"), MayPass("busy")]

    def fetch() -> str:
        if left:
            raise left.pop()
        return "there"

    assert download("it", fetch, attempts=3, wait=0.001, more_space="free some") == "there"
    assert [line.split("; ")[1] for line in caplog.messages] == [
        "attempt 2 of 3 in 0.001 s",
        "attempt 3 of 3 in 0.002 s",
    ]
