"""A client's request, read from its body: every fault is a sentence for the client's author.

The form is OpenAI's (https://platform.openai.com/docs/api-reference/chat/create, and `/completions`). Unsupported
parameters are refused and not dropped, unless dropping them changes no answer (`IGNORED`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from thinktune.config import Sampling
from thinktune.errors import ConfigError

MOST_CHOICES = 16
MOST_MESSAGES = 1000
IGNORED = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)
"""Parameters that say nothing of the answer."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False, 0), "top_logprobs": (0,), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none",), "response_format": ({"type": "text"},), "logit_bias": ({},), "modalities": (["text"],),
    "echo": (False,), "best_of": (1,), "suffix": ("",), "audio": (), "prediction": (), "reasoning_effort": (),
    "verbosity": (), "web_search_options": (),
}  # fmt: skip
"""Parameters that are not supported, and their values that ask for nothing."""
_NUMBERS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "temperature": (float, 0, 2), "top_p": (float, 0, 1), "min_p": (float, 0, 1), "top_k": (int, -1, 10**9),
    "presence_penalty": (float, -2, 2), "frequency_penalty": (float, -2, 2), "repetition_penalty": (float, 0, 100),
    "seed": (int, -(2**63), 2**63 - 1), "n": (int, 1, MOST_CHOICES), "max_tokens": (int, 1, 10**9),
    "max_completion_tokens": (int, 1, 10**9),
}  # fmt: skip
_ROLES = ("system", "developer", "user", "assistant")


class Refused(Exception):
    """A request that gets no answer: a status, a sentence, and the parameter that it is about."""

    def __init__(self, status: int, message: str, param: str | None = None, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def as_dict(self) -> dict[str, Any]:
        """Return the error in OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        turns: of a conversation. None: `prompt` is continued as it stands.
        sampling: with `n` and the client's stop strings; its seed is None if the client gave none.
        most_tokens: None: as many as there is room for.
    """

    turns: list[dict[str, str]] | None
    prompt: str
    sampling: Sampling
    most_tokens: int | None
    stream: bool
    usage: bool


def read_body(body: bytes) -> dict[str, Any]:
    """Parse the body of a request.

    Raises:
        Refused: it is no JSON object in UTF-8.
    """

    def refuse(word: str) -> NoReturn:
        raise ValueError(f"{word} is no JSON")

    try:
        values = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(values, dict):
        raise Refused(400, f"the body has to be a JSON object, not {_kind(values)}")
    return values


def read_request(values: Mapping[str, Any], names: tuple[str, ...], *, chat: bool) -> Asked:
    """Read and check the request in a body.

    Args:
        names: of the model.
        chat: of `/chat/completions`; else of `/completions`.

    Raises:
        Refused: it cannot be answered as it stands.
    """
    given = {key: value for key, value in values.items() if value is not None}
    _check_model(given.pop("model", None), names)
    content = given.pop("messages" if chat else "prompt", None)
    turns = _read_turns(content) if chat else None
    prompt = "" if chat else _read_prompt(content)
    stream = _read_truth(given, "stream")
    usage = _read_stream_options(given.pop("stream_options", None), stream=stream)
    stop = _read_stop(given.pop("stop", None))
    numbers = {name: _read_number(name, given.pop(name)) for name in _NUMBERS if name in given}
    for name in IGNORED:
        given.pop(name, None)
    for name, value in given.items():
        _refuse_unless_neutral(name, value)
    most = numbers.pop("max_completion_tokens", None) or numbers.get("max_tokens")
    numbers.pop("max_tokens", None)
    if numbers.get("top_k") == -1:  # what vLLM takes for all
        numbers["top_k"] = 0
    try:
        sampling = Sampling(temperature=1.0, stop=()).changed(**numbers, stop=stop)
    except ConfigError as error:
        raise Refused(400, error.message) from None
    return Asked(turns, prompt, sampling, None if most is None else int(most), stream, usage)


def _check_model(name: Any, names: tuple[str, ...]) -> None:
    if name is None:  # there is but one
        return
    if not isinstance(name, str):
        raise Refused(400, f"model has to be a text, not {_kind(name)}", "model")
    if name not in names:
        raise Refused(
            404, f"there is no model {_short(name)}: this server has {names[0]}", "model", code="model_not_found"
        )


def _read_turns(messages: Any) -> list[dict[str, str]]:
    if messages is None:
        raise Refused(400, "messages is missing", "messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, f"messages has to be a list that is not empty, not {_kind(messages)}", "messages")
    if len(messages) > MOST_MESSAGES:
        raise Refused(400, f"messages has {len(messages)} entries: {MOST_MESSAGES} are the most", "messages")
    return [_read_turn(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _read_turn(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refused(400, f"{where} has to be an object with role and content, not {_kind(message)}", where)
    role = message.get("role")
    if role is None:
        raise Refused(400, f"{where} has no role", f"{where}.role")
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise Refused(400, f"{where}.role {_short(role)} is not supported: there are {known}", f"{where}.role")
    for key, value in message.items():
        if key not in ("role", "content", "name") and value not in (None, [], ""):
            raise Refused(400, f"{where}.{_short(key)} is not supported", where)
    text = _read_content(message.get("content"), f"{where}.content")
    return {"role": "system" if role == "developer" else role, "content": text}


def _read_content(content: Any, where: str) -> str:
    if isinstance(content, list) and content:
        return "".join(_read_part(part, f"{where}[{at}]") for at, part in enumerate(content))
    return _read_text(content, where)


def _read_part(part: Any, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise Refused(400, f"{where}: only parts of the type text are supported, not {_short(kind)}", where)
    return _read_text(part.get("text"), f"{where}.text")


def _read_prompt(prompt: Any) -> str:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, list):
        raise Refused(400, "prompt has to be one text: several, and token ids, are not supported", "prompt")
    return _read_text(prompt, "prompt")


def _read_text(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise Refused(400, f"{where} has to be a text, not {_kind(text)}", where)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(400, f"{where} is no valid Unicode: it has half of a surrogate pair", where) from None
    return text


def _read_truth(given: dict[str, Any], name: str) -> bool:
    value = given.pop(name, False)
    if not isinstance(value, bool):
        raise Refused(400, f"{name} has to be true or false, not {_kind(value)}", name)
    return value


def _read_stream_options(options: Any, *, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise Refused(400, "stream_options is for streams only", "stream_options")
    if not isinstance(options, dict):
        raise Refused(400, f"stream_options has to be an object, not {_kind(options)}", "stream_options")
    usage = _read_truth(options, "include_usage")
    for name, value in options.items():
        if value not in (None, False):
            raise Refused(400, f"stream_options.{_short(name)} is not supported", "stream_options")
    return usage


def _read_stop(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or len(stops) > 16 or not all(isinstance(each, str) and each for each in stops):
        raise Refused(400, "stop has to be a text or a list of up to 16 texts, none of them empty", "stop")
    return tuple(_read_text(each, "stop") for each in stops)


def _read_number(name: str, value: Any) -> float:
    kind, low, high = _NUMBERS[name]
    right = isinstance(value, int) if kind is int else isinstance(value, (int, float))
    if isinstance(value, float) and kind is int and value.is_integer():  # what JavaScript makes of it
        value, right = int(value), True
    if isinstance(value, bool) or not right:
        raise Refused(400, f"{name} has to be a {'whole ' if kind is int else ''}number, not {_kind(value)}", name)
    if not low <= value <= high or (isinstance(value, float) and not math.isfinite(value)):
        raise Refused(400, f"{name} has to be from {low} to {high}, not {_short(value)}", name)
    return kind(value)


def _refuse_unless_neutral(name: str, value: Any) -> None:
    if name not in _NEUTRAL:
        raise Refused(400, f"unknown parameter {_short(name)}", name[:80])
    if not any(type(value) is type(each) and value == each for each in _NEUTRAL[name]):
        raise Refused(400, f"{name} is not supported by this server", name)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    kind = names.get(type(value), "a number")
    return kind if value not in ([], {}, "") else f"an empty {kind.split()[1]}"


def _short(value: Any) -> str:
    """Shorten a client's value for an error message."""
    return ascii(value) if len(text := ascii(value)) <= 80 else f"{text[:77]}…"
