"""`thinktune init ROWS`: a config fitted to rows of one's own, with the rows split into training and test.

rows/rows.yaml      the config, a comment a line
rows/train.jsonl    the rows to train on, and those that cannot be used, which `thinktune data` counts
rows/test.jsonl     rows held out for scoring; no prompt of them is trained
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from thinktune.config import SEED, Data, Format, Load, load_config
from thinktune.data import DataReport, Example, load_examples
from thinktune.data.files import read_path
from thinktune.data.packing import pack
from thinktune.data.report import setting_that_keeps
from thinktune.data.tokens import Tokens, tokenize
from thinktune.errors import UsageError
from thinktune.files import write_json_lines, write_text
from thinktune.models import builtin

_MOST_TOKENS = 4096
"""Up to here the longest example decides data.max_length; beyond, 98% of them do."""
_MOST_MEASURED = 5000
_STEPS = 150
"""Optimizer steps that a small data set is given at least, where that takes more than one epoch."""
_MOST_EPOCHS = 3
GPU_MODEL = "Qwen/Qwen2.5-3B-Instruct"
"""The base model of a new config on a machine with a GPU."""


@dataclass(frozen=True)
class NewConfig:
    """A config that was written, and what its numbers come from."""

    file: Path
    report: DataReport
    train: int
    test: int
    max_length: int
    longer: int
    longest: int

    def __str__(self) -> str:
        kept = f"{self.train:,} rows to train on, {self.test:,} held out, max_length {self.max_length:,}"
        lost = f" ({self.longer:,} are longer, up to {self.longest:,} tokens, and are dropped)" if self.longer else ""
        return f"{self.file}: {kept}{lost}"

    def remedies(self) -> Iterator[str]:
        """Yield, for each reason that rows were dropped for, the setting that keeps them."""
        for source in self.report.sources:
            for reason, numbers in source.dropped.items():
                remedy = setting_that_keeps(reason) or "data.format: module:function can read such rows otherwise"
                yield f"{len(numbers):,} {reason}: {remedy}"


def default_model(load: Load) -> str:
    """Choose a base model by the machine: the built-in one where there is no GPU."""
    from thinktune.models.device import choose_device

    return GPU_MODEL if choose_device(load.device).type == "cuda" else builtin.NAME


def write_config(rows: Path, folder: Path, model: str, *, load: Load, seed: int = SEED) -> NewConfig:
    """Read and tokenise `rows`, and write a config for them to `folder`, beside the rows in two splits.

    Raises:
        UsageError: the folder is there already.
        DataError: the rows cannot be read, or none is usable.
        ModelError, DownloadError: the model's tokenizer cannot be had.
    """
    if folder.exists():
        raise UsageError(f"{folder} is there already", hint="choose another folder with -o FOLDER")
    examples, report = load_examples(Data(source=str(rows)), Format(), seed, load=load)
    test = _test_rows(examples)
    tokens = _tokenized(examples, model, load, seed)
    lengths = sorted(map(len, tokens))
    max_length = _max_length(lengths)
    longer = sum(length > max_length for length in lengths)
    train = [example for example in examples if example.row not in test]
    text = _text(folder, model, tokens, train, len(test), max_length, [each for each in examples if each.row in test])
    write_json_lines(folder / "train.jsonl", (row for number, row in _raw(rows) if number not in test))
    if test:
        write_json_lines(folder / "test.jsonl", (row for number, row in _raw(rows) if number in test))
    file = folder / f"{folder.name}.yaml"
    write_text(file, text)
    load_config(file)  # a value that does not fit would be our fault: it is told here
    return NewConfig(file, report, len(train), len(test), max_length, longer, lengths[-1])


def _raw(rows: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows that can be read, with their numbers; values that JSON does not have become text."""
    return ((row.number, row.fields) for row in read_path(rows, "train") if not row.fault)


def _test_rows(examples: Sequence[Example]) -> set[int]:
    """Choose the rows to hold out: a tenth, 200 at most, and with each all others of its prompt; under 20, none."""
    if len(examples) < 20:
        return set()
    prompts = {example.messages[-1]["content"] for example in examples[: min(200, math.ceil(len(examples) / 10))]}
    held = {example.row for example in examples if example.messages[-1]["content"] in prompts}
    return held if len(held) < len(examples) / 2 else set()


def _tokenized(examples: Sequence[Example], model: str, load: Load, seed: int) -> list[Tokens]:
    from thinktune.models import load_tokenizer, make_chat

    chat = make_chat(load_tokenizer(model, load=load), {})
    drawn = Random(seed).sample(list(examples), min(len(examples), _MOST_MEASURED))
    return list(tokenize(drawn, chat, Format().template))


def _max_length(lengths: Sequence[int]) -> int:
    """Fit the longest example, or where that is an outlier, or beyond what most machines train, nearly all."""
    longest, most = lengths[-1], lengths[int(0.98 * (len(lengths) - 1))]
    fitting = longest if longest <= max(2 * most, 512) else most
    return _up(min(fitting, max(_MOST_TOKENS, most)))


def _up(tokens: float, step: int = 64) -> int:
    return max(step, math.ceil(tokens / step) * step)


def _text(
    folder: Path,
    model: str,
    tokens: Sequence[Tokens],
    train: Sequence[Example],
    test_count: int,
    max_length: int,
    test: Sequence[Example],
) -> str:
    """Write the config, a comment a line."""
    lengths = [len(each) for each in tokens]
    kept = [length for length in lengths if length <= max_length]
    total = sum(kept) / len(lengths) * len(train)
    small = model == builtin.NAME
    pack_length = max(max_length, min(_up(total / _STEPS), 512 if small else 8192))
    packs = len(pack(kept, pack_length)) / len(lengths) * len(train)  # of a few rows, many are not filled
    epochs = max(1, min(_MOST_EPOCHS, math.ceil(_STEPS / packs)))
    steps = math.ceil(packs * epochs)
    answer_tokens = _up(1.25 * max(each.trained for each in tokens if len(each) <= max_length))
    questions = sorted((each.messages[-1]["content"] for each in test or train), key=len)[: min(3, len(train))]
    lines = [
        (f"model: {_quoted(model)}", "the chat model that learns; any reference of docs/models.md"),
        ("", ""),
        ("data:", ""),
        (f"  source: {_quoted(str(folder))}", f"the folder of this file: {len(train):,} usable rows in train.jsonl"),
        (
            f"  max_length: {max_length}",
            f"the longest example has {max(lengths):,} tokens, the median {_median(lengths):,}",
        ),
        ("", ""),
        ("lora:", ""),
        ("  targets: auto", "adapters on every linear layer"),
        ("  r: 16", "rank; 8 to 64 are usual, more holds more and costs more"),
        ("", ""),
        ("train:", ""),
        (f"  pack_length: {pack_length}", f"tokens a step: about {steps:,} steps in all"),
        (f"  epochs: {epochs}", "how often each row is seen; watch the scores before taking more"),
        ("  learning_rate: auto", "by model, adapter and method; thinktune plan shows the number and its rule"),
        ("", ""),
        ("ask:", ""),
        ("  questions:", "answered when training ends; these are held out" if test else "answered when training ends"),
        *((f"    - {_quoted(question)}", "") for question in questions),
        (f"  sampling: {{ temperature: 0, max_tokens: {answer_tokens} }}", "a quarter more than the longest reply"),
    ]
    if test_count:
        lines += [
            ("", ""),
            ("eval:", ""),
            (f"  data: {_quoted(str(folder))}", "test.jsonl: its prompts are not trained"),
            (f"  sample: {min(200, test_count)}", "problems to score base and tuned model on"),
            ("  every: null", "a number of steps: score a few problems during training, too"),
            (f"  sampling: {{ max_tokens: {answer_tokens} }}", "greedy"),
        ]
    head = (
        f"# By thinktune init, from {len(train) + test_count:,} usable rows. Every setting: thinktune config FILE\n\n"
    )
    return head + "\n".join(f"{line} # {comment}" if comment else line for line, comment in lines) + "\n"


def _median(lengths: Sequence[int]) -> int:
    return sorted(lengths)[len(lengths) // 2]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # JSON's texts are YAML's
