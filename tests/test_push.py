"""Models given away: their cards, and both hubs' clients, for real, against local servers that take a repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hub_server import Hub, serve
from test_compare import write_scores
from thinktune.errors import UsageError
from thinktune.export.model_card import base_of, require_id, write_cards
from thinktune.run_folder import RunFolder
from training import make_config, quietly

KINDS = ("hub", "modelscope")


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("push") / "mine"
    quietly(make_config(tiny_model, run, train={"max_steps": 1}, data={"sample": 8}))
    write_scores(run / "eval" / "tuned", "rrrw")
    write_scores(run / "eval" / "base", "wwww")
    return run


def push(
    kind: str, hub: Hub, run: Path, home: Path, *options: str, token: str = "secret"
) -> subprocess.CompletedProcess[str]:
    """The clients read their settings when they are imported: a process of its own."""
    environment = {
        **os.environ,
        **dict.fromkeys(("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"), hub.url),
        **dict.fromkeys(("HF_HOME", "MODELSCOPE_CACHE", "MODELSCOPE_HOME"), str(home)),
        **dict.fromkeys(("HF_TOKEN", "MODELSCOPE_API_TOKEN"), token),
        **dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), "1"),
        "HF_HUB_OFFLINE": "0",
    }
    target = ("ms:" if kind == "modelscope" else "") + hub.repository
    command = [sys.executable, "-m", "thinktune", "push", str(run), target, "--base", "someone/base", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_arrives_whole_and_private_and_names_its_base_by_id(
    kind: str, trained: Path, tmp_path: Path
) -> None:
    with serve(f"{kind} push", Hub("me/mine", tmp_path)) as hub:
        done = push(kind, hub, trained, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.private is True
    weights = "adapter_model.safetensors"
    assert hub.pushed[weights] == (trained / "adapter" / weights).read_bytes()
    assert json.loads(hub.pushed["adapter_config.json"])["base_model_name_or_path"] == "someone/base"
    assert json.loads(hub.pushed["thinktune.json"])["base_model"] == "someone/base"
    texts = [data.decode() for name, data in hub.pushed.items() if name.endswith((".json", ".md", ".jinja"))]
    assert not any(str(trained.parent) in text for text in texts)
    assert "75.0% (30.1% to 95.4%)" in hub.pushed["README.md"].decode()
    assert "PeftModel.from_pretrained" in hub.pushed["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_public_is_not_added_to_unasked_and_a_refusal_is_one_line(
    kind: str, trained: Path, tmp_path: Path
) -> None:
    with serve(f"{kind} push", Hub("me/mine", tmp_path, private=False)) as hub:
        unasked = push(kind, hub, trained, tmp_path / "a")
        assert (unasked.returncode, hub.pushed) == (2, {})
        assert "is there, and public" in unasked.stderr
        refused = push(kind, hub, trained, tmp_path / "b", "--public", token="wrong")
        assert (refused.returncode, hub.pushed) == (1, {})
        assert "sign in with a token that may write" in refused.stderr
        assert "Traceback" not in refused.stderr
        meant = push(kind, hub, trained, tmp_path / "c", "--public")
    assert meant.returncode == 0, meant.stderr
    assert "README.md" in hub.pushed


def test_a_card_has_a_header_that_hubs_read_and_no_path_of_this_machine(trained: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(trained, tmp_path / "mine"))
    write_cards(run)
    card = (run.adapter / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["pipeline_tag"], "base_model" in header) == (
        "peft",
        "text-generation",
        False,
    )
    assert str(trained.parent) not in card
    assert str(Path(run.read_config().model).parent) not in card
    for words in ("| right | 0.0% (0.0% to 49.0%) | 75.0% (30.1% to 95.4%) |", "rank 4", "builtin:arithmetic"):
        assert words in card


def test_a_base_that_nobody_else_has_is_refused() -> None:
    assert require_id(base_of("Qwen/Qwen2.5-3B-Instruct")) == "Qwen/Qwen2.5-3B-Instruct"
    with pytest.raises(UsageError, match="a folder of this machine"):
        require_id(base_of("/somewhere/model"))
