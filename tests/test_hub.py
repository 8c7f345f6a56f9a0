"""Both hub clients, for real, against local servers that speak their protocols.

The clients read their settings when they are imported, so every download runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hub_server import Hub, serve

NAME = "someone/tiny"
FETCH = """
import io, json, logging, sys
from thinktune.config import Load
from thinktune.errors import ThinktuneError
from thinktune.models import hub

kind, name, load = json.loads(sys.argv[1])
said = io.StringIO()
logging.getLogger("thinktune").addHandler(logging.StreamHandler(said))
logging.getLogger("thinktune").setLevel("INFO")
result = {}
download = {"hub": hub.download_from_hub, "modelscope": hub.download_from_modelscope}[kind]
try:
    result["folder"] = str(download(name, Load(**load)))
except ThinktuneError as error:
    result |= {"error": type(error).__name__, "message": str(error)}
result["notices"] = said.getvalue().splitlines()
print(json.dumps(result))
"""


@dataclass
class Client:
    """One of the two clients, with a cache of its own."""

    kind: str
    home: Path
    hub: Hub

    def fetch(self, name: str = NAME, url: str | None = None, offline: bool = False, **load: Any) -> dict[str, Any]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": url or self.hub.url,
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "MODELSCOPE_ENDPOINT": url or self.hub.url,
            "MODELSCOPE_CACHE": str(self.home),
            "MODELSCOPE_HOME": str(self.home / "home"),
        }
        request = json.dumps([self.kind, name, {"attempts": 3, "wait": 0.05, **load}])
        done = subprocess.run(
            [sys.executable, "-c", FETCH, request], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)  # which the clients leave to results
        return result


@pytest.fixture
def repository(tmp_path: Path, tiny_model: Path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_model, folder)
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"never fetched")
    return folder


@pytest.fixture(params=["hub", pytest.param("modelscope", marks=pytest.mark.slow)])
def client(request: pytest.FixtureRequest, tmp_path: Path, repository: Path) -> Iterator[Client]:
    if request.param == "modelscope":
        pytest.importorskip("modelscope_hub")
    with serve(request.param, Hub(NAME, repository)) as hub:
        yield Client(request.param, tmp_path / "home", hub)


def same_files(folder: str, repository: Path) -> bool:
    names = [path.name for path in repository.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")]
    assert names
    return all((Path(folder) / name).read_bytes() == (repository / name).read_bytes() for name in names)


def test_a_model_is_downloaded_without_its_pickles_and_other_formats(client: Client, repository: Path) -> None:
    result = client.fetch()
    assert same_files(result["folder"], repository)
    assert not list(Path(result["folder"]).rglob("*.bin"))
    assert not (Path(result["folder"]) / "onnx").exists()
    assert result["notices"] == []


def test_a_download_cut_half_way_is_resumed(client: Client, repository: Path) -> None:
    # The clients write in chunks of several megabytes: only what came in whole chunks can be resumed.
    (repository / "model.safetensors").write_bytes(os.urandom(25 * 2**20))
    client.hub.cut = "model.safetensors"
    result = client.fetch()
    assert same_files(result["folder"], repository)
    first, second = client.hub.downloads("model.safetensors")
    assert first == ""
    assert second.startswith("bytes=")
    assert int(second.removeprefix("bytes=").rstrip("-")) > 2**20


def test_a_missing_repository_fails_at_once(client: Client) -> None:
    result = client.fetch("someone/typo")
    assert result["error"] == "ModelError"
    assert "there is no model someone/typo" in result["message"]
    assert result["notices"] == []  # no second attempt
    assert len(client.hub.requests) <= 2


def test_a_gated_repository_fails_at_once_and_says_how_to_get_in(client: Client) -> None:
    client.hub.gated = True
    result = client.fetch()
    assert result["error"] == "ModelError"
    assert "log" in result["message"]
    assert result["notices"] == []


def test_a_busy_hub_is_asked_again(client: Client, repository: Path) -> None:
    client.hub.busy = 2
    result = client.fetch()
    assert same_files(result["folder"], repository)
    if client.kind == "hub":  # ModelScope's client tries again by itself
        assert [notice[-20:] for notice in result["notices"]] == ["mpt 2 of 3 in 0.05 s", "empt 3 of 3 in 0.1 s"]


def test_a_hub_that_stays_away_is_given_up_after_the_attempts(client: Client) -> None:
    result = client.fetch(url="http://127.0.0.1:9", attempts=2)
    assert result["error"] == "DownloadError"
    assert "after 2 attempts" in result["message"]
    assert len(result["notices"]) == 1


def test_a_hub_that_is_not_there_is_not_waited_for(client: Client) -> None:
    result = client.fetch(url="http://127.0.0.1:9", attempts=2, wait=600)
    assert "cannot be reached (Connect" in result["message"]
    assert "attempt 2 of 2 in 1 s" in result["notices"][0]


def test_the_cached_copy_is_used_with_a_notice_when_the_network_is_down(client: Client, repository: Path) -> None:
    client.fetch()
    result = client.fetch(url="http://127.0.0.1:9")
    assert same_files(result["folder"], repository)
    assert len(result["notices"]) == 1
    assert "using the copy in the cache" in result["notices"][0]


def test_an_incomplete_cached_copy_is_not_used(client: Client) -> None:
    first = client.fetch()
    (Path(first["folder"]) / "model.safetensors").unlink()
    result = client.fetch(url="http://127.0.0.1:9", attempts=1)
    assert result["error"] == "DownloadError"
    assert "no whole copy" in result["message"]


def test_a_repository_with_only_pickles_is_refused_before_anything_is_downloaded(
    client: Client, repository: Path
) -> None:
    (repository / "model.safetensors").unlink()
    shutil.rmtree(repository / "onnx")
    result = client.fetch()
    assert result["error"] == "ModelError"
    assert "pytorch_model.bin" in result["message"]
    assert client.hub.downloads("config.json") == []


@pytest.mark.parametrize("client", ["hub"], indirect=True)  # ModelScope's client has no offline mode
def test_offline_mode_is_named_as_the_reason(client: Client) -> None:
    result = client.fetch(offline=True)
    assert result["error"] == "DownloadError"
    assert "HF_HUB_OFFLINE" in result["message"]
    assert client.hub.requests == []
