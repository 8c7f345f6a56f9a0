"""The README's commands are those of the command line, its files are there, and its examples run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from thinktune.cli import app
from thinktune.config import load_config

ROOT = Path(__file__).parents[1]
READMES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")}
GROUP = typer.main.get_group(app)


def commands(text: str) -> Iterator[list[str]]:
    """Yield each command line of the shell blocks, of inline code, and of the table of verbs, without its comment."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`((?:thinktune|make) [^`]+)`", prose)
    table = re.search(r"^\| `quickstart` .*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    verbs = [f"thinktune {verb}" for verb in re.findall(r"^\| `([^`]+)`", table[0] if table else "", re.MULTILINE)]
    for line in [*"".join(blocks).splitlines(), *inline, *verbs]:
        for command in re.split(r"&&", line):
            if words := shlex.split(re.sub(r"[\[\]…]", "", command), comments=True):
                yield words


COMMANDS = [
    pytest.param(words, id=f"{readme}: {' '.join(words)}")
    for readme, text in READMES.items()
    for words in commands(text)
]


def test_both_readmes_show_commands_of_most_verbs() -> None:
    for text in READMES.values():
        shown = {words[1] for words in commands(text) if words[0] == "thinktune"}
        assert shown >= set(GROUP.commands)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_of_the_readme_is_one_that_the_command_line_takes(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "thinktune":
        verb, *rest = [word for word in arguments if word != "--debug"]
        if verb.startswith("--") or verb.isupper():
            return
        given = GROUP.commands[verb].make_context(verb, rest).params
        if str(given.get("config", "")).startswith("configs/"):
            load_config(given["config"], given.get("overrides") or [])
    else:
        assert program in ("pip", ".")


@pytest.mark.slow
def test_the_readmes_python_runs_on_a_run_of_its_quickstart(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    small = [f"model={tiny_model}", "train.max_steps=1", "eval.data=null", "infer.file=null", "ask.questions=[]"]
    runner = CliRunner()
    made = runner.invoke(app, ["run", "configs/quickstart.yaml", *small], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    asked = runner.invoke(app, ["ask", "quickstart", "What is 7 times 8?"], catch_exceptions=False)
    assert asked.exit_code == 0, asked.output
    for text in READMES.values():
        (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        exec(compile(block, "README", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2
