r"""A value with the unit and words beside it: `18 cm`, `$1.5 million`, `5% increase`, `2\pi\text{ m}`, 5个苹果.

The value is an exact number, or the text of an expression. Beside it are a measure (see `units`) and words. Either
may be left out on one side of a comparison, but must not be a different one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from thinktune.scoring.base import Verdict
from thinktune.scoring.math_answers.nouns import SAID_BEFORE, STATEMENTS, nouns
from thinktune.scoring.math_answers.numerals import part_of, scale_of
from thinktune.scoring.math_answers.plain_text import NAMES
from thinktune.scoring.math_answers.units import Measure, named, read_unit

LONGEST = 200  # characters; exact arithmetic on longer numbers is no longer quick


@dataclass(frozen=True)
class Quantity:
    """A value with the unit and words beside it.

    Attributes:
        value: the exact number; None if it is an expression.
        body: the expression, or the decimal, as text; "" if the value is no decimal.
        measures: the possible measures of the unit; empty without a known unit.
        words: the other words beside the value, in the singular.
        unit: as it was written.
    """

    value: Fraction | None
    body: str = ""
    measures: tuple[Measure, ...] = ()
    words: frozenset[str] = frozenset()
    unit: str = ""


_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_POWER = (
    r"(?:\s?(?:\\times|\\cdot|\*)\s?10\^(?:\{(?P<power>[-+]?\d{1,3})\}|(?P<power1>-?\d{1,3}))"
    r"|[eE](?P<power2>[-+]?\d{1,3})(?![\w.]))"
)
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s?(?P<currency>(?:us|a|c|hk|cn)?\$|€|£|¥|₹|₩|₽|(?:usd|eur|gbp|rmb|rs\.?)\s)?\s?(?P<sign2>-?)(?:
      (?P<mixed>\d+)(?:\s(?:and\s)?|\s?(?=\\frac))(?:(?P<mo>\d+)\s?/\s?(?P<mu>\d+)|\\frac\{{(?P<mo2>\d+)\}}\{{(?P<mu2>\d+)\}}|\\frac(?P<mo3>\d)(?P<mu3>\d))
      |\\frac(?:\{{(?P<fs>-?)(?P<fo>\d+)\}}\{{(?P<fu>\d+)\}}|(?P<fo1>\d)(?P<fu1>\d))
      |(?P<over>\d+)\s?/\s?(?P<under>\d+)(?![\d.]|\s?(?:\^|\\))
      |(?P<before>\d*\.\d*)(?:\\(?:overline|bar|dot)\s?(?:\{{(?P<again>\d+)\}}|(?P<again1>\d))|\((?P<again2>\d+)\)|(?P<dots>\\ldots))
      |(?P<plain>{_DECIMAL}){_POWER}?
      |(?P<ten>10)\^(?:\{{(?P<power3>[-+]?\d{{1,3}})\}}|(?P<power4>-?\d{{1,3}}))(?![\w\^!])
    )""",
    re.X | re.I,
)  # fmt: skip
_FRACTIONS = (("mo", "mu"), ("mo2", "mu2"), ("mo3", "mu3"), ("fo", "fu"), ("fo1", "fu1"), ("over", "under"))
_TEXT = re.compile(r"\\(?:text|textrm|textit|textbf|mathrm|mathit|mbox|rm|operatorname|unit|si)\s?\{([^{}]*)\}")
_ABBREVIATION = re.compile(r"\b([abpu])\.\s?([mcds])\b\.?", re.I)
_POWER_OF_UNIT = re.compile(r"\^\s?\{\s?(-?\d)\s?\}")
_WRITTEN = (
    (re.compile(r"(?:\{\})?\^\s?\{?\s?\\circ\s?\}?|\\degree"), "°"), (re.compile(r"\\cdot|\\ast"), "*"),
    (re.compile(r"\\mu\s?"), "µ"), (re.compile(r"\\Omega"), "Ω"),
    (re.compile(r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}"), r"\1/\2"), (re.compile(r"\{([^{}]*)\}"), r"\1"),
)  # fmt: skip
_TWO_LETTERS = frozenset(["up", "am", "pm", "bc", "ad", "ce", "no", "go"])
_SHORT_UNITS = frozenset(["m", "s", "h", "g", "l"])
_SENTENCE = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z ,:'’-]{0,150}?[\s:=]\s?)(?P<number>[-$€£¥]*(?:\d|\.\d|\\frac).*)", re.DOTALL
)
_CURRENCY_NAME = re.compile(r"(?:us|[ac]|hk)?\s?dollars?\b|usd|rupees?\b|euros?\b|pounds?\b", re.I)
_COMPOUND = re.compile(r"(?<=[A-Za-z\u4e00-\u9fff°.}])\s?(?:,\s?|\\text\{ and \}\s?|\band\b\s?|零)?(?=\d)")


def read_quantity(text: str) -> Quantity | None:
    r"""Read a normalised answer as a quantity, or None if it is something else.

    >>> str(read_quantity(r"1\frac{1}{2}").value), read_quantity("18 dollars").unit, read_quantity("18x")
    ('3/2', 'dollars', None)
    """
    if len(text) > LONGEST:
        return None
    text = _bare(text)
    if (found := _single(text)) is not None:
        return found
    if (found := _compound(text)) is not None:
        return found
    if match := _SENTENCE.fullmatch(text):
        before = set(re.findall(r"[a-z]+", match["before"].casefold())) - SAID_BEFORE
        after = _single(match["number"]) or _compound(match["number"])
        if after is not None and not before & STATEMENTS and any(len(word) > 1 for word in before):
            return Quantity(after.value, "", after.measures, after.words | nouns(sorted(before)), after.unit)
    return None


def _bare(text: str) -> str:
    for _ in range(4):
        inside = text[1:-1] if text[:1] + text[-1:] in {"()", "{}"} else None
        if inside is None or re.search(r"[(){}\[\],]", inside):
            break
        text = inside.strip()
    return text.removesuffix("$") if text[:1] != "$" else text


def _single(text: str) -> Quantity | None:
    match = _NUMBER.match(text)
    if not match or (value := _value(match)) is None:
        return None
    if match["sign"] and match["sign2"]:
        return None
    rest = text[match.end() :]
    if (scaled := re.match(r"\s?(k|m|b|bn)\b", rest, re.I)) and match["currency"]:
        value *= {"k": 10**3, "m": 10**6}.get(scaled[1].casefold(), 10**9)
        rest = rest[scaled.end() :]
    plain = match["plain"] or ""
    body = "" if "." not in plain or match["power"] or match["power1"] or match["power2"] else plain
    return _with_unit(value, f"{'-' if value < 0 else ''}{body}" if body else "", match["currency"] or "", rest)


def _with_unit(value: Fraction | None, body: str, currency: str, rest: str) -> Quantity | None:
    texted = bool(re.match(r"\s?\\(?:text|mathrm|mbox|rm|unit|si)", rest))
    attached = not texted and rest[:1].isalpha()
    written = _flatten(rest)
    if written.startswith("(") and written.endswith(")"):
        written, attached = written[1:-1].strip(), False
    while value is not None and (word := re.match(r"-?([A-Za-z]+)", written)) and not attached:
        if scale := scale_of(word[1]):
            value *= scale
        elif (part := part_of(word[1])) and value.denominator == 1 and (word[1][-1] == "s" or value == 1):
            value /= part
        else:
            break
        written = written[word.end() :].strip().removeprefix("of ").strip()
    unit = f"{currency.strip()}{written}".strip()
    if not written:
        return Quantity(value, body, named(currency.strip()) if currency.strip() else (), frozenset(), unit)
    if re.search(r"[\\{}=<>+_\[\],;:!|]", written) or _is_factor(written, attached=attached, texted=texted):
        return None
    if currency.strip() and not re.match(
        r"(?:us|[ac]|hk)?\s?dollars?\b|usd|rupees?\b|euros?\b|pounds?\b", written, re.I
    ):
        written = f"{currency.strip()} {written}"
    measures, words = read_unit(written)
    if any(re.search(r"\d", word) for word in words) or (not measures and re.search(r"\d", written)):
        return None
    if {word.casefold() for word in words} & STATEMENTS:
        return None
    return Quantity(value, body, measures, nouns(words), unit)


def _flatten(rest: str) -> str:
    """Remove the LaTeX around a unit, and the dots of an abbreviation."""
    rest = _ABBREVIATION.sub(r"\1\2", _POWER_OF_UNIT.sub(r"^\1", rest))
    for _ in range(3):
        rest = _TEXT.sub(r" \1 ", rest)
    for pattern, into in _WRITTEN:
        rest = pattern.sub(into, rest)
    return re.sub(r"\s+", " ", rest).replace(" ^", "^").strip()


def _is_factor(written: str, *, attached: bool, texted: bool) -> bool:
    """Return whether letters behind a number are factors rather than a unit: 18x, 5xy, 3 K with no space."""
    head = re.match(r"[A-Za-z]+", written)
    if head is None:
        return not re.match(r"[°%$€£¥¢₹Ωµμ\u4e00-\u9fff\"/*(]", written)
    word = head[0]
    if word.casefold() in NAMES:
        return True
    if texted:
        return False
    if len(word) == 1:
        return word not in _SHORT_UNITS and (attached or not named(word) or word.islower())
    if named(word) or word.casefold() in _TWO_LETTERS or word.casefold() in {"st", "nd", "rd", "th", "sq", "cu", "fl"}:
        return False
    return len(word) <= 3 if attached else len(word) == 2 and word.islower()


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    if part["before"] is not None:
        value = _repeating(part["before"], part["again"] or part["again1"] or part["again2"])
    elif part["ten"]:
        value = Fraction(10)
    else:
        over, under = next(
            ((part[top], part[bottom]) for top, bottom in _FRACTIONS if part[top] is not None), (part["plain"], "1")
        )
        value = None if not int(under) else Fraction(over) / int(under) + int(part["mixed"] or 0)
    if value is None:
        return None
    power = int(next((part[name] for name in ("power", "power1", "power2", "power3", "power4") if part[name]), 0))
    power -= bool(part["ten"])
    negative = ((part["sign"] == "-") != (part["sign2"] == "-")) != (part["fs"] == "-")
    return value * Fraction(10) ** power * (-1 if negative else 1)


def _repeating(before: str, again: str | None) -> Fraction | None:
    """Read 0.1(6) and 0.1666… as 1/6; None if the dots do not tell which digits repeat."""
    whole, _, digits = before.partition(".")
    if again is None:
        again = _period(digits)
        if again is None:
            return None
        digits = digits.removesuffix(again)
    places = 10 ** len(digits)
    return Fraction(int(whole + digits or "0"), places) + Fraction(int(again), places * (10 ** len(again) - 1))


def _period(digits: str) -> str | None:
    # 2.718281828… repeats 1828 twice and is e: what does not begin at the point has to come three times.
    for length in range(1, len(digits) // 2 + 1):
        block, count = digits[-length:], len(digits) // length
        if digits == block * count and count * length == len(digits):
            return block
        if digits.endswith(block * 3):
            return block
    return None


def _compound(text: str) -> Quantity | None:
    """Read 2 hours 30 minutes, 5 feet 6 inches: parts of one kind, each of a smaller unit."""
    pieces = [piece for piece in _COMPOUND.split(text, maxsplit=4) if piece.strip()]
    parts = [_single(piece.strip()) for piece in pieces]
    if not 2 <= len(parts) <= 4:
        return None
    for measure in parts[0].measures if parts[0] else ():
        total, before, words = Fraction(0), None, frozenset[str]()
        for part in parts:
            same = _of_kind(part, measure)
            if part is None or same is None or (before is not None and same.factor >= before):
                break
            if part.words and part is not parts[-1]:
                break
            total, before, words = total + (part.value or 0) * same.factor, same.factor, part.words
        else:
            return Quantity(total, "", (Measure(measure.kinds, Fraction(1)),), words, text)
    return None


def _of_kind(part: Quantity | None, measure: Measure) -> Measure | None:
    """Return the measures of a part that are of the kind of another."""
    if part is None or part.value is None:
        return None
    return next((each for each in part.measures if each.kinds == measure.kinds), None)


_TEXTED = r"\\(?:text|mathrm|mbox|rm)\s?\{(?:[^{}]|\{[^{}]*\})*\}"
_TRAILING = re.compile(
    rf"""^(?P<body>.*?[\w}})!])(?P<unit>
      \s?(?:{_TEXTED}(?:\s?[\^/*·]\s?\{{?-?\w?\}}?|\s?\\cdot\s?)*)+
      |\s?(?:\{{\}})?\^\s?\{{?\s?\\circ\s?\}}?(?:\s?{_TEXTED}|\s?[CF]\b)?
      |\s(?:(?:square|cubic|sq\.?)\s)?[A-Za-z]{{2,20}}(?:\s?(?:/|per)\s?[A-Za-z]{{1,20}})?(?:\s?\^\s?\{{?[23]\}}?)?
      |\s?[a-z]{{0,3}}%
    )$""",
    re.DOTALL | re.X,
)


def read_measured(text: str) -> Quantity:
    """Split an expression from the unit behind it, if there is one."""
    currency = re.match(r"-?\s?(us\$|\$|€|£|¥|₹)(?=.)", text, re.I)
    if currency:
        rest = text[: currency.start(1)] + text[currency.end() :]
        without = read_measured(rest)
        return without if without.unit else Quantity(None, rest.strip(), named(currency[1]), frozenset(), currency[1])
    if (match := _TRAILING.match(text)) and not match["body"].endswith("\\"):
        unit = match["unit"]
        known = unit.lstrip().startswith(("\\", "^", "{", "%")) or bool(read_unit(unit)[0])
        if known and (found := _with_unit(None, match["body"].strip(), "", unit)) is not None:
            return found
    return Quantity(None, text)


def beside(reference: Quantity, answer: Quantity) -> Verdict:
    """Return whether units and words beside two equal values agree; one side may leave them out."""
    ours, theirs = reference.words, answer.words
    if ours and theirs and not (ours <= theirs or theirs <= ours) and not _chinese_heads(ours, theirs):
        return _undecided(reference, answer)
    if reference.measures and answer.measures:
        return Verdict(True)
    # A measure on one side and a noun in its place on the other.
    if (reference.measures and not ours and theirs) or (answer.measures and not theirs and ours):
        return _undecided(reference, answer)
    return Verdict(True)


def _chinese_heads(ours: frozenset[str], theirs: frozenset[str]) -> bool:
    one, two = "".join(sorted(ours)), "".join(sorted(theirs))
    return "\u4e00" <= one[0] <= "\u9fff" and (one.endswith(two) or two.endswith(one))


def _undecided(reference: Quantity, answer: Quantity) -> Verdict:
    return Verdict(False, f"not decided: {reference.unit[:40]!r} may be something other than {answer.unit[:40]!r}")


def conversions(reference: Quantity, answer: Quantity) -> list[tuple[Measure, Measure]]:
    """Return the meanings of two units that measure the same kind. A rate of money may leave out its per-unit."""
    pairs = [(ours, theirs) for ours in reference.measures for theirs in answer.measures]
    return [(ours, theirs) for ours, theirs in pairs if ours.kinds == theirs.kinds]


def equal_quantities(reference: Quantity, answer: Quantity) -> Verdict:
    """Compare numbers exactly; a unit may be left out on either side but not be a different one.

    50% equals 0.5 and, with the unit left out, 50.
    """
    assert reference.value is not None
    assert answer.value is not None
    if reference.measures and answer.measures:
        same = [
            reference.value * ours.factor + ours.zero == answer.value * theirs.factor + theirs.zero
            for ours, theirs in conversions(reference, answer)
        ]
        return beside(reference, answer) if any(same) else Verdict(False)
    equal = reference.value == answer.value or any(
        each.value is not None and _is_percent(each) and not other.measures and each.value / 100 == other.value
        for each, other in ((reference, answer), (answer, reference))
    )
    return beside(reference, answer) if equal else Verdict(False)


def _is_percent(quantity: Quantity) -> bool:
    return any(measure.kinds == (("%", 1),) for measure in quantity.measures)
