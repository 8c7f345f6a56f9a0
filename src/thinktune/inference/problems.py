"""Problems with their gold records, to be answered and scored: rows with answers, or a batch file with gold in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from thinktune.config import Data, Format, Load
from thinktune.data import load_examples
from thinktune.data.files import read_path
from thinktune.errors import DataError
from thinktune.inference.batch_file import Messages, read_batch_file
from thinktune.scoring import ROW_TASK, TASKS
from thinktune.tags import valid_text


@dataclass(frozen=True)
class GoldItem:
    """A problem to answer.

    Attributes:
        id: source and row, or the id of its batch item.
        type: a name of `TASKS`.
        gold: the gold record, with the question as `prompt`.
    """

    id: str
    messages: Messages
    type: str
    gold: Mapping[str, Any]


def read_problems(data: Data, fmt: Format, seed: int, *, load: Load) -> list[GoldItem]:
    """Read problems in an order drawn by seed, `data.sample` of them.

    The source is rows with answers, whose thoughts are not needed; or one local file with lines
    `{"id", "type", "prompt", "reference"}`: a batch file, each line with its gold record.

    Raises:
        BatchFileError, DataError: the file cannot be used; every faulty line is named.
        DataError, DownloadError, MissingExtra: see `data.load_examples`.
    """
    if len(data.sources) == 1 and _is_batch_file(path := Path(data.sources[0].source).expanduser(), data.split):
        items = _read_batch(path)
        Random(seed if data.seed is None else data.seed).shuffle(items)
        return items[: data.sample]
    examples, _ = load_examples(data, fmt, seed, load=load, need_thought=False)
    return [
        GoldItem(
            f"{example.source}:{example.row}",
            example.messages,
            ROW_TASK.name,
            {"reference": valid_text(example.answer), "prompt": valid_text(example.messages[-1]["content"])},
        )
        for example in examples
    ]


def _is_batch_file(path: Path, split: str) -> bool:
    """Return whether the first row of a local file has the keys of a batch item."""
    if not path.is_file() or path.suffix not in (".jsonl", ".ndjson"):
        return False
    first = next(islice(read_path(path, split), 1))
    return {"id", "type"} <= first.fields.keys() and not first.fields.keys().isdisjoint({"prompt", "messages"})


def _read_batch(path: Path) -> list[GoldItem]:
    items = read_batch_file(path)
    lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    problems, faults = [], []
    for item, line in zip(items, lines, strict=True):
        gold = {"prompt": item.messages[-1]["content"], **json.loads(line)}
        task = TASKS[item.type]
        if task.gold_fault is not None and (fault := task.gold_fault(gold)):
            faults.append(f"id {item.id!r}: {fault}")
        problems.append(GoldItem(str(item.id), item.messages, item.type, gold))
    if faults:
        raise DataError(
            f"{path}: {len(faults)} problems cannot be scored:\n" + "\n".join(faults),
            hint='a line is {"id": …, "type": …, "prompt": …, "reference": …}; code has tests',
        )
    return problems
