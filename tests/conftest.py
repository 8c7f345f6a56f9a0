"""A real chat model small enough for tests: two Llama layers over a byte-level BPE trained here, no network."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined
    if importlib.util.find_spec("triton"):
        import interpreted_kernels  # noqa: F401 - makes them twice as fast

# Ctrl-C means nothing to what a script starts in the background; tests of it, and what they start, need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

CORPUS = [
    "<think>First we add the tens, then the ones. 12 + 30 = 42, and 42 + 5 = 47.</think> <answer>47</answer>",
    "You are a helpful assistant. How many apples are left? There are 3 apples and 14 pears in the basket.",
    "system\nuser\nassistant\n 0 1 2 3 4 5 6 7 8 9 + - * / = ( ) { } \\boxed{12} \\frac{3}{4} 小明有三个苹果",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a tiny model.<|im_end|>\n"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def make_tiny_model(folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Save a tiny random Llama with tokenizer to `folder`, in float32 safetensors."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **overrides}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_base_model(folder: Path) -> Path:
    """One that knows <|endoftext|> alone as an end, as base models do; its template ends turns otherwise."""
    from transformers import AutoTokenizer

    make_tiny_model(folder, eos_token_id=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    return folder


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows to a JSON lines file and return its name."""

    def write_rows(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random chat model. Read-only: copy it before changing anything in it."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def builtin_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the built-in model is converted once, for all workers of a run of tests."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "builtin-cache"


_frozen = 0


@pytest.fixture(autouse=True)
def _imports_are_no_garbage() -> None:
    """Keep what is imported out of the looks for garbage: two seconds each, and a training takes two of them."""
    global _frozen
    if len(sys.modules) > _frozen + 100:
        _frozen = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the person's caches, or reaches a network."""
    monkeypatch.setenv("THINKTUNE_CACHE", str(tmp_path / "thinktune-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def _builtin_model(builtin_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of the built-in model that do not look at its conversion."""
    monkeypatch.setenv("THINKTUNE_CACHE", str(builtin_cache))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system."""
    from playwright import sync_api

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
