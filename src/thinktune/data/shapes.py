r"""Rows to examples: which keys mean what, where the thought ends, what the answer is.

`SHAPES` is the one table of known row shapes; `data.shape: "module:function"` puts a function of yours in its place,
which takes the row as a dict and returns `Parts` or raises `RowFault`.

Marks of a thought that are understood in a reply:

    <|begin_of_thought|>…<|end_of_thought|> <|begin_of_solution|>…<|end_of_solution|>     (Sky-T1, Bespoke-Stratos)
    <think>…</think> …                                                                    (DeepSeek-R1, QwQ, Qwen3)
    <think>…</think> <answer>…</answer>                                                   (ours)
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinktune import tags
from thinktune.config import Format
from thinktune.data.examples import Example, Message, Parts, Row, RowFault
from thinktune.errors import ConfigError

Convert = Callable[[dict[str, Any]], Parts]

BOX_REQUEST = re.compile(r"Return your final response within \\boxed\{\}\.[ \t]*")
"""What Bespoke-Stratos puts into its math prompts."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_MARKS = ("<|begin_of_thought|>", "<|end_of_thought|>", "<|begin_of_solution|>", "<|end_of_solution|>")
_ANY_MARK = re.compile("|".join(re.escape(mark) for mark in (*_MARKS, *tags.TAGS)))
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K notes what its authors' calculator did: 48/2=<<48/2=24>>24


@dataclass(frozen=True)
class Shape:
    """A row shape: it applies to rows that have all of `keys`."""

    name: str
    keys: frozenset[str]
    convert: Convert


def find_shape(fields: Mapping[str, Any]) -> Shape | None:
    """The first shape of the table whose keys the row has."""
    return next((shape for shape in SHAPES if shape.keys <= fields.keys()), None)


def import_shape(reference: str) -> Shape:
    """The user's own shape, from `module:function`.

    Raises:
        ConfigError: there is no such function.
    """
    module, _, name = reference.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed command does not look into the current folder by itself
    try:
        convert = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"data.shape: cannot import {reference!r}: {error}",
            hint="write module:function, with the module in the current folder or installed",
        ) from None
    if not callable(convert):
        raise ConfigError(f"data.shape: {reference!r} is not a function")
    return Shape(reference, frozenset(), convert)


def to_example(
    row: Row, shape: Shape, source: str, fmt: Format, system: str = "drop", *, need_thought: bool = True
) -> Example:
    """Take a row apart and check every part.

    Args:
        system: `data.system`: drop, keep or the text to use.
        need_thought: False where only the reference answer counts, as for evaluation.

    Raises:
        RowFault: the row cannot be used; the message is the reason.
    """
    parts = shape.convert(row.fields)
    if not isinstance(parts, Parts):
        raise ConfigError(f"data.shape: {shape.name} returned {type(parts).__name__}, not thinktune.data.Parts")
    messages = _context(parts.context, fmt, system)
    think, solution = (parts.think, parts.reply) if parts.think is not None else split_reply(parts.reply)
    answer = extract_answer(solution, fmt.answer)
    think = (think or "").strip()
    if need_thought and not think:
        raise RowFault("no thought")
    if not answer:
        raise RowFault("no answer")
    if _ANY_MARK.search(think) or _ANY_MARK.search(answer):
        raise RowFault("stray or nested tags")
    _check_encodable(think, answer, *(message["content"] for message in messages))
    return Example(messages, think, answer, row.number, source)


def split_reply(reply: str) -> tuple[str | None, str]:
    """Thought and solution of a reply; the thought is None where no marks are.

    Raises:
        RowFault: marks that are missing, doubled or out of order.
    """
    if any(mark in reply for mark in _MARKS):
        return _split_at(reply, _MARKS)
    if "<answer>" in reply or "</answer>" in reply:
        return _split_at(reply, tags.TAGS)
    if "<think>" not in reply and "</think>" not in reply:
        return None, reply.strip()
    before, opening, rest = reply.partition("<think>")
    think, closing, solution = rest.partition("</think>")
    if not opening or not closing or before.strip():
        raise RowFault("thought not closed" if opening and not closing else "stray or nested tags")
    return think, solution.strip()


def _split_at(reply: str, marks: Sequence[str]) -> tuple[str, str]:
    """Thought and solution between four marks, with nothing but white space outside."""
    found = [match.group() for match in re.finditer("|".join(re.escape(mark) for mark in marks), reply)]
    for mark, reason in zip(marks, ("no thought", "thought not closed", "no answer", "answer not closed"), strict=True):
        if mark not in found:
            raise RowFault(reason)
    if found != list(marks):
        raise RowFault("stray or nested tags")
    pieces = re.split("|".join(re.escape(mark) for mark in marks), reply)
    before, think, between, solution, after = pieces
    if before.strip() or between.strip() or after.strip():
        raise RowFault("text outside the tags")
    return think, solution.strip()


def extract_answer(solution: str, how: str) -> str:
    r"""The answer inside a solution: the last balanced box, or (`how` is solution, or no box) all of it.

    >>> extract_answer(r"So it is \boxed{\frac{3}{4}}.", "boxed")
    '\\frac{3}{4}'
    """
    boxed = tags.last_boxed(solution) if how == "boxed" else None
    return (solution if boxed is None else boxed).strip()


def _context(turns: Sequence[Message], fmt: Format, system: str) -> tuple[Message, ...]:
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
    think, solution = split_reply(turn["content"])
    answer = extract_answer(solution, fmt.answer)
    content = tags.render(think.strip(), answer, fmt.template) if think and answer else solution
    return {"role": "assistant", "content": content}


def clean_prompt(prompt: str) -> str:
    r"""The prompt without Stratos' request for a box, which contradicts the format we teach.

    >>> clean_prompt(r"Return your final response within \boxed{}. What is 1+1?")
    'What is 1+1?'
    """
    return BOX_REQUEST.sub("", prompt).strip()


def _check_encodable(*texts: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, escaped in JSON: no tokenizer takes it
            raise RowFault("not UTF-8") from None


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # answers are often written as numbers
    if not isinstance(value, str):
        raise RowFault(f"no text in '{key}'")
    return value


def _turns(value: object) -> list[Message]:
    """Turns with known roles, from a list of dicts that spell them from/value or role/content."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in value):
        raise RowFault("turns are not a list of objects")
    turns = []
    for turn in value:
        keys = ("from", "value") if "from" in turn else ("role", "content")
        role = _ROLES.get(str(turn.get(keys[0])).lower())
        if role is None:
            raise RowFault("unknown role")
        turns.append({"role": role, "content": _text(turn, keys[1])})
    return turns


def _last_reply(turns: list[Message]) -> tuple[list[Message], str]:
    if not any(turn["role"] == "assistant" for turn in turns):
        raise RowFault("no assistant turn")
    if turns[-1]["role"] != "assistant":
        raise RowFault("last turn is not the assistant's")
    return turns[:-1], turns[-1]["content"]


def _with_system(fields: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    if isinstance(fields.get("system"), str):
        return [{"role": "system", "content": fields["system"]}, *turns]
    return turns


def _conversations(fields: dict[str, Any]) -> Parts:
    """ShareGPT, Bespoke-Stratos: `conversations` of `from` and `value`, and perhaps `system`."""
    context, reply = _last_reply(_turns(fields["conversations"]))
    return Parts(_with_system(fields, context), reply)


def _messages(fields: dict[str, Any]) -> Parts:
    """Chat API: `messages` of `role` and `content`; a reasoning model's thought in `reasoning_content`."""
    context, reply = _last_reply(_turns(fields["messages"]))
    thought = fields["messages"][-1].get("reasoning_content")
    return Parts(
        _with_system(fields, context), reply, thought if isinstance(thought, str) and thought.strip() else None
    )


def _instruction(fields: dict[str, Any]) -> Parts:
    """Alpaca: `instruction`, `input` (often empty), `output`."""
    given = fields.get("input")
    prompt = _text(fields, "instruction") + (f"\n\n{given}" if isinstance(given, str) and given.strip() else "")
    return Parts(_with_system(fields, [{"role": "user", "content": prompt}]), _text(fields, "output"))


def _prompt(fields: dict[str, Any]) -> Parts:
    """`prompt` and `completion`, as texts."""
    turns = [{"role": "user", "content": _text(fields, "prompt")}]
    return Parts(_with_system(fields, turns), _text(fields, "completion"))


def _question(fields: dict[str, Any]) -> Parts:
    """`question` and `answer`; GSM8K ends its worked answer with a line `#### 42`."""
    turns = _with_system(fields, [{"role": "user", "content": _text(fields, "question")}])
    worked, mark, final = f"\n{_text(fields, 'answer')}".rpartition("\n####")
    if mark:
        return Parts(turns, final, _CALCULATOR.sub("", worked))
    return Parts(turns, final)


SHAPES: tuple[Shape, ...] = (
    Shape("conversations", frozenset({"conversations"}), _conversations),
    Shape("messages", frozenset({"messages"}), _messages),
    Shape("instruction/input/output", frozenset({"instruction", "output"}), _instruction),
    Shape("prompt/completion", frozenset({"prompt", "completion"}), _prompt),
    Shape("question/answer", frozenset({"question", "answer"}), _question),
)
"""Every known row shape; the first whose keys a row has is taken."""
