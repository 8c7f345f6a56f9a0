"""Rows to examples: the known row formats and their keys.

`ROW_FORMATS` is the registry; `data.format` names one of it, or a function of the user's own as `module:function`: it
takes the row as a dict, and returns `Parts` or raises `RowFault`. `replies` takes the reply apart.

No part of a question or an answer is lost silently: a row with a column or a field of a turn beyond the text (tool
calls, images, options of a question) is dropped under a reason that names it; other columns are counted as unused
(`unused_columns`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thinktune import tags
from thinktune.boxed import leaves_boxes_out
from thinktune.config import Format
from thinktune.data.examples import Example, Message, Parts, Row, RowFault
from thinktune.data.replies import ANY_MARK, extract_answer, split_gsm8k, split_reply
from thinktune.errors import ConfigError
from thinktune.plugins import load_function

Convert = Callable[[dict[str, Any]], Parts]

BOX_REQUEST = re.compile(r"Return your final response within \\boxed\{\}\.[ \t]*")
"""What Bespoke-Stratos puts into its math prompts."""

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where rows and turns keep a thought apart from the reply."""
_TURN_KEYS = frozenset({"from", "value", "role", "content", *_THOUGHTS})
_NOT_TEXT = (
    "tool_calls",
    "function_call",
    "tools",
    "functions",
    "image",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
)
"""Parts of a prompt or a reply that are lost where only its text is trained."""
_ABOUT = frozenset({"provenance"})
"""Columns about a row, which `collect` writes."""
_MORE_OF_THE_PROMPT = ("context", "passage", "choices", "options", "history", "input")
"""Columns of single-turn rows without which a question may not be answerable."""


@dataclass(frozen=True)
class RowFormat:
    """A row format: it applies to rows that have all of `keys`; `also` are optional keys that it reads too.

    A function of the user's own has no keys: it takes every row.
    """

    name: str
    keys: frozenset[str]
    convert: Convert
    also: frozenset[str] = frozenset()


def choose_formats(name: str | None) -> Sequence[RowFormat]:
    """Return the row formats that `data.format` allows: one of the registry, the user's own, or (None) all known ones.

    Raises:
        ConfigError: there is no such format, or no such function.
    """
    if name is None:
        return ROW_FORMATS
    if known := [row_format for row_format in ROW_FORMATS if row_format.name == name]:
        return known
    if ":" not in name:
        names = ", ".join(row_format.name for row_format in ROW_FORMATS)
        raise ConfigError(f"data.format: there is no {name!r}", hint=f"known are {names}, or module:function of yours")
    return [RowFormat(name, frozenset(), load_function(name, "data.format"))]


def find_format(fields: Mapping[str, Any], formats: Sequence[RowFormat]) -> RowFormat | None:
    """Return the first format whose keys the row has; in merged data sets, whose keys are filled."""
    filled = {key for key, value in fields.items() if not _is_empty(value)}
    return next((each for keys in (filled, fields.keys()) for each in formats if each.keys <= keys), None)


def unused_columns(fields: Mapping[str, Any], row_format: RowFormat) -> list[str]:
    """List the columns of a row, and the fields of its turns, that hold something and that its format does not read."""
    if not row_format.keys:
        return []
    read = row_format.keys | row_format.also
    unused = [key for key, value in fields.items() if key not in read | _ABOUT and not _is_empty(value)]
    for column in sorted(row_format.keys & fields.keys()):
        turns = fields[column] if isinstance(fields[column], (list, tuple)) else ()
        keys = {key for turn in turns if isinstance(turn, Mapping) for key in turn if not _is_empty(turn[key])}
        unused += [f"{column}[].{key}" for key in sorted(keys - _TURN_KEYS.union(_NOT_TEXT))]
    return unused


def _is_empty(value: object) -> bool:
    """Return whether a value is empty, as in filled-up columns of merged data sets: null, NaN, blank, or only those."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_empty, value))
    return value is None or value != value


def to_example(
    row: Row, row_format: RowFormat, source: str, fmt: Format, system: str = "drop", *, need_thought: bool = True
) -> Example:
    """Take a row apart and check every part.

    Args:
        system: `data.system`: drop, keep or the text to use.
        need_thought: False where only the reference answer counts, as for evaluation.

    Raises:
        RowFault: the row cannot be used; the message is the reason.
        ConfigError: the user's own function fails, or returns something else.
    """
    try:
        parts = row_format.convert(row.fields)
    except (RowFault, ConfigError):
        raise
    except Exception as error:  # the user's own function may raise anything
        raise ConfigError(
            f"data.format: {row_format.name} fails on row {row.number} of {source}: {type(error).__name__}: {error}",
            hint="it may raise thinktune.data.RowFault(reason) to have a row dropped",
        ) from error
    if not isinstance(parts, Parts):
        raise ConfigError(f"data.format: {row_format.name} returned {type(parts).__name__}, not thinktune.data.Parts")
    messages = context_of(parts.context, fmt, system)
    think, solution = _take_apart(parts.reply, parts.think)
    answer = extract_answer(solution, fmt.answer)
    if need_thought and not think:
        raise RowFault("no thought")
    if not answer:
        raise RowFault("no answer")
    if ANY_MARK.search(think) or ANY_MARK.search(answer):
        raise RowFault("stray or nested tags")
    check_encodable(think, answer, *(message["content"] for message in messages))
    return Example(messages, think, answer, row.number, source, fmt.answer == "boxed" and leaves_boxes_out(solution))


def _take_apart(reply: str, apart: str | None) -> tuple[str, str]:
    """Split a reply into thought and solution; the thought may be a field of its own, part of the reply, or both."""
    if apart is None:
        think, solution = split_reply(reply)
        return (think or "").strip(), solution
    if not ANY_MARK.search(reply):
        return apart.strip(), reply.strip()
    think, solution = split_reply(reply)
    if (think or "").strip() not in ("", apart.strip()):
        raise RowFault("two thoughts that differ")
    return apart.strip(), solution


def context_of(turns: Sequence[Message], fmt: Format, system: str) -> tuple[Message, ...]:
    """Return the turns that a reply is given, as the model is to see them.

    Raises:
        RowFault: they are no conversation that ends with a question.
    """
    own_system = [turn["content"] for turn in turns if turn["role"] == "system"]
    talk = [turn for turn in turns if turn["role"] != "system"]
    if [turn["role"] for turn in talk] != ["user" if at % 2 == 0 else "assistant" for at in range(len(talk))]:
        raise RowFault("turns do not alternate between user and assistant")
    if not talk or talk[-1]["role"] != "user":
        raise RowFault("no user turn before the reply")
    messages = [_context_turn(turn, fmt) for turn in talk]
    text = {"drop": "", "keep": "\n\n".join(own_system)}.get(system, system).strip()
    return ({"role": "system", "content": text}, *messages) if text else tuple(messages)


def _context_turn(turn: Message, fmt: Format) -> Message:
    if turn["role"] == "user":
        content = clean_prompt(turn["content"]) if fmt.clean_prompt else turn["content"].strip()
        if not content:
            raise RowFault("empty prompt")
        return {"role": "user", "content": content}
    # An earlier reply reads as the tuned model would have written it: other marks would teach that these exist too.
    think, solution = _take_apart(turn["content"], turn.get("think"))
    answer = extract_answer(solution, fmt.answer)
    if not answer:
        raise RowFault("an earlier reply without an answer")
    content = tags.render(think, answer, fmt.template) if think else solution
    return {"role": "assistant", "content": content}


def clean_prompt(prompt: str) -> str:
    r"""Remove Stratos' request for a box from a prompt: it contradicts the format we teach.

    >>> clean_prompt(r"Return your final response within \boxed{}. What is 1+1?")
    'What is 1+1?'
    """
    return BOX_REQUEST.sub("", prompt).strip()


def check_encodable(*texts: str) -> None:
    """Raise a RowFault if a text holds half of a surrogate pair."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, escaped in JSON: no tokenizer takes it
            raise RowFault("not UTF-8") from None


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if isinstance(value, list) and value:  # content parts, as chat APIs have them
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in value
        ]
        value = "".join(part for part in parts if isinstance(part, str)) if None not in parts else None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        return str(value)  # answers are often written as numbers
    if not isinstance(value, str):
        raise RowFault(f"no text in '{key}'")
    return value


def _optional_text(fields: Mapping[str, Any], key: str) -> str:
    return "" if _is_empty(fields.get(key)) else _text(fields, key)


def _refuse_filled(fields: Mapping[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        if not _is_empty(fields.get(key)):
            raise RowFault(f"'{key}' would be lost")


def _thought_apart(fields: Mapping[str, Any]) -> str | None:
    """Return the thought that a row or a turn has in a field of its own.

    Raises:
        RowFault: it is no text, or there are two.
    """
    thoughts = {_text(fields, key).strip() for key in _THOUGHTS if not _is_empty(fields.get(key))}
    if len(thoughts) > 1:
        raise RowFault("two thoughts that differ")
    return thoughts.pop() if thoughts else None


def _turns(value: object) -> list[Message]:
    """Return turns with known roles, from a list of dicts that spell them from/value or role/content.

    A thought that an assistant's turn keeps apart is under `think`.
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in value):
        raise RowFault("turns are not a list of objects")
    turns = []
    for turn in value:
        keys = ("role", "content") if _is_empty(turn.get("from")) else ("from", "value")
        role = _ROLES.get(str(turn.get(keys[0])).lower())
        if role is None:
            raise RowFault("unknown role")
        _refuse_filled(turn, _NOT_TEXT)
        thought = _thought_apart(turn) if role == "assistant" else None
        turns.append({"role": role, "content": _text(turn, keys[1])} | ({} if thought is None else {"think": thought}))
    return turns


def _parts_of_turns(fields: Mapping[str, Any], turns: list[Message], last: Mapping[str, Any]) -> Parts:
    """Take the last turn as the reply. `last` is that turn as the row has it."""
    if not any(turn["role"] == "assistant" for turn in turns):
        raise RowFault("no assistant turn")
    if turns[-1]["role"] != "assistant":
        raise RowFault("last turn is not the assistant's")
    if last.get("weight") in (0, "0") or last.get("train") is False:  # OpenAI's and Axolotl's
        raise RowFault("the last turn is marked as not to be trained")
    _refuse_filled(fields, _NOT_TEXT)
    return Parts(_with_system(fields, turns[:-1]), turns[-1]["content"], turns[-1].get("think"))


def _with_system(fields: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    text = _optional_text(fields, "system")
    return [{"role": "system", "content": text}, *turns] if text else turns


def _conversations(fields: dict[str, Any]) -> Parts:
    """Read ShareGPT, Bespoke-Stratos: `conversations` of `from` and `value`, and perhaps `system`."""
    return _listed(fields, "conversations")


def _messages(fields: dict[str, Any]) -> Parts:
    """Read the chat API's `messages` of `role` and `content`; a reasoning model's thought in `reasoning_content`."""
    return _listed(fields, "messages")


def _listed(fields: dict[str, Any], column: str) -> Parts:
    turns = _turns(fields[column])
    return _parts_of_turns(fields, turns, fields[column][-1] if turns else {})


def _instruction(fields: dict[str, Any]) -> Parts:
    """Read Alpaca: `instruction`, `input` (often empty), `output`, and LLaMA-Factory's `history` of earlier turns."""
    _refuse_filled(fields, (key for key in _MORE_OF_THE_PROMPT if key not in ("input", "history")))
    given = _optional_text(fields, "input").strip()
    prompt = _text(fields, "instruction") + (f"\n\n{given}" if given else "")
    return _single(fields, prompt, _text(fields, "output"), _history(fields.get("history")))


def _history(value: object) -> list[Message]:
    """Read earlier turns from pairs of a prompt and its reply."""
    if _is_empty(value):
        return []
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in value
    ):
        raise RowFault("'history' is no list of pairs")
    return [
        {"role": role, "content": _text({"history": text}, "history")}
        for pair in value
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _prompt(fields: dict[str, Any]) -> Parts:
    """Read `prompt` and `completion`, as texts, or as lists of turns."""
    if isinstance(fields["prompt"], list) and isinstance(fields["completion"], list):
        turns = _turns([*fields["prompt"], *fields["completion"]])
        return _parts_of_turns(fields, turns, fields["completion"][-1] if fields["completion"] else {})
    _refuse_filled(fields, _MORE_OF_THE_PROMPT)
    return _single(fields, _text(fields, "prompt"), _text(fields, "completion"))


def _question(fields: dict[str, Any]) -> Parts:
    """Read `question` and `answer`; GSM8K ends its worked answer with a line `#### 42`."""
    _refuse_filled(fields, _MORE_OF_THE_PROMPT)
    answer, thought = _text(fields, "answer"), _thought_apart(fields)
    worked = split_gsm8k(answer) if thought is None else None
    if worked is None:
        return _single(fields, _text(fields, "question"), answer)
    return replace(_single(fields, _text(fields, "question"), worked[1]), think=worked[0])


def _single(fields: Mapping[str, Any], prompt: str, reply: str, earlier: Sequence[Message] = ()) -> Parts:
    """Return the parts of a row of one question, perhaps with earlier turns."""
    _refuse_filled(fields, _NOT_TEXT)
    turns = _with_system(fields, [*earlier, {"role": "user", "content": prompt}])
    return Parts(turns, reply, _thought_apart(fields))


def read_question(fields: Mapping[str, Any]) -> str:
    """Return the user's turns of a row, or its question, whether or not it can be trained: a batch item, say.

    Raises:
        RowFault: there is none.
    """
    for column in ("conversations", "messages", "prompt"):
        if isinstance(fields.get(column), (list, tuple)):
            asked = [turn["content"] for turn in _turns(fields[column]) if turn["role"] == "user"]
            break
    else:
        filled = (key for key in ("prompt", "question", "problem", "instruction") if not _is_empty(fields.get(key)))
        asked = [_text(fields, key) for key in (next(filled, "prompt"), "input") if key != "input" or fields.get(key)]
    question = "\n".join(asked).strip()
    if not question:
        raise RowFault("no question")
    return clean_prompt(question)


_SINGLE = frozenset({"system", *_THOUGHTS})

ROW_FORMATS: tuple[RowFormat, ...] = (
    RowFormat("conversations", frozenset({"conversations"}), _conversations, frozenset({"system"})),
    RowFormat("messages", frozenset({"messages"}), _messages, frozenset({"system"})),
    RowFormat(
        "instruction/input/output", frozenset({"instruction", "output"}), _instruction, _SINGLE | {"input", "history"}
    ),
    RowFormat("prompt/completion", frozenset({"prompt", "completion"}), _prompt, _SINGLE),
    RowFormat("question/answer", frozenset({"question", "answer"}), _question, _SINGLE),
)
"""The known row formats; the first whose keys a row has is taken."""
