"""Result files of thinktune and of other tools, read into samples by id.

A file is our result file, a list or JSON lines of objects with an id, one object from ids to contents, or the lines of
a batch API. The content of an entry is looked for under the keys that engines and harnesses write (`_CONTENT`): a text,
a list of samples, or the tool's own objects with text and finish reason in them, to any depth. A thought that stands
apart (`reasoning_content`) is put into `<think>…</think>` before the content. `error` stands in place of a sample
that failed, and a finish reason of length tells one that was cut off.

An unreadable entry becomes an error of its item; a file in which nothing can be read is refused, with the keys seen.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thinktune.errors import DataError
from thinktune.files import foreign_kind
from thinktune.inference.engines.base import Completion
from thinktune.tags import valid_text

LISTED = 20
"""The most ids or lines that a message names."""
_CONTENT = (
    "content", "completion", "prediction", "predict", "generated_text", "model_output", "outputs", "response", "output",
    "text", "completions", "predictions", "responses", "generations", "generation", "resps", "filtered_resps",
    "output_text", "model_response", "pred",
)  # fmt: skip
# Only where objects or lists stand under them: by themselves they are no texts that a model wrote.
_WRAPPERS = ("choices", "message", "candidates", "result", "body", "parts")
_THOUGHT = ("reasoning_content", "reasoning", "thinking", "thought")
_IDS = ("id", "custom_id", "task_id", "question_id", "doc_id", "request_id")
_LISTS = ("results", "predictions", "responses", "outputs", "data", "items", "samples", "instances")
_REASONS = ("finish_reason", "stop_reason", "done_reason", "finishReason")
_LENGTH = ("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded")
_DEEPEST = 12
_FORMS = 'predictions are {"result": {"results": [{"id", "content"}, …]}}, a list of these, or one a line'


@dataclass
class Predictions:
    """The contents of a result file.

    Attributes:
        samples: by id, as text, in the order of the file.
        unread: ids with a sample that could not be read, and so is an error.
        keys: count of the keys with contents.
        passed_over: keys that might be meant as well, and say something else.
    """

    samples: dict[str, list[Completion]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    keys: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)

    def remarks(self) -> list[str]:
        """List notes on the file for its reader, a line each."""
        said = []
        if self.unread:
            said.append(f"{len(self.unread)} predictions cannot be read and are errors: {some(self.unread)}")
        if self.passed_over:
            others = ", ".join(sorted(self.passed_over))
            said.append(f"predictions were read from {', '.join(self.keys)}; {others} says something else and was not")
        return said


def read_result_file(file: Path) -> Predictions:
    """Read a result file, in any of the forms that the module names.

    Raises:
        DataError: the file cannot be read, is empty, or in another form; or nothing in it is a prediction.
    """
    found = Predictions()
    faults: list[str] = []
    seen: Counter[str] = Counter()
    useful = False
    for number, entry in enumerate(_entries(read_text(file)), start=1):
        name = _id_of(entry)
        if name is None:
            faults.append(f"entry {number} {_without_id(entry)}")
            continue
        seen.update(map(str, entry))
        reader = _Reader(found)
        samples = reader.read_entry(entry)
        useful = useful or not reader.unread or any(sample.error is None for sample in samples)
        if reader.unread and name not in found.samples:
            found.unread.append(name)
        before = found.samples.setdefault(name, [])
        before += [replace(each, request_id=name, index=at) for at, each in enumerate(samples, start=len(before))]
    if faults:
        raise DataError(f"{file}: {len(faults)} entries cannot be used:\n" + "\n".join(faults[:LISTED]), hint=_FORMS)
    if not found.samples:
        raise DataError(f"{file} has no predictions", hint=_FORMS)
    if not useful:
        keys = ", ".join(f"{valid_text(key)!r}" for key, _ in seen.most_common(LISTED))
        raise DataError(
            f"{file}: no prediction can be read; the keys seen are {keys}",
            hint=f"a prediction stands under one of {', '.join(_CONTENT)}",
        )
    return found


def read_text(file: Path) -> str:
    """Read the text of a file of JSON.

    Raises:
        DataError: it cannot be read, is empty, or is no UTF-8 text.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    if kind := foreign_kind(raw[:4]):
        raise DataError(f"{file} is {kind}, not UTF-8 text", hint="unpack or convert it first")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{file} is not UTF-8 text (line {line})", hint="unpack or convert it first") from error
    if not text.strip():
        raise DataError(f"{file} is empty")
    return text


def parse(text: str) -> Any:
    """Parse a JSON text, with halves of surrogate pairs replaced.

    Raises:
        ValueError: it is none, or cannot be read; the message says which.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("is not JSON") from None
    except ValueError:
        raise ValueError("holds a number with more digits than can be read") from None
    except RecursionError:
        raise ValueError("is nested too deep") from None
    return _valid(value) if "\\ud" in text or "\\uD" in text else value


def identity(value: Any) -> str | None:
    """Return an id as text, so that 1, "1" and 1.0 are one; None if it is neither a text nor a whole number."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else None
    return str(value) if str(value).strip() else None


def some(ids: Sequence[str], count: int = LISTED) -> str:
    """Name the first of many ids, and count the rest."""
    return ", ".join(ids[:count]) + (f" and {len(ids) - count} more" if len(ids) > count else "")


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, list):
        return [_valid(each) for each in value]
    return {valid_text(key): _valid(each) for key, each in value.items()} if isinstance(value, dict) else value


def _entries(text: str) -> Iterable[Any]:
    try:
        whole = parse(text)
    except ValueError:
        whole = None
    if isinstance(whole, dict) and isinstance(whole.get("result"), dict) and _id_of(whole) is None:
        whole = whole["result"]
    if isinstance(whole, list):
        return whole
    if isinstance(whole, dict) and _id_of(whole) is None:
        for name in _LISTS:
            entries = whole.get(name)
            if isinstance(entries, list) and (name == "results" or any(_id_of(entry) for entry in entries)):
                return entries
        if not whole.keys() & {*_CONTENT, *_WRAPPERS}:
            return [{"id": name, "content": content} for name, content in whole.items()]
    return [_parse_line(line) for line in text.split("\n") if line.strip()]


def _parse_line(line: str) -> Any:
    try:
        return parse(line)
    except ValueError as error:
        return error


def _id_of(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return None
    # Lines of batch APIs have an id of their own besides that of the item.
    names = ("custom_id", *_IDS) if entry.get("custom_id") is not None else _IDS
    return next((name for key in names if (name := identity(entry.get(key))) is not None), None)


def _without_id(entry: Any) -> str:
    if isinstance(entry, ValueError):
        return f"is not an object with an id: it {entry}"
    if not isinstance(entry, dict):
        return "is not an object with an id"
    keys = ", ".join(repr(key) for key in list(entry)[:LISTED])
    return f"is not an object with an id (a text or a whole number): its keys are {keys}"


class _Reader:
    """Reads one entry, and keeps account in `found` of the keys that it was read from."""

    def __init__(self, found: Predictions) -> None:
        self._found = found
        self.unread = False

    def read_entry(self, entry: Mapping[str, Any]) -> list[Completion]:
        samples = self._of_object(entry, None, 0)
        if samples is None:
            self.unread = True
            keys = ", ".join(str(key) for key in entry if key not in _IDS)
            return [_failed(f"has no content that can be read; its keys are {keys or 'none'}")]
        return samples

    def _of_object(self, entry: Mapping[str, Any], reason: Any, depth: int) -> list[Completion] | None:
        """Read the samples of an object; None if there are neither samples nor an error."""
        if depth > _DEEPEST:
            return None
        reason = _finish_reason(entry, reason)
        if failure := _failure(entry):
            return [_failed(failure)]
        samples = self._under_keys(entry, reason, depth)
        thought = next((entry[key] for key in _THOUGHT if isinstance(entry.get(key), str) and entry[key].strip()), None)
        if samples is None and isinstance(refusal := entry.get("refusal"), str) and refusal:
            samples = [_sample(refusal, reason)]
        told = samples is not None and any(sample.text.strip() or sample.error for sample in samples)
        if not told and (error := _message(entry.get("error"))):
            return [_failed(error)]
        if samples is None and (thought is not None or entry.keys() & {*_CONTENT, *_WRAPPERS}):
            # Null in place of a text: cut off within its thought, or something else than a text was made.
            if thought is not None or _reason(reason) == "length":
                samples = [_sample("", reason)]
            elif isinstance(reason, str):
                samples = [_failed(f"there is no text; the finish reason is {reason}")]
        return samples if samples is None or thought is None else [_with_thought(each, thought) for each in samples]

    def _under_keys(self, entry: Mapping[str, Any], reason: Any, depth: int) -> list[Completion] | None:
        """Read the samples under the first key that has some."""
        samples: list[Completion] | None = None
        for key in (*_CONTENT, *_WRAPPERS):
            value = entry.get(key)
            if value is None or (key in _WRAPPERS and not _is_wrapper(value)):
                continue
            if samples is not None and (depth or key == "filtered_resps" or not isinstance(value, str)):
                continue
            read = self._of_parts if key == "parts" and isinstance(value, list) else self._of_value
            found = read(value, reason, depth + 1)
            if samples is None and found is not None:
                samples = found
                self._found.keys[key] += depth == 0
            elif found is not None and found != samples:
                self._found.passed_over[key] += 1
        return samples

    def _of_value(self, value: Any, reason: Any, depth: int) -> list[Completion] | None:
        if depth > _DEEPEST:
            return None
        if isinstance(value, str):
            return [_sample(value, reason)]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return [_sample(str(value), reason)] if math.isfinite(value) else None
        if isinstance(value, dict):
            return self._of_object(value, reason, depth)
        if isinstance(value, list):
            return self._of_list(value, reason, depth)
        return None

    def _of_list(self, values: list[Any], reason: Any, depth: int) -> list[Completion] | None:
        """Read the samples of a list; or one sample, whose parts or messages these are."""
        if not values:
            return None
        objects = [value for value in values if isinstance(value, dict)]
        if len(objects) == len(values) and all("role" in value for value in objects):
            said = [value for value in objects if value["role"] in ("assistant", "model", "gpt")]
            return self._of_object(said[-1], reason, depth) if said else None
        if len(objects) == len(values) and all(isinstance(value.get("type"), str) for value in objects):
            return self._of_parts(objects, reason, depth)
        reasons = reason if isinstance(reason, list) and len(reason) == len(values) else [reason] * len(values)
        samples = []
        for value, each in zip(values, reasons, strict=True):
            found = self._of_value(value, each, depth + 1)
            if found is None:
                self.unread = True
                found = [_failed("the content is not a text")]
            samples += found
        return samples

    def _of_parts(self, parts: list[dict[str, Any]], reason: Any, depth: int) -> list[Completion] | None:
        """Read typed parts of one message, thoughts among them, or of one reply (`message` beside `reasoning`)."""
        text, thought, inner = "", "", None
        for part in parts:
            if part.get("type") in ("thinking", "reasoning") or part.get("thought") is True:
                thought += next((part[key] for key in ("thinking", "text") if isinstance(part.get(key), str)), "")
            elif isinstance(said := part.get("text", part.get("refusal")), str):
                text += said
            elif part.get("type") == "message":
                inner = self._of_object(part, reason, depth + 1) or inner
        samples = inner or ([_sample(text, reason)] if text or thought else None)
        return [_with_thought(each, thought) for each in samples] if samples and thought else samples


def _sample(text: str, reason: Any) -> Completion:
    """Make a sample, whose id and index are those of its entry."""
    return Completion("", 0, text, finish_reason=_reason(reason))


def _failed(problem: str) -> Completion:
    return Completion("", 0, "", (), "error", problem)


def _with_thought(sample: Completion, thought: str) -> Completion:
    if sample.error is not None or "<think>" in sample.text:
        return sample
    if not sample.text and sample.finish_reason == "length":
        return replace(sample, text=f"<think>{thought}")
    return replace(sample, text=f"<think>{thought}</think> {sample.text.removeprefix('</think>').lstrip()}")


def _is_wrapper(value: Any) -> bool:
    """Return whether there are replies in a value; a question's own `choices` are none."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, dict) for each in value)
    return isinstance(value, dict) and "label" not in value


def _finish_reason(entry: Mapping[str, Any], outer: Any) -> Any:
    details = entry.get("incomplete_details") or entry.get("details")
    if isinstance(details, dict) and (reason := details.get("reason") or details.get("finish_reason")):
        return reason
    return next((entry[key] for key in _REASONS if entry.get(key) is not None), outer)


def _reason(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):  # as sglang writes it
        value = value.get("type")
    text = str(value or "stop")
    return "length" if text.lower() in _LENGTH else text


def _failure(entry: Mapping[str, Any]) -> str | None:
    """Return the message of an API's error response, at any place; None if it is no error."""
    status, body = entry.get("status_code"), entry.get("body")
    if isinstance(status, int) and status >= 400:
        return _message(body) or f"status {status}"
    if entry.get("object") == "error" or entry.get("type") in ("error", "errored"):
        return _message(entry) or "error"
    return None


def _message(error: Any) -> str | None:
    """Return the text of an error: itself, or its message or that of an error within it; None if it has none."""
    for _ in range(_DEEPEST):
        if not isinstance(error, dict):
            break
        error = next((error[key] for key in ("error", "message", "detail", "code", "type") if error.get(key)), None)
    if error is None or error in (False, "", [], 0):
        return None
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
