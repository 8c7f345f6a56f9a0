"""The answers of several models to one question file, in one table: read, filtered, and rendered as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

from thinktune import tags
from thinktune.inference.batch_file import Item
from thinktune.studio.known_answers import is_right
from thinktune.studio.translations import Words

Outcome = Literal["all", "differ", "right", "wrong", "unanswered"]
OUTCOMES: tuple[Outcome, ...] = ("all", "differ", "right", "wrong", "unanswered")
PAGE = 50
"""Rows of the table that are shown at once."""
_LONGEST = 4000  # characters of a cell


@dataclass(frozen=True)
class Row:
    """A question with each model's answer (None: not yet) and whether it is right (None: not known)."""

    id: str
    type: str
    prompt: str
    reference: str
    answers: tuple[str | None, ...]
    right: tuple[bool | None, ...]

    @property
    def differs(self) -> bool:
        """Whether the models' answers are not equally right, or, if that is not known, not the same."""
        given = [answer for answer in self.answers if answer is not None]
        if len(given) < 2:
            return False
        if None not in self.right:
            return len(set(self.right)) > 1
        return len({(tags.parse(answer).answer or answer).strip() for answer in given}) > 1

    def has(self, outcome: Outcome) -> bool:
        """Return whether the row is among those of an outcome: right or wrong by any of the models."""
        return {
            "all": True,
            "differ": self.differs,
            "right": True in self.right,
            "wrong": False in self.right,
            "unanswered": None in self.answers,
        }[outcome]


class AnswerTable:
    """Reads the answers of a job again and again while it runs; each answer is scored once."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, int, str, str], bool | None] = {}

    def rows(
        self, job: str, items: Sequence[Item], golds: Mapping[str, Any], texts: Sequence[Mapping[str, str]]
    ) -> Iterator[Row]:
        """Yield a row for each item.

        Args:
            golds: gold records, by id.
            texts: each model's answers so far, by id.
        """
        for item in items:
            name = str(item.id)
            gold = golds.get(name)
            answers = tuple(each.get(name) for each in texts)
            right = tuple(self._verdict(job, at, item, text, gold) for at, text in enumerate(answers))
            reference = str((gold or {}).get("reference", ""))
            yield Row(name, item.type, item.messages[-1]["content"], reference, answers, right)

    def _verdict(self, job: str, model: int, item: Item, text: str | None, gold: Any) -> bool | None:
        if text is None or gold is None:
            return None
        key = job, model, str(item.id), text
        if key not in self._verdicts:
            self._verdicts[key] = is_right(item.type, text, {"prompt": item.messages[-1]["content"], **gold})
        return self._verdicts[key]


def read_texts(result: Path) -> dict[str, str]:
    """Return the first completion of each id in a result file, or in its journal while it is being written."""
    if result.exists():
        lines = json.loads(result.read_text(encoding="utf-8"))["result"]["results"]
        found = ((line["id"], line.get("content")) for line in lines)
        return {str(name): text if isinstance(text, str) else text[0] for name, text in found if text is not None}
    journal = result.with_name(f"{result.stem}.journal.jsonl")
    if not journal.exists():
        return {}
    texts = {}
    for line in journal.read_bytes().split(b"\n"):
        try:
            fields = json.loads(line)
            if fields["index"] == 0 and not fields.get("error"):
                texts[str(fields["id"])] = str(fields["text"])
        except (ValueError, KeyError, TypeError):  # being written, or damaged
            continue
    return texts


def filtered(rows: Sequence[Row], kind: str, outcome: Outcome, search: str | None) -> list[Row]:
    """Return the rows of a type ("": any), an outcome, and with a text somewhere in them."""
    wanted = (search or "").strip().casefold()
    return [
        row
        for row in rows
        if (not kind or row.type == kind)
        and row.has(outcome)
        and (not wanted or any(wanted in (text or "").casefold() for text in (row.id, row.prompt, *row.answers)))
    ]


def counts(rows: Sequence[Row], models: Sequence[str], words: Words) -> str:
    """Render how often each model is right."""
    chips = []
    for at, model in enumerate(models):
        known = [row.right[at] for row in rows if row.right[at] is not None]
        answered = sum(row.answers[at] is not None for row in rows)
        rate = words("right_of", right=sum(map(bool, known)), known=len(known)) if known else ""
        text = " · ".join(filter(None, [model, words("answered_of", done=answered, total=len(rows)), rate]))
        chips.append(f'<span class="chip model">{escape(text)}</span>')
    return f'<div class="facts">{"".join(chips)}</div>'


def render(rows: Sequence[Row], models: Sequence[str], page: int, words: Words) -> str:
    """Render one page of rows."""
    with_reference = any(row.reference for row in rows)
    heads = [words("item_id"), words("prompt"), *([words("reference")] if with_reference else []), *models]
    top = "".join(f'<th scope="col">{escape(each)}</th>' for each in heads)
    body = "".join(_row(row, with_reference, words) for row in rows[page * PAGE : (page + 1) * PAGE])
    shown = f'<table class="plain answers"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{shown}</div>'


def _row(row: Row, with_reference: bool, words: Words) -> str:
    mark = ' class="differs"' if row.differs else ""
    cells = [f"{escape(row.id)}<br><small>{escape(row.type)}</small>", _text(row.prompt)]
    cells += [_text(row.reference)] if with_reference else []
    cells += [_answer(answer, right, words) for answer, right in zip(row.answers, row.right, strict=True)]
    return f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _answer(answer: str | None, right: bool | None, words: Words) -> str:
    if answer is None:
        return "…"
    kind, key = ("good", "is_right") if right else ("bad", "is_wrong")
    chip = "" if right is None else f'<span class="chip {kind}">{escape(words(key))}</span> '
    parsed = tags.parse(answer)
    if not parsed.well_formed:
        return chip + _text(answer)
    thought = f"<details><summary>{escape(words('show_thinking'))}</summary>{_text(parsed.think or '')}</details>"
    return chip + _text(parsed.answer or "") + thought


def _text(text: str) -> str:
    return f'<span class="cell">{escape(text[:_LONGEST])}</span>'
