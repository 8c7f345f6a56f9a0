r"""The last number of a text, for answers that no tags or box mark.

It is read as it is written: with its sign, as a mixed number, a fraction, a decimal, a power, a percentage; a time or a
range is a whole. The 2 of x_2, m^2 and H2O is none, and of a formula the formula counts.
"""

from __future__ import annotations

import re

from thinktune.scoring.math_answers.normalize import CHARACTERS
from thinktune.scoring.math_answers.numerals import NUMERALS, chinese_number, english_number

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_FRACTION = r"\\[dtc]?frac\s?(?:\{[^{}]{1,40}\}\s?\{[^{}]{1,40}\}|\d\d)"
_NUMBER = re.compile(
    rf"""(?<![\w.^])(?<![_^]\{{)
    (?P<sign>(?<![\w)\]}}%])(?<![\w)\]}}%]\s)-|(?<=\s)-(?=[\d.$\\]))?\s?(?:[$€£¥]\s?)?(?P<inner>-?)(?P<number>
      \d{{1,2}}(?::\d\d){{1,2}}(?:\s?[ap]\.?m\b)?              # a time
      |\d+:\d+                                              # a ratio
      |\d+\s?(?={_FRACTION}){_FRACTION}|\d+\s\d+/\d+        # a mixed number
      |{_FRACTION}
      |\d+\s?/\s?\d+(?![\d/.]\d)
      |{_DECIMAL}(?P<range>\s?-\s?{_DECIMAL}(?!\s?=))(?!\s?-)
      |{_DECIMAL}(?:[eE][-+]?\d{{1,3}}(?!\w)|\s?(?:\\times|\\cdot|\*|x)\s?10\s?\^\s?(?:\{{-?\d{{1,3}}\}}|-?\d{{1,3}}))
      |\d+\^(?:\{{-?\d{{1,3}}\}}|-?\d{{1,3}})
      |{_DECIMAL}
    )(?P<percent>\s?\\?%|\spercent\b)?""",
    re.X | re.A,
)  # fmt: skip
_MATH = re.compile(
    r"\$\$([^$]{1,400})\$\$|\$(?! )([^$]{1,200}?)(?<! )\$(?!\d)|\\\(([^$]{1,200}?)\\\)|\\\[([^$]{1,400}?)\\\]"
)
_BOLD = re.compile(r"\*\*\s?(?:(?:final\s)?answer\s?:?\s?|答案[:是为]?\s?)?([^*\n]{1,60}?)\s?\*\*", re.I)
_FORMULA = re.compile(
    r"\\(?:sqrt|pi|ln|log|sin|cos|tan)(?![A-Za-z])|(?:sqrt|sin|cos|tan|ln|log)\(|(?<![A-Za-z])pi(?![A-Za-z])"
)
_CHINESE = re.compile(
    rf"(?P<said>[是为共有于得:=]\s?)?(?P<number>负?(?:百分之)?[{NUMERALS}]+(?:又[{NUMERALS}]+)?(?:分之[{NUMERALS}]+)?"
    rf"(?:点[{NUMERALS}]+)?)"
    r"(?![共样起些定般直边旦])"
)
_ENGLISH = re.compile(r"\b(?:minus |negative )?(?:an? |half a )?[A-Za-z]+")
_TAIL_OF_WORDS = 2000  # characters in which number words are looked for, where there are no digits


def last_number(text: str) -> str | None:
    r"""Return the last number of a text as it is written, without currency and separators of thousands.

    >>> last_number("So 3 x $1,200 = $3,600."), last_number("It is 3 1/2."), last_number("from 2 to −3")
    ('3600', '3 1/2', '-3')
    >>> last_number(r"It is $\frac{3}{4}$ of v2"), last_number("an area of 25 m^2"), last_number("答案是十二。")
    ('\\frac{3}{4}', '25', '12')
    """
    # A bold number is meant to be seen; a bold heading (Step 3) is no number.
    for bold in reversed(_BOLD.findall(text)):
        if (match := _NUMBER.match(bold.translate(CHARACTERS).strip())) and len(bold.split()) <= 3:
            return _written(match)
    formulas = [(match.start(), match.end(), next(filter(None, match.groups()))) for match in _MATH.finditer(text)]
    text = text.translate(_SAME_LENGTH)
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    chinese = _chinese(text, last)
    if chinese is not None:
        return chinese
    if last is None:
        return _english(text[-_TAIL_OF_WORDS:])
    return _formula(text, formulas, last) or _written(last)


_SAME_LENGTH = {code: char for code, char in CHARACTERS.items() if not isinstance(char, str) or len(char) == 1}


def _formula(text: str, formulas: list[tuple[int, int, str]], number: re.Match[str]) -> str | None:
    r"""Return the formula that a number is part of, 2\sqrt{3} for its 3."""
    at = number.start("number")
    for start, end, inside in reversed(formulas):
        if start <= at < end:
            return inside.strip() if inside.strip() != number["number"] else None
    start = max(text.rfind(space, 0, at) for space in " \n") + 1
    end = min((place for place in (text.find(space, at) for space in " \n") if place >= 0), default=len(text))
    word = text[start:end].strip(".,;:!?$*()") if end - start <= 100 else ""
    if not _FORMULA.search(word):
        return None
    return text[start:end].strip(".,;:!?$*")


def _written(match: re.Match[str]) -> str:
    number = match["number"]
    if match["range"]:
        return f"from {number}"  # a range is no number, nor is its end
    negative = bool(match["sign"]) != bool(match["inner"])
    return ("-" if negative else "") + number.replace(",", "") + ("%" if match["percent"] else "")


def _chinese(text: str, digits: re.Match[str] | None) -> str | None:
    """Return a Chinese numeral after the last digits that is introduced as a result, or any if there are no digits."""
    start = digits.end() if digits is not None else 0
    found = [match for match in _CHINESE.finditer(text, start) if digits is None or match["said"]]
    return chinese_number(found[-1]["number"]) if found else None


def _english(text: str) -> str | None:
    found = None
    at = 0
    while match := _ENGLISH.search(text, at):
        rest = text[match.start() : match.start() + 100]
        written = english_number(rest)
        at = match.end()
        if written != rest and match[0].casefold() != "one":
            number = re.match(r"-?\d+(?:[./]\d+)?", written)
            found = number[0] if number else found
            at = max(at, match.start() + 1 + len(rest) - max(0, len(written) - len(number[0] if number else "")))
    return found
