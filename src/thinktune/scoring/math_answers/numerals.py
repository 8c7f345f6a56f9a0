r"""Numbers in words: Chinese numerals and English number words, written in digits."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import takewhile

_DIGIT_FORMS = ("零〇", "一壹", "二两贰", "三叁", "四肆", "五伍", "六陆", "七柒", "八捌", "九玖")
_DIGITS = {char: value for value, chars in enumerate(_DIGIT_FORMS) for char in chars}
_SMALL = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_LARGE = {"万": 10**4, "亿": 10**8}
NUMERALS = "".join(_DIGITS) + "".join(_SMALL) + "".join(_LARGE)
_CHINESE = re.compile(
    rf"(负?)(百分之|[{NUMERALS}]+又[{NUMERALS}]+分之|[{NUMERALS}]+分之)?([{NUMERALS}]+)(?:点([{''.join(_DIGITS)}]+))?"
    rf"(半?)(?=$|[^{NUMERALS}分点]|分钟?$|点钟?$|点半)"
)
_SCALED = re.compile(r"([-+]?\d+(?:\.\d+)?)\s?([万亿])(\d{4}(?!\d))?")
_UNDER_DIGITS = re.compile(r"百分之(\d+(?:\.\d+)?)|(\d+)分之(\d+)")


def chinese_number(text: str) -> str:
    """Write a Chinese numeral at the start of a text in digits; the text after it (a unit) stays.

    >>> chinese_number("一万二千零五十"), chinese_number("百分之五十"), chinese_number("十八元")
    ('12050', '50%', '18元')
    """
    if text in {"一半", "半"}:
        return "1/2"
    if scaled := _SCALED.match(text):
        value = Fraction(scaled[1]) * _LARGE[scaled[2]]
        value += int(scaled[3] or 0) * (-1 if value < 0 else 1)  # 1万2345
        return (str(value.numerator) if value.denominator == 1 else str(float(value))) + text[scaled.end() :]
    if under := _UNDER_DIGITS.match(text):
        return (f"{under[1]}%" if under[1] else f"{under[3]}/{under[2]}") + text[under.end() :]
    match = _CHINESE.match(text[:60])
    if not match or (match.end() < len(text) and len(text) > match.end() + 12):
        return text
    sign, under_name, whole, decimals, half = match.groups()
    if half and under_name:
        return text
    number = str(_chinese_integer(whole))
    if decimals or half:
        number += "." + ("".join(str(_DIGITS[digit]) for digit in decimals) if decimals else "5")
    if under_name:
        mixed, _, under_name = under_name.rpartition("又")
        number += "%" if under_name == "百分之" else f"/{_chinese_integer(under_name.removesuffix('分之'))}"
        number = f"{_chinese_integer(mixed)} {number}" if mixed else number
    return ("-" if sign else "") + number + text[match.end() :]


def _chinese_integer(text: str) -> int:
    if not any(char in _SMALL or char in _LARGE for char in text):
        return int("".join(str(_DIGITS[char]) for char in text))
    total = section = digit = 0
    for char in text:
        if char in _DIGITS:
            digit = _DIGITS[char]
        elif char in _SMALL:
            section += (digit or 1) * _SMALL[char]
            digit = 0
        else:
            total = (total + section + digit) * _LARGE[char]
            section = digit = 0
    return total + section + digit


_ONE_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_ONES = {word: value for value, word in enumerate(_ONE_WORDS.split())}
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TEN_WORDS.split(), start=2)}
SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "lakh": 10**5,
    "crore": 10**7, "dozen": 12, "score": 20, "gross": 144,
}  # fmt: skip
PARTS = {
    "half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "twentieth": 20, "hundredth": 100, "thousandth": 1000,
    "millionth": 10**6, "halve": 2,
}  # fmt: skip
_WORD = re.compile(r"[\s,-]*([A-Za-z]+)")
_LEADING = re.compile(rf"(?i)(minus |negative )?(half )?(an?\s(?=(?:{'|'.join([*PARTS, *SCALES])})\b))?")
_BARE = {"half", "quarter", "hundred", "thousand", "million", "billion"}  # numbers without "a" or "one" before them
_AND_PART = re.compile(r"(?i)\s+(?:an?|one)[\s-](half|third|quarter)\b")
_POINT = re.compile(r"(?i)\s+point((?:\s+[a-z]+)+)")


def part_of(word: str) -> int | None:
    """Return the divisor that a word stands for: 10 for "tenths", nothing for "ten"."""
    name = word.casefold()
    return PARTS.get(name) or PARTS.get(name.removesuffix("s"))


def scale_of(word: str) -> int | None:
    """Return the factor that a word stands for: 12 for "dozen" or "dozens"."""
    name = word.casefold()
    return SCALES.get(name) or SCALES.get(name.removesuffix("s"))


def english_number(text: str) -> str:
    """Write English number words at the start of a text in digits; the text after them stays.

    >>> english_number("twenty-one apples"), english_number("two and a half"), english_number("three quarters")
    ('21 apples', '5/2', '3/4')
    """
    leading = _LEADING.match(text)
    assert leading is not None
    sign, halved, article = leading.groups()
    at = leading.end() if article or not halved else leading.end(1) if sign else 0
    value, end, counted = _whole(text, at, bare=not article)
    if value is None:
        return text
    if halved and article:
        value /= 2
    if (match := _WORD.match(text, end)) and counted and (part := part_of(match[1])):
        value, end = Fraction(value or 1, part), match.end()
    elif (match and match[1].casefold() == "and") and (tail := _AND_PART.match(text, match.end())):
        value, end = value + Fraction(1, PARTS[tail[1].casefold()]), tail.end()
    elif point := _POINT.match(text, end):
        digits = list(takewhile(lambda word: _ONES.get(word, 10) < 10, point[1].casefold().split()))
        if digits:
            decimals = "".join(str(_ONES[word]) for word in digits)
            rest = " ".join(point[1].split()[len(digits) :])
            return f"{'-' if sign else ''}{value}.{decimals} {rest}{text[point.end() :]}".strip()
    number = str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"
    return ("-" if sign else "") + number + text[end:]


def _whole(text: str, at: int, *, bare: bool) -> tuple[Fraction | None, int, bool]:
    """Read the number in words at a place; return it, its end, and whether a part ("thirds") may follow."""
    total = section = 0
    start, before = at, ""
    while match := _WORD.match(text, at):
        word = match[1].casefold()
        first = at == start
        if first and (part := part_of(word)) and (word in _BARE or not bare):
            return Fraction(1, part), match.end(), False
        if word in _ONES and (before in {"", "hundred", "scale", "and"} or (before == "tens" and 0 < _ONES[word] < 10)):
            section, before = section + _ONES[word], "ones"
        elif word in _TENS and before in {"", "hundred", "scale", "and"}:
            section, before = section + _TENS[word], "tens"
        elif (scale := SCALES.get(word)) and (not first or word in _BARE or not bare):
            if scale == 100:
                section, before = (section or 1) * scale, "hundred"
            else:
                total, section, before = total + (section or 1) * scale, 0, "scale"
        elif word == "and" and before in {"hundred", "scale"} and _counts(text, match.end()):
            before = "and"
        else:
            break
        at = match.end()
    return (Fraction(total + section), at, True) if at > start else (None, start, False)


def _counts(text: str, at: int) -> bool:
    following = _WORD.match(text, at)
    return following is not None and following[1].casefold() in _ONES | _TENS
