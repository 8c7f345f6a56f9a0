r"""Units of measure and currencies: exact measures of `60 km/h`, `5 square feet`, `J·s` or `20 斤`.

A measure is a product of powers of base kinds (length, time, money, …) and an exact factor, so that km/h and m/s are
compared as numbers. A name with several meanings (pound, gallon, ton, ¥) has several measures; two units are of one
kind if any of them agree. Factors: SI brochure (9th edition), NIST Handbook 44 appendix C, 计量法 for market units.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

Kinds = tuple[tuple[str, int], ...]
"""Base kinds with their powers, in the order of their names: `(("length", 1), ("time", -1))` is a speed."""


@dataclass(frozen=True)
class Measure:
    """`factor` base units of `kinds`; `zero` is the origin of the scale (degrees Celsius begin at 273.15 K)."""

    kinds: Kinds
    factor: Fraction
    zero: Fraction = Fraction(0)

    def times(self, other: Measure, power: int = 1) -> Measure:
        powers = dict(self.kinds)
        for kind, exponent in other.kinds:
            powers[kind] = powers.get(kind, 0) + exponent * power
        kinds = tuple(sorted((kind, exponent) for kind, exponent in powers.items() if exponent))
        return Measure(kinds, self.factor * other.factor**power)


_NONE = Measure((), Fraction(1))
_BASES: dict[str, dict[str, int]] = {
    "length": {"length": 1}, "area": {"length": 2}, "volume": {"length": 3}, "mass": {"mass": 1}, "time": {"time": 1},
    "months": {"months": 1}, "angle": {"angle": 1}, "turn": {"radian": 1}, "data": {"data": 1}, "money": {"money": 1},
    "cny": {"cny": 1}, "eur": {"eur": 1}, "gbp": {"gbp": 1}, "jpy": {"jpy": 1}, "inr": {"inr": 1}, "krw": {"krw": 1},
    "rub": {"rub": 1}, "aud": {"aud": 1}, "cad": {"cad": 1}, "hkd": {"hkd": 1}, "%": {"%": 1},
    "speed": {"length": 1, "time": -1}, "frequency": {"time": -1}, "temperature": {"temperature": 1},
    "force": {"mass": 1, "length": 1, "time": -2}, "energy": {"mass": 1, "length": 2, "time": -2},
    "power": {"mass": 1, "length": 2, "time": -3}, "pressure": {"mass": 1, "length": -1, "time": -2},
    "current": {"current": 1}, "charge": {"current": 1, "time": 1},
    "voltage": {"mass": 1, "length": 2, "time": -3, "current": -1},
    "resistance": {"mass": 1, "length": 2, "time": -3, "current": -2},
    "capacitance": {"mass": -1, "length": -2, "time": 4, "current": 2},
    "magnetic": {"mass": 1, "time": -2, "current": -1}, "amount": {"amount": 1}, "light": {"light": 1},
}  # fmt: skip
# Names in small letters, `_` for a space in a name; several lines for one name are several meanings.
_NAMES = """
length 1 meter meters metre metres 米
length 1/100 厘米 公分
length 1/1000 毫米
length 1/1000000 微米 micron microns
length 1/10 分米
length 1000 千米 公里
length 500 里 华里
length 1/3 尺 市尺
length 1/30 寸
length 10/3 丈
length 0.0254 inch inches 英寸 "
length 0.3048 ft foot feet 英尺
length 0.9144 yd yard yards 码
length 1609.344 mi mile miles 英里
length 1852 nautical_mile nautical_miles nmi 海里
length 9460730472580800 light_year light_years light-year light-years 光年
length 201.168 furlong furlongs
area 10000 hectare hectares ha 公顷
area 4046.8564224 acre acres 英亩
area 2000/3 亩
area 200000/3 顷
volume 1/1000 l liter liters litre litres 升 公升
volume 1/1000000 毫升 cc
volume 0.003785411784 gallon gallons gal 加仑
volume 0.00454609 gallon gallons gal 加仑
volume 0.000946352946 quart quarts qt
volume 0.000473176473 pint pints pt
volume 0.0002365882365 cup cups
volume 0.0000295735295625 fl_oz fluid_ounce fluid_ounces oz ounce ounces
volume 0.00001478676478125 tablespoon tablespoons tbsp
volume 0.00000492892159375 teaspoon teaspoons tsp
volume 0.158987294928 barrel barrels
mass 1 gram grams gramme grammes gm 克
mass 1000 kilo kilos 千克 公斤
mass 1/1000 毫克
mass 500 斤 市斤
mass 50 两
mass 1000000 tonne tonnes metric_ton metric_tons ton tons 吨
mass 907184.74 ton tons short_ton short_tons
mass 1016046.9088 ton tons long_ton long_tons
mass 453.59237 lb lbs pound pounds 磅
mass 28.349523125 oz ounce ounces 盎司
mass 6350.29318 stone stones
time 1 sec secs second seconds 秒 秒钟
time 60 min mins minute minutes 分钟 分
time 900 刻 刻钟
time 3600 hr hrs hour hours 小时 个小时 钟头 时
time 86400 day days 天 日
time 604800 week weeks wk wks 周 星期 个星期 礼拜
months 1 month months mo mos 月 个月
months 12 year years yr yrs 年
months 120 decade decades
months 1200 century centuries 世纪
angle 1 degree degrees deg ° 度
angle 1/60 arcminute arcminutes arcmin
angle 1/3600 arcsecond arcseconds arcsec
turn 1 rad rads radian radians 弧度
money 1 $ us$ usd dollar dollars buck bucks 美元 美金
money 1/100 cent cents ¢ 美分
cny 1 ¥ cn¥ cny rmb yuan 元 块 块钱 人民币
cny 1/10 角 毛
cny 1/100 分
jpy 1 ¥ jpy yen 日元
eur 1 € eur euro euros 欧元
eur 1/100 cent cents
gbp 1 £ gbp pound pounds quid pounds_sterling 英镑
gbp 1/100 penny pence
money 1/100 penny pennies
inr 1 ₹ inr rs rs. rupee rupees 卢比
inr 1/100 paisa paise
krw 1 ₩ krw won
rub 1 ₽ rub ruble rubles rouble roubles 卢布
aud 1 $ a$ aud dollar dollars
cad 1 $ c$ cad dollar dollars
hkd 1 $ hk$ hkd dollar dollars 港元
% 1 % percent percents percentage 百分比
speed 0.44704 mph 迈
speed 5/18 kph kmh kmph
speed 1852/3600 knot knots 节
frequency 1 hertz
frequency 1/60 rpm
temperature 1 kelvin kelvins
data 1 bit bits 比特
data 8 byte bytes 字节
data 8388608 mib
data 8192 kib
data 8589934592 gib
force 1000 newton newtons 牛 牛顿
energy 1000 joule joules 焦 焦耳
energy 4184 calorie calories cal 卡
energy 4184000 calorie calories kcal kilocalorie kilocalories 千卡 大卡
energy 3600000000 度 千瓦时
power 1000 watt watts 瓦 瓦特
power 1000000 千瓦
power 745699.87158227022 horsepower hp
pressure 1000 pascal pascals
pressure 101325000 atm
pressure 100000000 bar
current 1 amp amps ampere amperes 安 安培
charge 1 coulomb coulombs
voltage 1000 volt volts 伏 伏特
resistance 1000 ohm ohms Ω 欧姆
amount 1 mol mole moles 摩尔
"""
# Symbols, which stand case-sensitively with the prefixes of SI. The base of mass is the gram.
_SYMBOLS: dict[str, tuple[str, int | str]] = {
    "m": ("length", 1), "g": ("mass", 1), "s": ("time", 1), "L": ("volume", "1/1000"), "l": ("volume", "1/1000"),
    "N": ("force", 1000), "J": ("energy", 1000), "W": ("power", 1000), "Wh": ("energy", 3600000),
    "Pa": ("pressure", 1000), "Hz": ("frequency", 1), "V": ("voltage", 1000), "A": ("current", 1), "C": ("charge", 1),
    "F": ("capacitance", "1/1000"), "T": ("magnetic", 1000), "K": ("temperature", 1), "mol": ("amount", 1),
    "B": ("data", 8), "b": ("data", 1), "bit": ("data", 1), "cd": ("light", 1), "Ah": ("charge", 3600),
    "eV": ("energy", "1602176634/10000000000000000000000000"), "Ω": ("resistance", 1000),
}  # fmt: skip
_ALONE: dict[str, tuple[str, int | str]] = {"h": ("time", 3600), "d": ("time", 86400)}
_PREFIXES = {
    "p": -12, "n": -9, "µ": -6, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12,
}  # fmt: skip
_LONG_PREFIXES = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3, "mega": 6, "giga": 9,
                  "tera": 12}  # fmt: skip
_PREFIXED = ("meter", "metre", "gram", "liter", "litre", "second", "watt", "joule", "byte", "bit", "volt", "newton",
             "pascal", "hertz", "amp", "ohm", "calorie")  # fmt: skip
_TEMPERATURES = {
    "c": Measure((("temperature", 1),), Fraction(1), Fraction("273.15")),
    "f": Measure((("temperature", 1),), Fraction(5, 9), Fraction("459.67") * 5 / 9),
}


def _known(base: str, factor: str | int) -> Measure:
    return Measure(tuple(sorted(_BASES[base].items())), Fraction(factor))


@cache
def _table() -> dict[str, tuple[Measure, ...]]:
    table: dict[str, tuple[Measure, ...]] = {}
    for line in _NAMES.strip().splitlines():
        base, factor, *names = line.split()
        for name in names:
            table[name.replace("_", " ")] = (*table.get(name.replace("_", " "), ()), _known(base, factor))
    for name in ("degree", "degrees", "°", "度"):  # of temperature as well as of an angle
        table[name] += tuple(_TEMPERATURES.values())
    return table


@cache
def named(name: str) -> tuple[Measure, ...]:
    """Return the measures that a name or a symbol may stand for; none if it is no unit.

    >>> [str(measure.factor) for measure in named("km")], named("apples")
    (['1000'], ())
    """
    found = [_known(*_SYMBOLS[name])] if name in _SYMBOLS else [_known(*_ALONE[name])] if name in _ALONE else []
    if not found and len(name) > 1 and name[0] in _PREFIXES and name[1:] in _SYMBOLS:
        base, factor = _SYMBOLS[name[1:]]
        scale = Fraction(10) ** _PREFIXES[name[0]]
        found = [Measure(_known(base, factor).kinds, _known(base, factor).factor * scale)]
        if base == "data":  # a kilobyte is 1000 bytes or 1024
            found.append(
                Measure(found[0].kinds, _known(base, factor).factor * Fraction(1024) ** (_PREFIXES[name[0]] // 3))
            )
    folded = name.casefold()
    found += _table().get(folded, ())
    for prefix, power in _LONG_PREFIXES.items():
        rest = folded.removeprefix(prefix)
        if rest != folded and rest.removesuffix("s") in _PREFIXED:
            found += [Measure(each.kinds, each.factor * Fraction(10) ** power) for each in _table().get(rest, ())]
    if not found and name != folded and len(name) > 1:
        return named(folded)  # KM, Kg
    return tuple(found)


_TOKENS = re.compile(
    r"°\s?[CFcf](?![a-z])|[a-z]{1,4}\$|\^\s?\(?-?\d{1,2}\)?|\d+|[A-Za-zµμΩ]+(?:[-'’][A-Za-z]+)*\.?"
    r"|[\u4e00-\u9fff]+|[^\sA-Za-z\d]", re.I
)  # fmt: skip
_GLUED_POWER = re.compile(r"(?<=[A-Za-z])([23])(?![\d.])")  # cm2
_SQUARE = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3, "cu": 3, "平方": 2, "立方": 3}
_RAISED = {"squared": 2, "cubed": 3}
_PER = {"/", "per", "a", "an", "each", "every", "每"}


def read_unit(text: str) -> tuple[tuple[Measure, ...], list[str]]:
    """Read the measures at the start of a text and the words after them.

    >>> [str(each.factor) for each in read_unit("km/h")[0]], read_unit("square meters of carpet")[1]
    (['5/18'], ['of', 'carpet'])
    """
    text = _GLUED_POWER.sub(r"^\1", text)
    tokens = [part for token in _TOKENS.findall(text) for part in _split_chinese(token)]
    measures: tuple[Measure, ...] = (_NONE,)
    at, sign, symbols = 0, 1, True
    while at < len(tokens) and len(measures) <= 16:
        joined = tokens[at].casefold()
        start = at
        if at and joined in _PER:
            sign, at = -1, at + 1
        elif at and joined in {"*", "·", "-", "⋅"}:
            at += 1
        elif at and sign > 0 and not symbols:
            break  # a word after a word is no product: "3 km north", "2 cups flour"
        found, after, is_symbol = _factor(tokens, at)
        if not found or (at == start and at and not is_symbol):
            at = start
            break
        measures = tuple(left.times(right, sign) if left.kinds or right.zero == 0 else right
                         for left in measures for right in found)  # fmt: skip
        at, symbols = after, is_symbol
    if at == 0:
        return (), [token for token in tokens if token[0].isalnum() or token in {"/"}]
    return measures, [token for token in tokens[at:] if token[0].isalnum()]


def _split_chinese(token: str) -> Iterator[str]:
    """Split 平方米每秒 into 平方, 米, 每, 秒; a text that begins with no unit stays whole."""
    while token and "\u4e00" <= token[0] <= "\u9fff":
        for length in range(min(4, len(token)), 0, -1):
            head = token[:length]
            if head in _table() or head in _SQUARE or head == "每":
                yield head
                token = token[length:]
                break
        else:
            break
    if token:
        yield token


def _factor(tokens: list[str], at: int) -> tuple[tuple[Measure, ...], int, bool]:
    """Read one unit with its power; return also its end, and whether it is a symbol (products are made of symbols)."""
    power = 1
    if at < len(tokens) and tokens[at].casefold() in _SQUARE:
        power, at = _SQUARE[tokens[at].casefold()], at + 1
    for length in (3, 2, 1):
        if at + length > len(tokens):
            continue
        name = " ".join(tokens[at : at + length]).removesuffix(".")
        if found := _temperature(name) or named(name):
            break
    else:
        return (), at, False
    at += length
    if at < len(tokens) and (raised := re.fullmatch(r"\^\s?\(?(-?\d+)\)?", tokens[at])):
        power, at = int(raised[1]), at + 1
    elif at < len(tokens) and tokens[at].casefold() in _RAISED:
        power, at = _RAISED[tokens[at].casefold()], at + 1
    if abs(power) > 9:
        return (), at, False
    raised_all = found if power == 1 else tuple(_NONE.times(each, power) for each in found)
    return raised_all, at, length == 1 and len(name) <= 3 and name.isascii()


def _temperature(name: str) -> tuple[Measure, ...]:
    text = name.casefold().replace(" ", "")
    for letter, names in (("c", ("celsius", "centigrade", "摄氏度")), ("f", ("fahrenheit", "华氏度"))):
        if text in {f"°{letter}", f"degree{letter}", f"degrees{letter}", f"deg{letter}"}:
            return (_TEMPERATURES[letter],)
        if text in names or any(text in {f"°{each}", f"degree{each}", f"degrees{each}"} for each in names):
            return (_TEMPERATURES[letter],)
    return ()
