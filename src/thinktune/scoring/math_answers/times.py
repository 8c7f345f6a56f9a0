"""Times of day and dates: 7:30 a.m., 19:30, 6 PM, 5 May, May 5, 2024, 2024年5月5日."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HALF = r"(?P<half>a\.?\s?m\b\.?|p\.?\s?m\b\.?|o'?\s?clock|noon|midnight)"
_PART = r"(?P<part>\s(?:in the (?:morning|afternoon|evening)|at night))"
_TIME = re.compile(
    rf"(?:at\s)?(?P<hour>\d{{1,2}})(?:(?P<colon>:)(?P<minute>\d\d)(?::(?P<second>\d\d))?|\.(?P<minute2>\d\d))?\s?{_HALF}?{_PART}?",
    re.I,
)
_CHINESE_TIME = re.compile(
    r"(?P<half>凌晨|早上|上午|中午|下午|傍晚|晚上)?(?P<hour>\d{1,2})(?:点钟?|时)(?:(?P<minute>\d{1,2})分?|(?P<piece>半|整|一刻|三刻))?"
)
_MONTHS = {
    name: number
    for number, names in enumerate(
        ("january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug",
         "september sep sept", "october oct", "november nov", "december dec"), start=1
    )
    for name in names.split()
}  # fmt: skip
_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTHS, key=len, reverse=True))})\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_DATES = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf"(?:on\s)?(?:the\s)?{_DAY}\s(?:of\s)?{_MONTH}(?:,?\s(?P<year>\d{{4}}))?",
        rf"(?:on\s)?{_MONTH}\s(?:the\s)?{_DAY}(?:,?\s(?P<year>\d{{4}}))?",
        rf"(?:in\s)?{_MONTH},?\s(?:of\s)?(?P<year>\d{{4}})",
        r"(?P<year>\d{4})-(?P<month>0\d|1[0-2])-(?P<day>[0-3]\d)",
        r"(?:(?P<year>\d{4})年)?(?P<month>\d{1,2})月(?:(?P<day>\d{1,2})[日号])?",
    )
)


@dataclass(frozen=True)
class Clock:
    """A time of day in seconds; `marked` if the half of the day is given, `bare` if it may be a ratio."""

    seconds: int
    marked: bool
    bare: bool


@dataclass(frozen=True)
class Date:
    """Year, month and day of a date; None for those that are not given."""

    year: int | None
    month: int
    day: int | None


def read_clock(text: str) -> Clock | None:
    """Read a time of day.

    >>> read_clock("7:30 a.m.") == read_clock("7:30 AM"), read_clock("18")
    (True, None)
    """
    if (word := text.casefold()) in {"noon", "midnight", "正午", "午夜"}:
        return Clock(43200 if word in {"noon", "正午"} else 0, True, False)
    if match := _CHINESE_TIME.fullmatch(text):
        half = {"凌晨": "am", "早上": "am", "上午": "am", None: ""}.get(match["half"], "pm")
        minute = int(match["minute"] or {"半": 30, "一刻": 15, "三刻": 45}.get(match["piece"], 0))
        return _clock(int(match["hour"]), minute, 0, half, bare=False)
    match = _TIME.fullmatch(text)
    if not match or not (match["colon"] or match["half"] or match["part"]):
        return None
    half = re.sub(r"[^a-z]", "", (match["half"] or "").casefold())
    if part := match["part"]:
        half = "am" if "morning" in part.casefold() else "pm"
    if half in {"noon", "midnight"}:
        half = "pm" if half == "noon" else "am"
    minute = int(match["minute"] or match["minute2"] or 0)
    marked = half if half in {"am", "pm"} else ""
    return _clock(int(match["hour"]), minute, int(match["second"] or 0), marked, bare=not match["half"] and not part)


def _clock(hour: int, minute: int, second: int, half: str, *, bare: bool) -> Clock | None:
    if hour > 24 or minute > 59 or second > 59:
        return None
    if half and 0 < hour <= 12:
        hour = hour % 12 + (12 if half == "pm" else 0)
    return Clock(3600 * hour + 60 * minute + second, bool(half) or hour > 12, bare)


def same_clock(left: Clock, right: Clock) -> bool:
    """Return whether times are the same; one side may leave out the half of the day."""
    if left.marked == right.marked or (left.bare and right.bare):
        return left.seconds == right.seconds
    return left.seconds % 43200 == right.seconds % 43200


def read_date(text: str) -> Date | None:
    """Read a date that names its month.

    >>> read_date("5 May") == read_date("May 5th"), read_date("5 apples")
    (True, None)
    """
    for pattern in _DATES:
        if match := pattern.fullmatch(text):
            parts = match.groupdict()
            month = parts["month"].casefold()
            number = _MONTHS.get(month) or int(month)
            day = int(parts["day"]) if parts.get("day") else None
            if 1 <= number <= 12 and (day is None or 1 <= day <= 31):
                return Date(int(parts["year"]) if parts.get("year") else None, number, day)
    return None


def same_date(left: Date, right: Date) -> bool:
    """Return whether dates are the same; one side may leave out year or day."""
    pairs = [(left.year, right.year), (left.month, right.month), (left.day, right.day)]
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return False
    return all(one is not None or two is None for one, two in pairs) or all(
        two is not None or one is None for one, two in pairs
    )
