r"""How a mathematical answer may be written: what wraps it, its digits, its unit.

`normalise` takes off what says nothing (a box, dollars, "the answer is"), and writes the rest in one way: half-width
characters, LaTeX instead of Unicode mathematics, digits instead of Chinese numerals. `quantity` reads what remains as
an exact number with a unit, if it is one. Every pattern is linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from thinktune import tags
from thinktune.tasks.base import FULL_WIDTH

_WRAPS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_INTRODUCED = re.compile(
    r"(?:the\s)?(?:final\s|correct\s)?answer(?:\sis)?\s?[:=]?\s?|(?:所以|因此|故)?(?:最终)?答案[是为:]?\s?|答[::]\s?",
    re.I,
)
_CHARACTERS = str.maketrans(
    FULL_WIDTH
    | {ord(char): text for char, text in {
        "\u3000": " ", "\u00a0": " ", "\u202f": " ", "\u2009": " ", "。": ".", "、": ",", "−": "-", "–": "-", "—": "-",
        "×": r" \times ", "÷": "/", "⁄": "/", "·": r" \cdot ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ",
        "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "°": r"^\circ ", "±": r"\pm ", "∅": r"\emptyset ",
        "∈": r"\in ", "½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4", "⅕": " 1/5", "⅛": " 1/8",
        "²": "^{2}", "³": "^{3}", "⁴": "^{4}", "€": "€", "￥": "¥",
    }.items()}
)  # fmt: skip
_COMMANDS = re.compile(
    r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])|\\[!,;:]|\\(?=\$)|(?<!\\)\\ "
    r"|(?<=\d)\{,\}(?=\d{3})"
)
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_ROOT = re.compile(r"√\s?(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[a-z]))")
_CHAIN = re.compile(r"(-?[\w./\\{}]+)\s?(<|\\leq?)\s?([a-zA-Z])\s?(<|\\leq?)\s?(-?[\w./\\{}]+)")


def normalise(answer: str) -> str:
    r"""One way of writing an answer.

    >>> normalise(r"The answer is $\boxed{１,２５０}$。")
    '1250'
    >>> normalise("三分之二"), normalise("√2 或 3")
    ('2/3', '\\sqrt{2} \\text{ or } 3')
    """
    text = _unwrap(answer.translate(_CHARACTERS).strip())
    text = re.sub(
        r"\\[dt]frac(?![A-Za-z])", r"\\frac", _COMMANDS.sub(lambda cut: "," if "," in cut[0][:2] else "", text)
    )
    text = text.replace(r"\varnothing", r"\emptyset").replace(r"\%", "%")
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}", text)
    text = (
        re.sub(r"\s?(?:或者?|\bor\b(?!\s?\}))\s?", r" \\text{ or } ", text) if re.search(r"或|\bor\b", text) else text
    )
    text = re.sub(r"(?<=\d)\s?[和及与]\s?(?=[-\d])", ",", text)
    if not re.search(r"[(\[{]", text):  # (1,250) is a pair
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    if chain := _CHAIN.fullmatch(text):  # 0 < x \le 5 is (0, 5]
        low, left, _, right, high = chain.groups()
        text = f"{'(' if left == '<' else '['}{low},{high}{')' if right == '<' else ']'}"
    return chinese_number(text.strip())


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
                text = text if start in inside else inside
        if text.startswith((r"\boxed{", r"\text{", r"\mathrm{", r"\textbf{", r"\mathbf{")) and text.endswith("}"):
            inner = r"\boxed{" + text.partition("{")[2]
            boxed = tags.last_boxed(inner)
            text = boxed if boxed is not None and len(boxed.strip()) >= len(inner[7:-1].strip()) else text
        if text == before:
            break
    return text


_DIGIT_FORMS = ("零〇", "一壹", "二两贰", "三叁", "四肆", "五伍", "六陆", "七柒", "八捌", "九玖")
_DIGITS = {char: value for value, chars in enumerate(_DIGIT_FORMS) for char in chars}
_SMALL = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_LARGE = {"万": 10**4, "亿": 10**8}
_NUMERALS = "".join(_DIGITS) + "".join(_SMALL) + "".join(_LARGE)
_CHINESE = re.compile(
    rf"(负?)(百分之|[{_NUMERALS}]+分之)?([{_NUMERALS}]+)(?:点([{''.join(_DIGITS)}]+))?(半?)(?=$|[^{_NUMERALS}分点])"
)
_SCALED = re.compile(r"([-+]?\d+(?:\.\d+)?)\s?([万亿])")


def chinese_number(text: str) -> str:
    """Write a Chinese numeral at the start of a text in digits; what follows it (a unit) stays.

    >>> chinese_number("一万二千零五十"), chinese_number("百分之五十"), chinese_number("十八元")
    ('12050', '50%', '18元')
    """
    if scaled := _SCALED.match(text):
        value = Fraction(scaled[1]) * _LARGE[scaled[2]]
        return (str(value.numerator) if value.denominator == 1 else str(float(value))) + text[scaled.end() :]
    match = _CHINESE.match(text[:60])
    if not match or (match.end() < len(text) and len(text) > match.end() + 12):
        return text
    sign, under, whole, decimals, half = match.groups()
    number = str(_chinese_integer(whole))
    if decimals or half:
        number += "." + ("".join(str(_DIGITS[digit]) for digit in decimals) if decimals else "5")
    if under:
        number += "%" if under == "百分之" else f"/{_chinese_integer(under.removesuffix('分之'))}"
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


@dataclass(frozen=True)
class Quantity:
    """An exact number and its unit: "" where there is none, "%" for percent."""

    value: Fraction
    unit: str = ""


_DECIMAL = r"(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s?(?P<currency>us\$|\$|€|£|¥|rs\.?\s)?\s?(?:
      (?P<mixed>\d+)(?:\s|\s?(?=\\frac))(?:(?P<mo>\d+)/(?P<mu>\d+)|\\frac\{{(?P<mo2>\d+)\}}\{{(?P<mu2>\d+)\}})
      |\\frac(?:\{{(?P<fs>-?)(?P<fo>\d+)\}}\{{(?P<fu>\d+)\}}|(?P<fo1>\d)(?P<fu1>\d))
      |(?P<over>\d+)\s?/\s?(?P<under>\d+)
      |(?P<plain>{_DECIMAL})(?:\s?(?:\\times|\\cdot|\*)\s?10\^(?:\{{(?P<power>[-+]?\d{{1,3}})\}}|(?P<power1>\d))|[eE](?P<power2>[-+]?\d{{1,3}}))?
    )""",
    re.X | re.I,
)  # fmt: skip
_LONGEST_NUMBER = 200  # exact arithmetic on longer ones is no longer quick

_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(factor))
    for kind, units in {
        "%": {"% percent percents": "1"},
        "money": {"$ us$ dollar dollars usd 美元": "1", "cent cents ¢ 美分": "1/100"},
        "yuan": {"¥ yuan rmb cny 元 块 块钱 人民币": "1", "角": "1/10"},
        "euro": {"€ euro euros eur 欧元": "1"},
        "pound": {"£ gbp 英镑": "1"},
        "length": {
            "m meter meters metre metres 米": "1", "cm centimeter centimeters centimetre centimetres 厘米": "1/100",
            "mm millimeter millimeters millimetre millimetres 毫米": "1/1000",
            "km kilometer kilometers kilometre kilometres 千米 公里": "1000", "分米 dm": "1/10",
            "inch inches 英寸": "0.0254", "ft foot feet 英尺": "0.3048", "yd yard yards": "0.9144",
            "mi mile miles 英里": "1609.344",
        },
        "time": {
            "s sec secs second seconds 秒 秒钟": "1", "min mins minute minutes 分钟": "60",
            "h hr hrs hour hours 小时": "3600", "day days 天": "86400", "week weeks 周 星期": "604800",
        },
        "months": {"month months 个月": "1", "year years 年": "12"},
        "mass": {
            "g gram grams 克": "1", "kg kilogram kilograms 千克 公斤": "1000", "mg milligram milligrams 毫克": "1/1000",
            "lb lbs pound pounds 磅": "453.59237", "oz ounce ounces 盎司": "28.349523125", "吨 ton tons": "1000000",
        },
        "volume": {"l liter liters litre litres 升": "1", "ml milliliter milliliters 毫升": "1/1000"},
        "angle": {"degree degrees ^\\circ ^{\\circ} 度": "1"},
    }.items()
    for names, factor in units.items()
    for name in names.split()
}  # fmt: skip
_UNIT_POWER = re.compile(r"(?:\^\{?[23]\}?)$")
# A unit: words of two letters or more, known short ones, or Chinese characters. `18x` has none, it is a product.
_UNIT = re.compile(
    r"(?:\\(?:text|mathrm|textrm|mbox)\{\s?([^{}]{0,60})\}"
    r"|([A-Za-z°¢%$€£¥][A-Za-z°¢%$€£¥ ./'-]{0,60})|(\^\\circ|\^\{\\circ\})|([\u4e00-\u9fff]{1,12}))\s?(\^\{?[23]\}?)?"
)
_NO_UNITS = frozenset(
    [
        "pi",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "ln",
        "log",
        "exp",
        "or",
        "and",
        "mod",
        "over",
        "to",
        "times",
        "plus",
        "minus",
        "i",
        "e",
    ]
)
_PARENTHESES = re.compile(r"([({ ]*)([^(){}\[\],]*)([)} ]*)")


def quantity(text: str) -> Quantity | None:
    r"""A normalised answer as an exact number with a unit, or None if it is something else.

    >>> quantity("18 dollars"), quantity(r"1\frac{1}{2}").value, quantity("18x")
    (Quantity(value=Fraction(18, 1), unit='dollars'), Fraction(3, 2), None)
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    if (wrapped := _PARENTHESES.fullmatch(text)) and len(wrapped[1].strip()) == len(wrapped[3].strip()):
        text = wrapped[2].strip()
    text = re.sub(r"^[a-zA-Z]\s?=\s?(?=[-+\d.$\\])", "", text.removesuffix("$"))
    match = _NUMBER.match(text)
    if not match:
        return None
    value = _value(match)
    rest = text[match.end() :]
    unit = _unit(rest, match["currency"] or "")
    if value is None or unit is None:
        return None
    scale, _, after = unit.partition(" ")
    if scale in _SCALES:
        value, unit = value * _SCALES[scale], after.strip() or (match["currency"] or "").strip().casefold()
    return Quantity(value, unit)


def _value(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    over, under = next(
        (
            (part[top], part[bottom])
            for top, bottom in (("mo", "mu"), ("mo2", "mu2"), ("fo", "fu"), ("fo1", "fu1"), ("over", "under"))
            if part[top] is not None
        ),
        (part["plain"], "1"),
    )
    if not int(under):
        return None
    value = Fraction(over) / int(under) + int(part["mixed"] or 0)
    power = int(part["power"] or part["power1"] or part["power2"] or 0)
    negative = (part["sign"] == "-") != (part["fs"] == "-")
    return value * Fraction(10) ** power * (-1 if negative else 1)


def _unit(rest: str, currency: str) -> str | None:
    """The unit in what follows a number; "" for none, None if it is no unit."""
    currency = currency.strip().casefold()
    rest = rest.strip()
    if not rest:
        return currency
    match = _UNIT.fullmatch(rest.strip("() ") if rest.startswith("(") and rest.endswith(")") else rest)
    if not match:
        return None
    name = next(group for group in match.groups()[:4] if group is not None).strip().rstrip(".").casefold()
    words = set(re.split(r"[^a-z]+", name))
    bare_letter = len(name) == 1 and name.isalpha() and name.isascii() and match[1] is None and name not in _UNITS
    # "5 or 6" are two answers, "2 pi" is a product, as is "5 x"; "5 m" is a length only for whoever asked for one.
    if bare_letter or words & _NO_UNITS:
        return None
    return (name + (match[5] or "").replace("{", "").replace("}", "")) or currency


def equal_quantities(reference: Quantity, answer: Quantity) -> bool:
    """Equal numbers, where a unit may be left out on either side but not be a different one.

    50% equals 0.5 and, where the unit was left out, 50. Units that are no measures (apples) are not compared.
    """
    ours, theirs = (_measure(each.unit) for each in (reference, answer))
    if ours and theirs:
        return ours[0] == theirs[0] and reference.value * ours[1] == answer.value * theirs[1]
    if reference.value == answer.value:
        return True
    return any(
        measure is not None and measure[0] == "%" and not other.unit and each.value / 100 == other.value
        for measure, each, other in ((ours, reference, answer), (theirs, answer, reference))
    )


def _measure(unit: str) -> tuple[str, Fraction] | None:
    """Kind and factor of a unit that is known, squares and cubes included; None for others and for none."""
    power = 1
    if match := _UNIT_POWER.search(unit):
        power, unit = int(match[0].strip("^{}")), unit[: match.start()].strip()
    for word, exponent in (("square ", 2), ("sq ", 2), ("cubic ", 3), ("平方", 2), ("立方", 3)):
        if unit.startswith(word):
            power, unit = exponent, unit.removeprefix(word)
    known = _UNITS.get(unit)
    return (f"{known[0]}^{power}" if power > 1 else known[0], known[1] ** power) if known else None
