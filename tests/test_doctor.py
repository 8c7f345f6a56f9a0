from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from thinktune.models import builtin
from thinktune.workflows import doctor


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        for hub in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
            patch.setenv(hub, "http://127.0.0.1:9")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        yield doctor.report()


def test_the_report_can_be_printed_and_read_by_a_program(facts: dict[str, Any]) -> None:
    assert json.loads(json.dumps(facts)) == facts
    console = Console(file=StringIO(), width=100)
    doctor.print_report(facts, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "torch" in output
    assert all(name in output for name in facts["extras"])


def test_pytorch_tells_the_device_from_its_own_process(facts: dict[str, Any]) -> None:
    assert facts["hardware"]["device"] is not None
    assert facts["hardware"]["memory_gib"] >= facts["hardware"]["free_memory_gib"] > 0


def test_hubs_that_do_not_answer_are_told_with_what_still_works(facts: dict[str, Any]) -> None:
    assert not any(entry["reached"] for entry in facts["network"].values())
    (advice,) = [item for item in facts["advice"] if "no hub answers" in item["what"]]
    assert "builtin:smollm2" in advice["do"]


def test_a_missing_extra_comes_with_the_command_that_installs_it(facts: dict[str, Any]) -> None:
    for name, entry in facts["extras"].items():
        told = any(item["do"] == f"pip install 'thinktune[{name}]'" for item in facts["advice"])
        assert told is not entry["installed"]


def test_a_library_of_another_version_is_told(facts: dict[str, Any]) -> None:
    torch = facts["libraries"]["torch"]
    assert torch["fits"]
    other = {**facts, "libraries": {**facts["libraries"], "torch": {**torch, "fits": False}}}
    assert any("torch" in item["what"] for item in doctor._advise_on_software(other))


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("raise ImportError('no kernel image')", "no kernel image"),
        ("import os\nos.kill(os.getpid(), 9)", "its import ended the process with code -9"),
    ],
)
def test_a_pytorch_that_does_not_work_comes_first(module: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(module)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    command = [sys.executable, "-m", "thinktune", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == "Nothing can be trained or asked here: PyTorch does not work."
    assert problem in second


def test_a_damaged_built_in_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKTUNE_CACHE", str(tmp_path))
    folder = builtin.converted_folder()
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"files": {"config.json": {"size": 1, "sha256": "0"}}}')
    found = doctor._builtin_model()
    assert found["damaged"] == ["config.json"]
    facts = {"python": "", "programs": {"way": "bubblewrap"}, "libraries": {}, "extras": {}, "builtin_model": found}
    assert any("delete" in item["do"] for item in doctor._advise_on_software(facts))
