"""A scorer of one's own: a time of day is right within a minute."""

from __future__ import annotations

from typing import Any


def within_a_minute(answer: str, gold: dict[str, Any]) -> bool:
    """Compare two times such as 11:05. What is no time raises an error, which counts as not right."""
    return abs(_minutes(answer) - _minutes(gold["reference"])) <= 1


def _minutes(time: str) -> int:
    hours, minutes = time.strip().split(":")
    return 60 * int(hours) + int(minutes)
