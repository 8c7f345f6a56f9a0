"""Result files: `{"result": {"results": [{"id", "content"}, …]}}`, plain JSON lines of `{"id", "content",
"finish_reason"}`, a line a sample, or the lines of OpenAI's batch API.

Results are taken one by one and written as they come, so that a long file needs no memory for them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from thinktune.files import replacing_text
from thinktune.inference.batch_file import Item
from thinktune.inference.engines.base import Completion
from thinktune.scoring import TASKS

ResultFormat = Literal["results", "lines", "openai"]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one item: an `error`, or a completion for each sample. `prompt_tokens` is 0 if unknown."""

    item: Item
    completions: Sequence[Completion]
    error: str | None
    prompt_tokens: int = 0


def write_results(file: Path, results: Iterable[Result], *, form: ResultFormat, model: str) -> None:
    """Replace `file` atomically.

    Args:
        form: "results" (ours), "lines" or "openai".
        model: name of the model in OpenAI's lines.
    """
    with replacing_text(file) as stream:
        if form == "results":
            _write_ours(stream, results)
            return
        for result in results:
            for line in _plain_lines(result) if form == "lines" else [_openai_line(result, model)]:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_ours(stream: TextIO, results: Iterable[Result]) -> None:
    """Write the whole as `json.dump(…, indent=2)` would."""
    stream.write('{\n  "result": {\n    "results": [')
    for number, result in enumerate(results):
        text = json.dumps(_our_result(result), indent=2, ensure_ascii=False)
        stream.write(",\n" if number else "\n")
        # A line break inside of a text is escaped: those that are there are the indentation's.
        stream.write("\n".join(f"      {line}" for line in text.split("\n")))
    stream.write("\n    ]\n  }\n}\n")


def _our_result(result: Result) -> dict[str, Any]:
    item = result.item
    if result.error is not None:
        return {"id": item.id, "error": result.error}
    several = TASKS[item.type].sampling.n > 1 or len(result.completions) > 1
    texts = [each.text for each in result.completions]
    return {"id": item.id, "content": texts if several else texts[0]}


def _plain_lines(result: Result) -> list[dict[str, Any]]:
    if result.error is not None:
        return [{"id": result.item.id, "error": result.error}]
    return [plain_line(result.item.id, each) for each in result.completions]


def plain_line(name: str | int | None, completion: Completion) -> dict[str, Any]:
    """Return the plain line of a completion under the id of its item."""
    if completion.error is not None:
        return {"id": name, "error": completion.error}
    return {"id": name, "content": completion.text, "finish_reason": completion.finish_reason}


def _openai_line(result: Result, model: str) -> dict[str, Any]:
    """Return the line of OpenAI's batch API (https://platform.openai.com/docs/api-reference/batch/request-output)."""
    name = None if result.item.id is None else str(result.item.id)
    line: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": name, "response": None, "error": None}
    if result.error is not None:
        return {**line, "error": {"code": "generation_failed", "message": result.error}}
    written = sum(each.tokens for each in result.completions)
    choices = [
        {
            "index": each.index,
            "message": {"role": "assistant", "content": each.text},
            "logprobs": None,
            "finish_reason": each.finish_reason,
        }
        for each in result.completions
    ]
    body = {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": result.prompt_tokens + written,
        },
    }
    return {**line, "response": {"status_code": 200, "request_id": f"req_{name}", "body": body}}
