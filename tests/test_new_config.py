"""`thinktune init`: the config it writes fits the rows, is understood, and holds out what it scores on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from thinktune.config import Data, Format, Load, load_config
from thinktune.data import load_examples, prepare
from thinktune.errors import UsageError
from thinktune.models import load_tokenizer, make_chat
from thinktune.planner.new_config import NewConfig, write_config


def write_rows(folder: Path, count: int, **changes: dict[str, Any]) -> Path:
    """Write rows of two turns a prompt; `changes` are other fields of rows by number, as r3={…}."""
    rows = [
        {"question": f"What is {at // 2} + 1?", "answer": f"<think>{at // 2} and 1.</think> {at // 2 + 1}"}
        for at in range(count)
    ]
    for name, fields in changes.items():
        rows[int(name[1:])] |= fields
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "mine.jsonl"


def make(rows: Path, model: Path) -> NewConfig:
    return write_config(rows, rows.with_suffix(""), str(model), load=Load())


def test_every_setting_of_a_new_config_has_a_comment_and_all_rows_fit(tmp_path: Path, tiny_model: Path) -> None:
    made = make(write_rows(tmp_path, 60), tiny_model)
    lines = made.file.read_text(encoding="utf-8").splitlines()
    settings = [line for line in lines if re.match(r"\s*[a-z_]+: \S", line)]
    assert len(settings) > 8
    assert [line for line in settings if " # " not in line] == []
    config = load_config(made.file)
    prepared = prepare(config, make_chat(load_tokenizer(tiny_model), {}))
    assert (len(prepared.train), prepared.report.dropped) == (made.train, {})
    assert made.train + made.test == 60
    assert config.pack_length >= config.data.max_length >= max(map(len, prepared.train))


def test_no_prompt_of_the_held_out_rows_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    made = make(write_rows(tmp_path, 60), tiny_model)
    folder = str(made.file.parent)
    prompts = [
        {
            example.messages[-1]["content"]
            for example in load_examples(Data(source=folder), Format(), 1, load=Load(), split=split)[0]
        }
        for split in ("train", "test")
    ]
    assert made.test >= 6
    assert not prompts[0] & prompts[1]


def test_rows_that_cannot_be_used_are_said_with_the_setting_and_an_outlier_does_not_decide(
    tmp_path: Path, tiny_model: Path
) -> None:
    long = {"answer": "<think>" + "so " * 3000 + "</think> 1"}
    made = make(write_rows(tmp_path, 60, r1={"answer": "2"}, r4=long), tiny_model)
    assert any(line.startswith("1 no thought: data.format") for line in made.remedies())
    assert made.longer == 1
    assert made.max_length < 512
    assert "1 are longer" in str(made)


def test_few_rows_are_all_trained_and_a_folder_is_never_written_over(tmp_path: Path, tiny_model: Path) -> None:
    rows = write_rows(tmp_path, 8)
    made = make(rows, tiny_model)
    assert (made.train, made.test, load_config(made.file).eval.data) == (8, 0, None)
    with pytest.raises(UsageError, match="is there already"):
        make(rows, tiny_model)
