"""Local paths touch no network, though the hub's own offline switch is off; nothing is reported to anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from thinktune.network import SILENT

WATCH = """
import os, sys
def watch(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        where = args[1] if event != "socket.getaddrinfo" else args[:2]
        if isinstance(where, tuple) and str(where[0]) not in ("127.0.0.1", "::1", "localhost"):
            os.write(int(os.environ["WATCHER"]), f"{event} {where} in {sys.argv}\\n".encode())
sys.addaudithook(watch)
"""


def connections(arguments: list[str], folder: Path) -> str:
    """What a Python program, and each one that it starts, asked of the network."""
    (folder / "watched").mkdir(exist_ok=True)
    (folder / "watched" / "sitecustomize.py").write_text(WATCH)
    there, here = os.pipe()
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", *SILENT)}
    path = os.pathsep.join([str(folder / "watched"), *filter(None, sys.path)])
    environment |= {"PYTHONPATH": path, "WATCHER": str(here), "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, pass_fds=[here], capture_output=True, text=True, cwd=folder
    )
    os.close(here)
    with open(there) as stream:
        found = stream.read()
    assert done.returncode == 0, done.stderr
    return found


def test_the_watcher_sees_what_is_asked(tmp_path: Path) -> None:
    ask = "import socket\ntry: socket.create_connection(('hub.invalid', 443), timeout=1)\nexcept OSError: pass"
    assert "hub.invalid" in connections(["-c", ask], tmp_path)


def test_a_hub_client_that_was_imported_before_reports_nothing_either(tmp_path: Path) -> None:
    report = (
        "from huggingface_hub.utils import send_telemetry, _telemetry\n{}send_telemetry('here')\n"
        "_telemetry._TELEMETRY_QUEUE.join()"
    )
    assert connections(["-c", report.format("")], tmp_path)
    assert not connections(["-c", report.format("import thinktune\n")], tmp_path)


@pytest.mark.slow
def test_no_verb_asks_the_network_for_what_lies_here(tiny_model: Path, tmp_path: Path) -> None:
    turn = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "<think>7.</think> 7"}]
    (tmp_path / "rows.jsonl").write_text(20 * (json.dumps({"messages": turn}) + "\n"))
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": 1, "type": "math", "prompt": "3 + 4?"}) + "\n")
    (tmp_path / "c.yaml").write_text(
        f"model: {tiny_model}\noutput: run\nload: {{device: cpu, dtype: float32}}\ndata: {{source: rows.jsonl}}\n"
        "train: {max_steps: 2, save_every: 1}\nask: {questions: []}\n"
    )
    brief = ["--load", "device=cpu", "--load", "dtype=float32"]
    verbs = [
        ["data", "c.yaml"],
        ["plan", "c.yaml"],
        ["train", "c.yaml"],
        ["merge", "run", *brief],
        ["export", "run", "--gguf", "f16", "-o", "m.gguf", *brief],
        ["train", "c.yaml", "model=m.gguf", "output=rung"],  # PEFT looks for a base's config.json, which this has not
        ["ask", "run", "3 + 4?", "--max-tokens", "4", *brief],
        ["infer", "run", "q.jsonl", "-o", "r.json", "--engine", "transformers", *brief],
        ["eval", "run", "rows.jsonl", "--sample", "2", "--engine", "transformers", *brief],
        ["report", "run"],
    ]
    program = (
        "import sys, json\nfrom typer.testing import CliRunner\nfrom thinktune.cli import app\n"
        "for verb in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(app, verb)\n"
        "    assert done.exit_code == 0, (verb, done.output, done.exception)"
    )
    assert not connections(["-c", program, json.dumps(verbs)], tmp_path)
