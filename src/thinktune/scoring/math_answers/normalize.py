r"""A normal form of answers: wrappers come off, spaces and digits are written alike.

`normalise` removes wrappers (a box, dollars, "the answer is"), and writes the rest in one way: half-width
characters, LaTeX instead of Unicode mathematics, spaces for every kind of space, digits for numbers in words. Every
pattern is linear in the length of the text.
"""

from __future__ import annotations

import re
from itertools import accumulate

from thinktune import tags
from thinktune.scoring.base import FULL_WIDTH
from thinktune.scoring.math_answers.numerals import NUMERALS, chinese_number, english_number

_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'), ("“", "”"))
_INTRODUCED = re.compile(
    r"(?:so|thus|hence|therefore)?,?\s?(?:the\s)?(?:final\s|correct\s)?answer(?:\sis)?\s?[:=]?\s?"
    r"|(?:所以|因此|故)?(?:最终)?答案[是为:]?\s?|答[::]\s?|=\s?|\\approx(?![a-z])\s?",
    re.I,
)
CHARACTERS = str.maketrans(
    FULL_WIDTH
    | {ord(char): text for char, text in {
        "\u3000": " ", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u200a": " ", "\u2002": " ", "\u2003": " ",
        "\u200b": "", "\ufeff": "", "。": ".", "、": ",", "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "∶": ":",
        "×": r" \times ", "÷": "/", "⁄": "/", "∕": "/", "·": r" \cdot ", "⋅": r" \cdot ", "π": r"\pi ", "θ": r"\theta ",
        "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ",
        "≠": r"\ne ", "≈": r"\approx ", "°": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F", "±": r"\pm ",
        "∅": r"\emptyset ", "∈": r"\in ", "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4",
        "⅕": " 1/5", "⅛": " 1/8", "ℝ": r"\mathbb{R}", "€": "€", "￥": "¥", "…": "...", "⋯": "...",
        "’": "'", "⟨": "(", "⟩": ")",
    }.items()}
)  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_ROW_GAP = re.compile(r"(?<=\\\\)\s?\[-?[\d.]+\s?(?:pt|em|ex|mm|cm)\]")  # \\[4pt] between the rows of a matrix
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])\s?|(?<!\\)\\!\s*")
_SPACES = re.compile(
    r"(?<!\\)\\[,;:> ]|~|\\(?:quad|qquad|thinspace|medspace|thickspace|enspace|hfill|space|nobreakspace)(?![A-Za-z])"
    r"|\\[hm]space\*?\s?\{[^{}]*\}|\\[hv]?phantom\s?\{[^{}]*\}"
)
_DOTS = re.compile(r"\.{3,}|\\(?:dots|cdots|dotsc|dotsb|ldots)(?![A-Za-z])")
_INLINE = re.compile(r"\$(?! )([^$]{1,200}?)(?<![ (,])\$(?!\d)")
# 1,250 and 1,00,000; 1 250 and 12 500, which a thin space may have separated.
_THOUSANDS = re.compile(r"(?<![\d,.])(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3})(?![\d,]|\.\d+,)")
# 1.234.567 and 1.234,56, as many countries write them; 1,5 and 1.234 by themselves can be something else.
_POINTED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?:,\d+)?|\.\d{3},\d\d)(?![\d.,])")
_SPACED = re.compile(r"(?<![\d.,/}])(?<![\d.,/}] )\d{1,3}(?: \d{3})+(?![\d/]| \d| ?/| ?\\frac)")
_SPACED_DECIMALS = re.compile(r"(?<=\d)\.\d{3}(?: \d{3})+(?: \d{1,2})?(?!\d)")
_ROOT = re.compile(r"√\s?(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[a-z]))")
_TIMES = re.compile(r"(?<=\d)\s+[xX]\s+(?=-?[\d.])|(?<=\d)(?<!\b0)x(?=\d)|(?<=\d)\s?[xX]\s?(?=10\s?\^)")
_WORDS_BETWEEN = re.compile(
    r"\s?(?:\\text\s?\{\s?,?\s?(or|and)\s?,?\s?\}|,?\s?\b(or|and)\b(?!\s?\})|(或者?)|(?<!\w)(?:且|并且))\s?", re.I
)
_CHINESE_AND = re.compile(rf"(?<=[\d)}}%{NUMERALS}])\s?[和及与]\s?(?=[-\d(\\{NUMERALS}])")
_ALIKE = ((r"\varnothing", r"\emptyset"), (r"\%", "%"), (r"\langle", "("), (r"\rangle", ")"))
_OUTWARD = re.compile(r"([\[\]])([^\[\](),;]+[,;][^\[\](),;]+)([\[\]])")  # ]2, 3[ is (2, 3)
_CUP = re.compile(r"(?<=[)\]}])\s?U\s?(?=[(\[\\{])")
_OF_DEGREES = re.compile(
    r"(\\?(?:sin|cos|tan|cot|sec|csc)(?:\s?\^\s?(?:\{\d\}|\d))?)\s?[({]?\s?(\d+(?:\.\d+)?)\s?\^\s?(?:\{\s?\\circ\s?\}|\\circ)\s?[)}]?"
)
_PRICE = "\ue000"  # a dollar sign that was written as one
_REALS = re.compile(
    r"(?:[a-z] (?:is|can be) )?(?:all|any|every|the set of(?: all)?) (?:reals?|real numbers?)(?: [a-z])?"
    r"|(?:全体|所有|一切|任意)实数|实数集|[a-z] ?\\in ?\\mathbb ?\{R\}",
    re.I,
)
_NOTHING = re.compile(r"(?:there (?:is|are) )?no solutions?|(?:the )?empty set|无解|空集", re.I)


def normalise(answer: str) -> str:
    r"""Write an answer in its normal form.

    >>> normalise(r"The answer is $\boxed{１,２５０}$。"), normalise(r"18\,\text{cm}"), normalise(r"12\,500")
    ('1250', '18 \\text{cm}', '12500')
    >>> normalise("三分之二"), normalise("√2 或 3"), normalise("twenty-one")
    ('2/3', '\\sqrt{2} \\text{ or } 3', '21')
    """
    text = _RAISED.sub(_power, answer.replace(r"\$", _PRICE)).translate(CHARACTERS)
    text = _DOTS.sub(lambda _: r"\ldots ", text).strip()
    text = _SPACES.sub(" ", _LAYOUT.sub("", _ROW_GAP.sub("", text)))
    text = _INLINE.sub(r"\1", _unwrap(text)).replace(_PRICE, "$")
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", re.sub(r"\s+", " ", text))
    text = (
        text.replace(r"\varnothing", r"\emptyset").replace(r"\%", "%").replace(r"\langle", "(").replace(r"\rangle", ")")
    )
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = _OF_DEGREES.sub(r"\1(\\frac{\2\\pi}{180})", _CUP.sub(r" \\cup ", _OUTWARD.sub(_inward, text)))
    text = _digits(text)
    text = _CHINESE_AND.sub(",", english_number(text))
    if re.search(r"或|且|\bor\b|\band\b", text, re.I):
        text = _WORDS_BETWEEN.sub(_connective, text)
    if _NOTHING.fullmatch(text.strip()):
        return r"\emptyset"
    if _REALS.fullmatch(text.strip()):
        return r"\mathbb{R}"
    return chinese_number(re.sub(r"\s+", " ", text).strip())


def tight(text: str) -> str:
    """Remove the spaces without meaning from a text: those of 1 1/2 have one."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _power(match: re.Match[str]) -> str:
    return f"^{{{match[0].translate(_SUPERSCRIPTS)}}}"


def _inward(match: re.Match[str]) -> str:
    opening, inside, closing = match.groups()
    return f"{'(' if opening == ']' else '['}{inside}{')' if closing == '[' else ']'}"


def _connective(match: re.Match[str]) -> str:
    english = match[1] or match[2]
    return rf" \text{{ {english.casefold() if english else 'or' if match[3] else 'and'} }} "


def _digits(text: str) -> str:
    """Write digits without separators of thousands, and `x` between numbers as times."""
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ".", text)
    if "." in text and not re.search(r"[(\[{]", text):
        text = _POINTED.sub(lambda number: number[0].replace(".", "").replace(",", "."), text)
    if "," in text and _THOUSANDS.search(text):  # (1,250) is a pair
        depths = [
            0,
            *accumulate((char in "([") - (char in ")]") + _set_brace(text, at) for at, char in enumerate(text)),
        ]
        text = _THOUSANDS.sub(
            lambda number: number[0] if depths[number.start()] > 0 else number[0].replace(",", ""), text
        )
    text = _SPACED.sub(lambda number: number[0].replace(" ", ""), text)
    text = _SPACED_DECIMALS.sub(lambda number: number[0].replace(" ", ""), text)
    return _TIMES.sub(r" \\times ", text)


def _set_brace(text: str, at: int) -> int:
    if at and text[at - 1] == "\\":
        return (text[at] == "{") - (text[at] == "}")
    return 0


def _unwrap(text: str) -> str:
    """Take off boxes, dollars, emphasis, introductions and the last full stop, until nothing changes."""
    for _ in range(6):
        before = text
        text = text.strip().removesuffix(".").strip()
        if match := _INTRODUCED.match(text):
            text = text[match.end() :]
        for start, end in _WRAPS:
            if len(text) > len(start) + len(end) and text.startswith(start) and text.endswith(end):
                inside = text[len(start) : -len(end)]
                text = text if start in inside or end in inside else inside
        if text.startswith((r"\boxed{", r"\text{", r"\mathrm{", r"\textbf{", r"\mathbf{")) and text.endswith("}"):
            inner = r"\boxed{" + text.partition("{")[2]
            boxed = tags.last_boxed(inner)
            text = boxed if boxed is not None and len(boxed.strip()) >= len(inner[7:-1].strip()) else text
        if text == before:
            break
    return text
