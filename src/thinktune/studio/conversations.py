"""Conversations as a browser keeps them: read back whatever it holds, told to models, and shown.

A conversation is `{"id", "turns": [{"question", "answers": [answer of the first model, of the second or None], "gone",
"attempt"}]}`; the list of them has a `title` with each. The server keeps no text of a person.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from thinktune.studio.answers import Answer
from thinktune.studio.markdown import messages, without_half_tag
from thinktune.studio.translations import Words

_MOST = 40  # conversations in the list
_MOST_CHARACTERS = 1_500_000  # of them all: browsers keep 5 MB of a page, in two bytes each
_TITLE = 48  # characters


def new_turn(question: str, attempt: int = 0) -> dict[str, Any]:
    return {"question": question, "answers": [None, None], "gone": [False, False], "attempt": attempt}


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def id_of(conversation: Any) -> str:
    found = conversation.get("id") if isinstance(conversation, dict) else None
    return found if isinstance(found, str) else ""


def turns_of(conversation: Any) -> list[dict[str, Any]]:
    """Read the turns that a browser has kept; they may hold anything."""
    turns = conversation.get("turns") if isinstance(conversation, dict) else None
    return [_turn(turn) for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []


def listed(kept: Any) -> list[dict[str, Any]]:
    """Read the list of conversations that a browser has kept, newest first."""
    if not isinstance(kept, list):
        return []
    return [each for each in kept if isinstance(each, dict) and id_of(each) and turns_of(each)][:_MOST]


def with_conversation(kept: Any, conversation: Any) -> list[dict[str, Any]]:
    """Return the list with a conversation as its first; the oldest go when a browser could not keep more."""
    turns = turns_of(conversation)
    rest = [each for each in listed(kept) if id_of(each) != id_of(conversation)]
    found = [{"id": id_of(conversation), "turns": turns}, *rest] if turns and id_of(conversation) else rest
    while len(found) > 1 and (len(found) > _MOST or len(json.dumps(found)) > _MOST_CHARACTERS):
        found.pop()
    return found


def titles(kept: Any) -> list[tuple[str, str]]:
    """Return title and id of each conversation: its first question."""
    return [(_title(turns_of(each)[0]["question"]), id_of(each)) for each in listed(kept)]


def _title(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= _TITLE else f"{line[: _TITLE - 1]}…"


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    answers = turn.get("answers")
    found = [_kept(answer) for answer in answers[:2]] if isinstance(answers, list) else []
    attempt, gone = turn.get("attempt"), turn.get("gone")
    return {
        "question": str(turn.get("question", "")),
        "answers": [*found, None, None][:2],
        "gone": [each is True for each in gone[:2]] if isinstance(gone, list) and len(gone) > 1 else [False, False],
        "attempt": attempt if isinstance(attempt, int) else 0,
    }


def _kept(answer: Any) -> dict[str, Any] | None:
    if not isinstance(answer, dict):
        return None
    blank = Answer("").as_dict()
    kept = {name: type(value)(answer.get(name, value)) for name, value in blank.items()}
    return {**kept, "state": "stopped" if kept["state"] == "running" else kept["state"]}


def without_side(turns: list[dict[str, Any]], side: int, *, both: bool) -> list[dict[str, Any]]:
    """Return turns without one model's side; the other's stays, if there is one."""
    left = []
    for turn in turns:
        answers, gone = list(turn["answers"]), list(turn["gone"])
        answers[side], gone[side] = None, True
        if both and not all(gone):
            left.append({**turn, "answers": answers, "gone": gone})
    return left


def history(turns: list[dict[str, Any]], side: int) -> list[dict[str, str]]:
    """Return the conversation with one model, thoughts included, as it stands in training rows of several turns."""
    said = []
    for turn in turns[:-1]:
        answer = turn["answers"][side] or turn["answers"][0]
        text = _marked_stub(answer) if answer and not turn["gone"][side] else ""
        if text:
            said += [{"role": "user", "content": turn["question"]}, {"role": "assistant", "content": text}]
    return [*said, {"role": "user", "content": turns[-1]["question"]}]


def _marked_stub(answer: dict[str, Any]) -> str:
    """Return an answer as the model is told it: one that was cut off ends in dots, and not in half a tag."""
    if answer["state"] == "done":
        return str(answer["text"])
    text = without_half_tag(answer["text"]).rstrip()
    return f"{text} […]" if text else ""


def side_shown(turns: list[dict[str, Any]], side: int, words: Words) -> list[dict[str, Any]]:
    """Return the messages of one side, as the page shows them."""
    shown = [turn for turn in turns if not turn["gone"][side]]
    return [message for turn in shown for message in messages(turn["question"], turn["answers"][side], words)]
