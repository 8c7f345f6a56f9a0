"""Data sets of both hubs, through their real clients, from local servers that speak the protocols.

The clients read their settings when they are imported, so every download runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hub_server import Hub, serve

NAME = "someone/Worked-Rows"
READ = """
import io, json, logging, sys
from pathlib import Path
from thinktune.config import Load
from thinktune.data.sources import read_rows
from thinktune.errors import ThinktuneError

source, split, cache = sys.argv[1:]
said = io.StringIO()
logging.getLogger("thinktune").addHandler(logging.StreamHandler(said))
logging.getLogger("thinktune").setLevel("INFO")
result = {}
try:
    rows = read_rows(source, split, count=None, seed=0, cache=Path(cache), load=Load(attempts=2, wait=0.05))
    result["rows"] = [[row.number, row.fields] for row in rows]
except ThinktuneError as error:
    result |= {"error": type(error).__name__, "message": str(error)}
result["notices"] = said.getvalue().splitlines()
print(json.dumps(result))
"""


@dataclass
class Client:
    """One of the two clients, with folders of its own."""

    prefix: str
    home: Path
    hub: Hub

    def read(self, split: str = "train", *, name: str = NAME, url: str = "", **environment: str) -> dict[str, Any]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": url or self.hub.url,
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "MODELSCOPE_ENDPOINT": url or self.hub.url,
            "MODELSCOPE_CACHE": str(self.home / "ms"),
            "MODELSCOPE_HOME": str(self.home / "ms-home"),
            **environment,
        }
        command = [sys.executable, "-c", READ, self.prefix + name, split, str(self.home / "cache")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result


@pytest.fixture(params=["hub", pytest.param("modelscope", marks=pytest.mark.slow)])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    files = tmp_path / "files"
    files.mkdir()
    for split, count in (("train", 3), ("test", 2)):
        rows = [{"question": f"{split} {n}?", "answer": f"thought\n#### {n}"} for n in range(count)]
        (files / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serve(f"{request.param} datasets", Hub(NAME, files)) as hub:
        yield Client({"hub": "", "modelscope": "ms:"}[request.param], tmp_path, hub)


UNREACHABLE = "http://127.0.0.1:9"


def test_the_rows_of_a_split_are_fetched_once_and_kept_for_when_the_hub_is_silent(client: Client) -> None:
    rows = client.read()
    assert [number for number, _ in rows["rows"]] == [1, 2, 3]
    assert rows["rows"][2][1] == {"question": "train 2?", "answer": "thought\n#### 2"}
    assert rows["notices"] == []
    cached = client.read("test", url=UNREACHABLE)
    assert [fields["question"] for _, fields in cached["rows"]] == ["test 0?", "test 1?"]
    (notice,) = cached["notices"]
    assert "cannot be reached" in notice
    assert "using the copy in" in notice


def test_a_silent_hub_without_a_cached_copy_fails_after_every_attempt(client: Client) -> None:
    result = client.read(url=UNREACHABLE)
    assert result["error"] == "DownloadError"
    assert "no whole copy in the cache" in result["message"]
    assert [notice for notice in result["notices"] if "attempt 2 of 2" in notice]


def test_a_data_set_that_does_not_exist_fails_at_once(client: Client) -> None:
    result = client.read(name="someone/else")
    assert result["error"] == "DataError"
    assert "someone/else" in result["message"]
    assert result["notices"] == []


def test_a_split_that_does_not_exist_is_answered_with_those_that_do(client: Client) -> None:
    result = client.read("dev")
    assert result["error"] == "DataError"
    assert "train" in result["message"]
    assert "data.split" in result["message"]


@pytest.mark.parametrize("client", ["hub"], indirect=True)
def test_offline_mode_uses_the_cache_and_asks_nobody(client: Client) -> None:
    client.read()
    asked = len(client.hub.requests)
    result = client.read(HF_HUB_OFFLINE="1")
    assert len(result["rows"]) == 3
    assert "HF_HUB_OFFLINE" in result["notices"][0]
    assert len(client.hub.requests) == asked


@pytest.mark.parametrize("client", ["hub"], indirect=True)
def test_a_hub_that_is_busy_once_is_asked_again(client: Client) -> None:
    client.hub.busy = 1
    assert len(client.read()["rows"]) == 3
    assert client.hub.busy == 0
