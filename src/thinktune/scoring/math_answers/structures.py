r"""The structure of an answer: lists, sets, tuples, equations, ratios, numbers with a base."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from thinktune.scoring.math_answers.plain_text import NAMES

ELLIPSIS = r"\ldots"
_OPENING = re.compile(r"\\begin\b|\\\{|[({\[]")
_CLOSING = re.compile(r"\\end\b|\\\}|[)}\]]")
_COMMA = re.compile(r",?\s?\\text\{ (?:or|and) \}\s?|,|;")


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split a text at separators that stand in no brackets.

    >>> split_top("(1,2),3", re.compile(","))
    ['(1,2)', '3']
    """
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        if not depth and (match := separator.match(text, at)) and match.end() > at:
            parts.append(text[start:at])
            start = at = match.end()
        elif match := _OPENING.match(text, at) or _CLOSING.match(text, at):
            depth = max(0, depth + (1 if _OPENING.match(text, at) else -1))
            at = match.end()
        else:
            at += 2 if text[at] == "\\" else 1
    return [*parts, text[start:]]


@dataclass(frozen=True)
class Group:
    r"""Several answers in one: `kind` is "list" for bare ones, "set" for `\{…\}`, else its two brackets."""

    kind: str
    items: tuple[str, ...]
    name: str = ""

    @property
    def ordered(self) -> bool:
        return self.kind not in {"list", "set"} or ELLIPSIS in self.items


def read_group(text: str) -> Group | None:
    r"""Read a list, set, tuple or interval, or None if the text is a single thing.

    >>> read_group("3 \\text{ or } 2").items, read_group("[0, 1)").kind, read_group("f(1,2)")
    (('3', '2'), '[)', None)
    """
    text = text.strip()
    kind, inside = "list", text
    if _wraps(text):
        if text.startswith("\\{"):
            kind, inside = "set", text[2:-2]
        elif text.startswith("{"):
            kind, inside = "set", text[1:-1]
        else:
            kind, inside = text[0] + text[-1], text[1:-1]
    items = [item.strip() for item in split_top(inside, _COMMA)]
    if kind == "list":
        items = [item for item in items if item]
    if (len(items) < 2 and (kind != "set" or text.startswith("{"))) or not all(items):
        return None
    name = ""
    if kind == "list" and (match := _NAMED_FIRST.match(items[0])) and not any("=" in item for item in items[1:]):
        name, items[0] = match[1].strip(), items[0][match.end() :].strip()  # n = 2, 3, 4
    return Group(kind, tuple(items), name)


_NAMED_FIRST = re.compile(r"([A-Za-z](?:_\{?\w{1,3}\}?)?)\s?=\s?(?!=)")


def _wraps(text: str) -> bool:
    """Return whether the bracket at the start is closed at the end, and not before."""
    opening = _OPENING.match(text)
    if opening is None or opening[0] == "\\begin" or not text.endswith((")", "]", "}")):
        return False
    if (opening[0] in {"\\{", "{"}) != text.endswith("}") or (opening[0] == "\\{") != text.endswith("\\}"):
        return False
    depth, at = 0, 0
    while at < len(text):
        if match := _OPENING.match(text, at):
            depth, at = depth + 1, match.end()
        elif match := _CLOSING.match(text, at):
            depth, at = depth - 1, match.end()
            if not depth:
                return at == len(text)
        else:
            at += 2 if text[at] == "\\" else 1
    return False


_MATRIX = re.compile(
    r"[(\[]?\s?\\begin\s?\{([pbB]?(?:small)?matrix|array)\}(?:\s?\{[lcr| ]*\})?(.*)\\end\s?\{\1\}\s?[)\]]?", re.DOTALL
)


def read_matrix(text: str) -> list[list[str]] | None:
    r"""Read the rows of a matrix.

    >>> read_matrix(r"\begin{pmatrix}1&2\\\\3&4\end{pmatrix}"), read_matrix("(1,2)")
    ([['1', '2'], ['3', '4']], None)
    """
    match = _MATRIX.fullmatch(text.strip())
    if match is None or r"\begin" in match[2]:
        return None
    rows = [row for row in re.split(r"\\\\", match[2]) if row.strip()]
    return [[item.strip() for item in row.split("&")] for row in rows]


_EQUALS = re.compile(r"(?<![<>!:\\])=(?![<=])|\\in(?![A-Za-z])|\\approx(?![A-Za-z])")
_RELATION = re.compile(r"[<>]|!=|\\(?:leq?|geq?|neq?|lt|gt|leqslant|geqslant)(?![A-Za-z])")
_SYMBOL = r"(?:\\?[A-Za-z]+|\\(?:text|mathrm|operatorname|mathbf)\s?\{[^{}]*\}|\\[a-z]+\s?\{[A-Za-z]{1,4}\})'*"
_NAME = re.compile(
    rf"(?:\\(?:angle|triangle|measuredangle)\s?)?{_SYMBOL}(?:\s{_SYMBOL}){{0,5}}(?:_\{{?\w{{1,10}}\}}?)?'*(?:\s?\([^()=]{{1,20}}\))?"
)

_LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|theta|rho|phi|varphi|lambda|mu))(?:_\{?\w\}?)?"
_LETTERS = re.compile(rf"\(\s?{_LETTER}(?:\s?,\s?{_LETTER})+\s?\)")


def is_relation(text: str) -> bool:
    """Return whether a text says that something is smaller, larger or other than something else."""
    return _RELATION.search(text) is not None


def sides(text: str) -> list[str]:
    r"""Split an equation into its sides, `\in` and `\approx` included; one side if it is none."""
    if "=" not in text and "\\in" not in text and "\\approx" not in text:
        return [text]
    return [part.strip() for part in split_top(text, _EQUALS)]


def is_name(text: str) -> bool:
    r"""Return whether one side of an equation only names the value: x, f(x), (p, q), \angle ABC, area of the circle."""
    text = text.strip()
    if _LETTERS.fullmatch(text):
        return True
    if not _NAME.fullmatch(text):
        return False
    word = re.sub(r"[^A-Za-z]", "", text.split("(")[0])
    return word not in NAMES or (text.startswith("\\") and word not in {"pi", "infty", "sqrt"})


_BASE_NAMES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
               "twelve": 12, "sixteen": 16, "binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16,
               "hex": 16}  # fmt: skip
_BASE = r"(?P<base>\d{1,2}|[a-z]{3,11})"
_BASED = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf"(?P<sign>-?)(?:\(|\{{|\\(?:text|mathrm)\s?\{{)?(?P<digits>[0-9A-Z]+)[)}}]?\s?_\s?\{{?\s?(?:\\(?:text|mathrm)\s?\{{)?\s?(?:base\s?)?\}}?\s?{_BASE}\s?\}}{{0,2}}",
        rf"(?P<sign>-?)(?P<digits>[0-9A-Z]+),?\s?\(?(?:in\s)?base[\s-]?{_BASE}\)?",
        r"(?P<sign>-?)(?P<digits>[0-9A-Z]+),?\s?\(?(?:in\s)?(?P<base>binary|octal|decimal|hexadecimal|hex)\)?",
        r"(?P<sign>-?)0(?P<base>x)(?P<digits>[0-9A-F]+)",
        r"(?P<sign>-?)0(?P<base>b)(?P<digits>[01]+)",
        r"(?P<sign>-?)0(?P<base>o)(?P<digits>[0-7]+)",
    )
)


def read_based(text: str) -> int | None:
    """Read a number that names its base.

    >>> read_based("101_2"), read_based("1F (base 16)"), read_based("0x1f"), read_based("x_2")
    (5, 31, 31, None)
    """
    if len(text) > 100:
        return None
    for pattern in _BASED:
        match = pattern.fullmatch(text.strip())
        if not match:
            continue
        name = match["base"].casefold()
        base = {"x": 16, "b": 2, "o": 8}.get(name) or _BASE_NAMES.get(name) or (int(name) if name.isdigit() else 0)
        digits = match["digits"]
        if not 2 <= base <= 36 or not (digits[0].isdigit() or (base > 10 and len(digits) > 1) or name == "x"):
            return None
        try:
            return int(match["sign"] + digits, base)
        except ValueError:
            return None
    return None


_RATIO_PART = r"\s?(\d+(?:\.\d+)?|\d+/\d+)\s?"
_RATIO = re.compile(rf"{_RATIO_PART}(?:(?::|\\colon|比|\bto\b){_RATIO_PART}){{1,5}}")


def read_ratio(text: str) -> tuple[Fraction, ...] | None:
    """Read the parts of a ratio: 3:4, 3 to 4, 1:2:3.

    >>> [str(part) for part in read_ratio("3 to 4")], read_ratio("3/4")
    (['3', '4'], None)
    """
    if len(text) > 100 or not _RATIO.fullmatch(text):
        return None
    parts = re.split(r":|\\colon|比|to", text)
    try:
        return tuple(Fraction(part.strip()) for part in parts)
    except ZeroDivisionError:
        return None


def same_ratio(left: tuple[Fraction, ...], right: tuple[Fraction, ...]) -> bool:
    """Return whether ratios are proportional: 3:4 is 6:8."""
    if len(left) != len(right):
        return False
    return all(left[0] * two == one * right[0] for one, two in zip(left, right, strict=True)) and (
        any(left) == any(right)
    )
