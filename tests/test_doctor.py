from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from thinktune.models import builtin
from thinktune.workflows import doctor


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def test_the_report_can_be_printed_and_read_by_a_program() -> None:
    facts = doctor.report()
    assert json.loads(json.dumps(facts)) == facts
    console = Console(file=StringIO(), width=100)
    doctor.print_report(facts, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "torch" in output
    assert all(name in output for name in facts["extras"])


def test_hubs_that_do_not_answer_are_told_with_what_still_works() -> None:
    facts = doctor.report()
    assert not any(entry["reached"] for entry in facts["network"].values())
    (advice,) = [item for item in facts["advice"] if "no hub answers" in item["what"]]
    assert "builtin:smollm2" in advice["do"]


def test_a_missing_extra_comes_with_the_command_that_installs_it() -> None:
    facts = doctor.report()
    for name, entry in facts["extras"].items():
        told = any(item["do"] == f"pip install 'thinktune[{name}]'" for item in facts["advice"])
        assert told is not entry["installed"]


def test_a_library_of_another_version_is_told() -> None:
    facts = doctor.report()
    assert facts["libraries"]["torch"]["fits"]
    facts["libraries"]["torch"]["fits"] = False
    assert any("torch" in item["what"] for item in doctor._advise_on_software(facts))


def test_a_machine_without_pytorch_is_examined_all_the_same() -> None:
    script = (
        "import sys, json; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from thinktune.workflows import doctor; from rich.console import Console\n"
        "facts = doctor.report(); doctor.print_report(facts, Console(stderr=True)); print(json.dumps(facts))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["hardware"]["device"] is None
    assert facts["advice"][0]["what"].startswith("everything: PyTorch does not work")


def test_a_damaged_built_in_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKTUNE_CACHE", str(tmp_path))
    folder = builtin.converted_folder()
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"files": {"config.json": {"size": 1, "sha256": "0"}}}')
    facts = doctor.report()
    assert facts["builtin_model"]["damaged"] == ["config.json"]
    assert any("delete" in item["do"] for item in facts["advice"])
