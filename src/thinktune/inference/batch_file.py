"""Batch files: JSON lines in our own shape or in that of OpenAI's batch API, told apart line by line.

Ours is `{"id", "type", "prompt"}`, with `messages` instead of `prompt` for a conversation, and `system`, `sampling` and
`n` to override the profile of its type. OpenAI's is
`{"custom_id", "method", "url": "/v1/chat/completions", "body": {"model", "messages", …}}`
(https://platform.openai.com/docs/guides/batch); the model is the one thinktune is called with.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from thinktune.config import Infer, Sampling
from thinktune.errors import BatchFileError, ConfigError, UsageError
from thinktune.files import foreign_kind
from thinktune.inference.profiles import samplings as samplings_of
from thinktune.scoring import DEFAULT_TASK, TASKS
from thinktune.tags import valid_text

BUILTIN = "builtin:questions"
_OPENAI_TYPE = DEFAULT_TASK.name  # OpenAI's shape says nothing of types; the body's settings are put over its profile
_FIELDS = ("id", "type", "prompt", "messages", "system", "sampling", "n")
_ROLES = ("system", "user", "assistant")
Messages = tuple[Mapping[str, str], ...]


_UNSET = Sampling()


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a batch file. `problem` is set if the line is faulty and was let through."""

    id: str | int | None
    type: str = ""
    messages: Messages = ()
    sampling: Sampling = _UNSET
    problem: str | None = None


class _Fault(Exception):
    """The reason why a line cannot be used."""


def read_batch_file(
    path: str | Path, *, samplings: Mapping[str, Sampling] | None = None, skip_bad: bool = False
) -> list[Item]:
    """Read and check every line of a batch file, before any model is loaded.

    Args:
        path: JSON lines, UTF-8 with or without a byte order mark; `builtin:questions` for a small one.
        samplings: by item type; settings of a line override them. None: the default profile.
        skip_bad: turn faulty lines into items with a `problem` instead of refusing the file.

    Raises:
        BatchFileError: the file is missing or empty, or, listing all of them, lines are faulty.
    """
    reader = _Reader(samplings_of(Infer()) if samplings is None else samplings)
    items: list[Item] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        item = reader.read(line)
        name = str(item.id)
        if item.id is not None and name in lines_of:
            item = Item(item.id, item.type, problem=f"id {name!r} is used in line {lines_of[name]} already")
        elif item.id is not None:
            lines_of[name] = number
        items.append(replace(item, problem=f"line {number}: {item.problem}") if item.problem else item)
    problems = [item.problem for item in items if item.problem]
    if not items:
        raise BatchFileError(f"{path}: has no items", hint='a line is {"id": …, "type": …, "prompt": …}')
    if problems and not skip_bad:
        raise BatchFileError(
            f"{path}: {len(problems)} of {len(items)} lines cannot be used:\n" + "\n".join(problems),
            hint="correct them, or give --skip-bad to have them reported as errors in the result",
        )
    return items


def as_messages(question: str | Sequence[Mapping[str, Any]]) -> Messages:
    """Check a question, or a conversation that ends with one, against the rules of a batch file.

    Raises:
        UsageError: it is blank, or not made as it should be.
    """
    try:
        return _read_messages({"prompt": question} if isinstance(question, str) else {"messages": list(question)})
    except _Fault as fault:
        raise UsageError(str(fault), hint='a conversation is [{"role": "user", "content": …}, …]') from None


def _read_lines(path: str | Path) -> Iterator[bytes]:
    if str(path) == BUILTIN:
        source: Any = resources.files("thinktune.data").joinpath("questions.jsonl")
    else:
        source = Path(path)
    try:
        with source.open("rb") as stream:
            for number, line in enumerate(stream):
                if number == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    _check_start(path, line)
                yield line
    except FileNotFoundError:
        raise BatchFileError(f"there is no batch file {path}", hint=f"{BUILTIN} is a small one to try") from None
    except OSError as error:
        raise BatchFileError(f"{path}: cannot be read: {error.strerror}") from None


def _check_start(path: str | Path, line: bytes) -> None:
    """Refuse a file without any lines of JSON at once: a list of its "lines", all faulty, would help nobody."""
    if kind := foreign_kind(line):
        raise BatchFileError(f"{path}: is {kind}, not JSON lines in UTF-8", hint="unpack or convert it first")
    if re.match(rb"\s*\[\s*({|$)", line):
        raise BatchFileError(
            f"{path}: is one JSON list, not JSON lines",
            hint=f"put each item on a line of its own: jq -c '.[]' {path} > items.jsonl",
        )


class _Reader:
    """Lines to items. Equal settings become one Sampling, however many items have them."""

    def __init__(self, samplings: Mapping[str, Sampling]) -> None:
        self._samplings = samplings
        self._changed: dict[tuple[str, str], Sampling] = {}

    def read(self, line: bytes) -> Item:
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            return Item(None, problem="is not UTF-8")
        except json.JSONDecodeError as error:
            return Item(None, problem=f"is not JSON: {error.msg} at column {error.colno}")
        except ValueError:
            return Item(None, problem="holds a number with more digits than can be read")
        except RecursionError:
            return Item(None, problem="is nested too deep")
        if not isinstance(fields, dict):
            return Item(None, problem="is not an object with id, type and prompt")
        openai = "custom_id" in fields
        identity: str | int | None = None
        try:
            identity = _read_id(fields, "custom_id" if openai else "id")
            if openai:
                fields = _from_openai(fields)
            else:
                _check_keys(fields, _FIELDS)
            kind = _read_type(fields)
            return Item(identity, kind, _read_messages(fields), self._read_sampling(kind, fields))
        except _Fault as fault:
            return Item(identity, problem=str(fault))

    def _read_sampling(self, kind: str, fields: Mapping[str, Any]) -> Sampling:
        values = {} if fields.get("sampling") is None else fields["sampling"]
        if not isinstance(values, dict):
            raise _Fault(f"sampling must be an object, not {_shown(values)}")
        if (n := fields.get("n")) is not None:
            if values.get("n", n) != n:
                raise _Fault("n is given twice, and differs")
            values = {**values, "n": n}
        if not values:
            return self._samplings[kind]
        key = kind, json.dumps(values, sort_keys=True)
        if key not in self._changed:
            try:
                self._changed[key] = self._samplings[kind].changed(**values)
            except ConfigError as error:
                raise _Fault(f"sampling: {error.message}") from None
        return self._changed[key]


def _read_id(fields: Mapping[str, Any], name: str) -> str | int:
    identity = fields.get(name)
    if identity is None:
        raise _Fault(f"has no {name}")
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or not str(identity).strip():
        raise _Fault(f"{name} must be a text or a whole number, not {_shown(identity)}")
    if valid_text(str(identity)) != str(identity):
        raise _Fault(f"{name} is not valid Unicode")
    return identity


def _check_keys(fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Allow fields of the person's own, but none that looks like a misspelt one of ours."""
    for name in fields:
        if name in known:
            continue
        if name in Sampling.model_fields:
            raise _Fault(f"{name} belongs into sampling")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if near and near[0] not in fields:
            raise _Fault(f"unknown field {_shown(name)}; did you mean {near[0]}?")
        if near := difflib.get_close_matches(name, Sampling.model_fields, n=1, cutoff=0.8):
            raise _Fault(f"unknown field {_shown(name)}; did you mean {near[0]}, which belongs into sampling?")


def _read_type(fields: Mapping[str, Any]) -> str:
    kind = fields.get("type")
    if kind is None:
        raise _Fault(f"has no type; known are {', '.join(TASKS)}")
    if isinstance(kind, str) and kind in TASKS:
        return kind
    near = difflib.get_close_matches(str(kind), TASKS, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise _Fault(f"unknown type {_shown(kind)}; {guess}known are {', '.join(TASKS)}")


def _read_messages(fields: Mapping[str, Any]) -> Messages:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if (prompt is None) == (messages is None):
        raise _Fault("has no prompt" if prompt is None else "has both prompt and messages: give one of them")
    if messages is None:
        turns: Messages = ({"role": "user", "content": _text(prompt, "prompt")},)
    elif isinstance(messages, list) and messages:
        turns = tuple(_read_turn(message, number) for number, message in enumerate(messages, start=1))
    else:
        raise _Fault("messages must be a list of {role, content}")
    if (system := fields.get("system")) is not None:
        if turns[0]["role"] == "system":
            raise _Fault("has a system text twice: in system and in messages")
        if not isinstance(system, str):
            raise _Fault(f"system must be a text, not {_shown(system)}")
        turns = ({"role": "system", "content": system}, *turns)
    if any(turn["role"] == "system" for turn in turns[1:]):
        raise _Fault("messages may have a system text at their beginning only")
    if turns[-1]["role"] != "user":
        raise _Fault("messages must end with a turn of the user")
    return turns


def _read_turn(message: Any, number: int) -> Mapping[str, str]:
    if not isinstance(message, dict):
        raise _Fault(f"message {number} is not {{role, content}}")
    role = message.get("role")
    if role not in _ROLES:
        raise _Fault(f"message {number} has the role {_shown(role)}; known are {', '.join(_ROLES)}")
    return {"role": role, "content": _text(message.get("content"), f"the content of message {number}")}


def _text(value: Any, name: str) -> str:
    if isinstance(value, list):  # OpenAI's content parts
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        if len(texts) < len(value):
            raise _Fault(f"{name} may hold text only")
        value = "".join(texts)
    if not isinstance(value, str):
        raise _Fault(f"{name} must be a text, not {_shown(value)}")
    if not value.strip():
        raise _Fault(f"{name} is blank")
    return value


_SAME: Callable[[Any], Any] = lambda value: value  # noqa: E731
_OPENAI_SAMPLING: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "temperature": ("temperature", _SAME),
    "top_p": ("top_p", _SAME),
    "max_tokens": ("max_tokens", _SAME),
    "max_completion_tokens": ("max_tokens", _SAME),
    "n": ("n", _SAME),
    "seed": ("seed", _SAME),
    "presence_penalty": ("presence_penalty", _SAME),
    "frequency_penalty": ("frequency_penalty", _SAME),
    "stop": ("stop", _SAME),
    # Not OpenAI's own, but understood by the servers that speak its language.
    "top_k": ("top_k", lambda value: max(value, 0) if isinstance(value, int) else value),
    "min_p": ("min_p", _SAME),
    "repetition_penalty": ("repetition_penalty", _SAME),
}
_OPENAI_WITHOUT_EFFECT = ("model", "messages", "user", "metadata", "store", "service_tier", "safety_identifier")


def _from_openai(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a line of OpenAI's batch API into our fields. A field that we would have to drop is a fault that names
    it."""
    if fields.get("url") != "/v1/chat/completions":
        raise _Fault(f"url must be /v1/chat/completions, not {_shown(fields.get('url'))}")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise _Fault("body must be an object with messages")
    sampling: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in _OPENAI_WITHOUT_EFFECT:
            continue
        if name not in _OPENAI_SAMPLING:
            if value is False:  # such as "stream": false
                continue
            raise _Fault(f"body.{name} cannot be honoured")
        ours, convert = _OPENAI_SAMPLING[name]
        if sampling.get(ours, convert(value)) != convert(value):
            raise _Fault(f"body has {ours} twice, and differs")
        sampling[ours] = convert(value)
    messages = body.get("messages")
    if isinstance(messages, list):
        messages = [_from_openai_turn(turn) if isinstance(turn, dict) else turn for turn in messages]
    return {"type": _OPENAI_TYPE, "messages": messages, "sampling": sampling}


def _from_openai_turn(turn: dict[str, Any]) -> dict[str, Any]:
    for name in ("name", "tool_calls", "function_call", "audio"):
        if turn.get(name):
            raise _Fault(f"{name} of a message cannot be honoured")
    return {**turn, "role": "system"} if turn.get("role") == "developer" else turn  # OpenAI's newer word


def _shown(value: Any) -> str:
    return valid_text(json.dumps(value, ensure_ascii=False))[:40]
