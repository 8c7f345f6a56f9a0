"""Tokenizers that are larger than their model, and padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from conftest import make_tiny_model
from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.models import load_model, load_tokenizer

FLOAT32 = Load(dtype="float32", device="cpu")


def changed(model: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def write_turns_with(token: str) -> Callable[[Any], None]:
    def change(tokenizer: Any) -> None:
        tokenizer.add_special_tokens({"additional_special_tokens": [token]})
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", token)

    return change


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]}), "2 of its tokens"),
        (lambda t: t.add_tokens(["</answer>"]), "'</answer>'"),
        (lambda t: t.add_tokens(["hello"]), "'hello'"),
        (write_turns_with("<|turn|>"), r"'<\|turn\|>'"),
    ],
)
def test_a_token_without_embedding_that_text_leads_to_is_refused_before_loading(
    tiny_model: Path, tmp_path: Path, change: Callable[[Any], object], named: str
) -> None:
    model = changed(tiny_model, tmp_path / "m", change)
    with pytest.raises(ModelError, match=f"larger than the model: .*{named}"):
        load_tokenizer(model)  # as `data` and `plan` do, without the weights


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"99 of its tokens, the first '.*' \(300\), are beyond the 300 embeddings"):
        load_model(make_tiny_model(tmp_path / "m", vocab_size=300), load=FLOAT32)


@pytest.mark.parametrize("token", ["<image_soft_token>", "<|eot|>"])
def test_a_special_token_that_no_text_leads_to_may_lie_beyond_the_embeddings(
    tiny_model: Path, tmp_path: Path, token: str
) -> None:
    model = changed(tiny_model, tmp_path / "m", lambda t: t.add_special_tokens({"additional_special_tokens": [token]}))
    loaded = load_model(model, load=FLOAT32)
    prompt = loaded.chat.prompt_ids([{"role": "user", "content": f"{token}<|im_end|>"}])
    assert max(prompt) < loaded.model.config.vocab_size


def test_padding_beyond_the_embeddings_is_replaced(tiny_model: Path, tmp_path: Path) -> None:
    model = changed(tiny_model, tmp_path / "m", lambda t: t.add_special_tokens({"pad_token": "[PAD]"}))
    assert load_tokenizer(model).pad_token == "<|endoftext|>"


def test_more_embeddings_than_tokens_are_fine(tmp_path: Path) -> None:
    assert load_model(make_tiny_model(tmp_path / "m", vocab_size=512), load=FLOAT32).chat


def test_the_size_of_the_text_model_counts_where_there_are_several(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "m")
    config = json.loads((model / "config.json").read_text())
    config["text_config"] = {"vocab_size": config.pop("vocab_size") - 1}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="1 of its tokens"):
        load_tokenizer(model)
