"""The section `filter`: answers that are right, rows that a user's function wants, lengths, the shortest ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from thinktune import tags
from thinktune.config.data_section import Filter
from thinktune.data.examples import Example, Row, RowFault
from thinktune.data.report import (
    FEW_TOKENS,
    MANY_TOKENS,
    NO_GOLD,
    NOT_COMPARED,
    NOT_RIGHT,
    NOT_SHORTEST,
    REFUSED_BY,
    SourceReport,
)
from thinktune.data.row_formats import RowFormat
from thinktune.data.tokens import Tokens
from thinktune.errors import ConfigError
from thinktune.plugins import load_function


class RowFilter:
    """Checks rows as `filter.right` and `filter.function` say.

    Raises:
        ConfigError: there is no such function.
    """

    def __init__(self, settings: Filter) -> None:
        self._right = settings.right
        self._name = settings.function
        self._function: Callable[..., Any] | None = None
        if settings.function is not None:
            self._function = load_function(settings.function, "filter.function")

    @property
    def columns(self) -> set[str]:
        """The columns of the gold record that it reads."""
        if self._right is False:
            return set()
        return {"type", "reference", "answer"} if self._right is True else {"type", self._right}

    def check(self, row: Row, row_format: RowFormat, example: Example) -> None:
        """Let a row pass.

        Raises:
            RowFault: it does not pass; the message is the reason.
            ConfigError: the user's function fails, or returns None.
        """
        if self._function is not None:
            self._ask(self._function, row, example)
        if self._right is not False:
            _require_right(example, self._gold(row, row_format))

    def _ask(self, function: Callable[..., Any], row: Row, example: Example) -> None:
        try:
            wanted = function(row.fields)
        except RowFault:
            raise
        except Exception as error:
            raise ConfigError(
                f"filter.function: {self._name} fails on row {row.number} of {example.source}: "
                f"{type(error).__name__}: {error}",
                hint="it may raise thinktune.data.RowFault(reason) to have a row dropped",
            ) from error
        if wanted is None:
            raise ConfigError(f"filter.function: {self._name} returned None, not True or False")
        if not wanted:
            raise RowFault(f"{REFUSED_BY} {self._name}")

    def _gold(self, row: Row, row_format: RowFormat) -> dict[str, Any]:
        """Return the gold record: the columns that are no part of the example, as its reply would be its own gold."""
        if isinstance(self._right, str):
            return {"type": row.fields.get("type"), "reference": row.fields.get(self._right)}
        read = row_format.keys | row_format.also
        return {key: value for key, value in row.fields.items() if key not in read}


def _require_right(example: Example, gold: dict[str, Any]) -> None:
    from thinktune.scoring import ROW_TASK, TASKS

    task = TASKS.get(str(gold.get("type")), ROW_TASK)
    if task.gold_fault(gold):
        raise RowFault(NO_GOLD)
    gold["prompt"] = example.messages[-1]["content"]
    score = task.score(tags.render(example.think or "-", example.answer), gold, "stop")
    if score.correct is None or score.outcome == "error":
        raise RowFault(NOT_COMPARED)
    if not score.correct:
        raise RowFault(NOT_RIGHT)


def of_wanted_length(encoded: Iterable[Tokens], settings: Filter, report: SourceReport) -> dict[int, Tokens]:
    """Drop examples with fewer tokens than `min_tokens` or more than `max_tokens`; return the others by row."""
    kept = {}
    for item in encoded:
        if len(item) < (settings.min_tokens or 0):
            report.drop(FEW_TOKENS, item.example.row)
        elif settings.max_tokens is not None and len(item) > settings.max_tokens:
            report.drop(MANY_TOKENS, item.example.row)
        else:
            kept[item.example.row] = item
    return kept


def the_shortest(encoded: Iterable[Tokens], settings: Filter, report: SourceReport) -> list[Tokens]:
    """Drop all but the `shortest` examples, of equally long ones the later; without that setting, none."""
    items = list(encoded)
    if settings.shortest is None:
        return items
    ordered = sorted(items, key=lambda item: (len(item), item.example.row))
    for item in ordered[settings.shortest :]:
        report.drop(NOT_SHORTEST, item.example.row)
    return sorted(ordered[: settings.shortest], key=lambda item: item.example.row)
