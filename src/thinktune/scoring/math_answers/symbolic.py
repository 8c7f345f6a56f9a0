r"""Exact equality of two LaTeX expressions; runs in the worker's process, which can be killed.

latex2sympy (math-verify's parser) reads them. Constants are equal if they agree to 200 digits, expressions with letters
if they agree at every tried point at which they are real, sets and matrices if their elements do. math-verify's own
comparison rounds to 6 decimals and takes differences under 1e-15 for nothing, so that tiny numbers are all equal; it
only compares expressions without a value, a derivative for example.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import ConversionConfig  # type: ignore[import-untyped]
from math_verify import verify  # type: ignore[attr-defined,unused-ignore]
from sympy.core.function import AppliedUndef  # type: ignore[import-untyped]

from thinktune.scoring.math_answers.structures import is_relation, split_top

_READ = NormalizationConfig(units=False, malformed_operators=True, nits=False, boxed="none")
_KEEP_CASE = ConversionConfig(lowercase_symbols=False)
_DIGITS = 50  # a first look
_ALL_DIGITS = 200  # where the first look sees no difference
_FEWEST = 6  # significant digits that make a decimal an approximation of an irrational number
# Values for letters: none of them special, small and large, of both signs.
_POINTS = tuple(
    tuple(sympy.Rational(*each) for each in row)
    for row in (
        ((37, 100), (23, 41), (71, 83), (13, 29), (47, 61)), ((271, 97), (353, 113), (173, 89), (457, 211), (59, 17)),
        ((-43, 101), (-17, 31), (-67, 79), (-11, 47), (-29, 59)),
        ((1153, 101), (967, 89), (1373, 107), (821, 73), (1511, 97)),
        ((-337, 103), (149, 43), (-241, 71), (311, 83), (-199, 61)),
        ((89, 97), (-83, 91), (61, 73), (-53, 67), (41, 59)),
    )
)  # fmt: skip
_WORD_RELATIONS = {"<": sympy.Lt, ">": sympy.Gt, "\\le": sympy.Le, "\\ge": sympy.Ge, "\\ne": sympy.Ne}
_RELATION = re.compile(r"<|>|\\(?:le|ge|ne)(?![A-Za-z])")
_OR = re.compile(r"\\text\{ or \}|\\(?:vee|lor)(?![A-Za-z])")
_AND = re.compile(r"\\text\{ and \}|\\(?:wedge|land)(?![A-Za-z])|,|;")


class Undecided(Exception):
    """The reason why two expressions cannot be compared."""


def equal(reference: str, answer: str) -> bool:
    """Return whether two expressions are equal.

    Raises:
        Undecided: it cannot be found out whether they are equal.
    """
    if "\\ldots" in reference or "\\ldots" in answer:
        raise Undecided("the meaning of dots is not guessed")
    if is_relation(reference) or is_relation(answer):
        return _equal_relations(reference, answer)
    left, right = _read(reference, "reference"), _read(answer, "answer")
    return _same(*_one_case(left, right))


def _read(text: str, which: str) -> Any:
    try:
        read = latex2sympy(normalize_latex(text, _READ), normalization_config=None, conversion_config=_KEEP_CASE)
    except Exception as error:
        raise Undecided(f"the {which} is no mathematics that can be read") from error
    if read is None or isinstance(read, str):
        raise Undecided(f"the {which} is no mathematics that can be read")
    return read


def _one_case(left: Any, right: Any) -> tuple[Any, Any]:
    """Lower the case of letters, unless one side has both (R and r). `i` is the imaginary unit."""
    named = [_letters(side) for side in (left, right)]
    folded = [{symbol: sympy.Symbol(symbol.name.lower()) for symbol in letters} for letters in named]
    if any(len(set(letters.values())) < len(letters) for letters in folded):
        folded = [{symbol: sympy.Symbol(symbol.name) for symbol in letters} for letters in named]
    sides = []
    for side, letters in zip((left, right), folded, strict=True):
        renamed = {old: sympy.I if new.name == "i" else new for old, new in letters.items()}
        sides.append(side.subs(renamed) if renamed else side)
    return sides[0], sides[1]


def _letters(side: Any) -> set[Any]:
    return {symbol for symbol in getattr(side, "free_symbols", ()) if isinstance(symbol, sympy.Symbol)}


def _exact(read: Any) -> Any:
    """Write decimals as fractions, evaluate pending operations, take odd roots of negative numbers as real."""
    if hasattr(read, "replace"):
        read = read.replace(lambda each: isinstance(each, sympy.Float), lambda each: sympy.Rational(str(each)))
        read = read.doit()
        read = read.replace(
            lambda each: (
                each.is_Pow and each.exp.is_Rational and each.exp.q % 2 == 1 < each.exp.q and each.base.is_negative
            ),
            lambda each: (-1) ** each.exp.p * (-each.base) ** each.exp,
        )
    return read


def _is_odd_root(each: Any) -> bool:
    return bool(each.is_Pow and each.exp.is_Rational and each.exp.q % 2 == 1 < each.exp.q and each.base.is_negative)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, sympy.MatrixBase) or isinstance(right, sympy.MatrixBase):
        if not isinstance(left, sympy.MatrixBase) or not isinstance(right, sympy.MatrixBase):
            raise Undecided("a matrix is not compared with anything else")
        return left.shape == right.shape and all(_same(*each) for each in zip(left.flat(), right.flat(), strict=True))
    if isinstance(left, sympy.Eq) or isinstance(right, sympy.Eq):
        return _same_equations(left, right)
    if isinstance(left, sympy.Tuple) and isinstance(right, sympy.Tuple):
        return len(left) == len(right) and all(_same(*each) for each in zip(left, right, strict=True))
    if isinstance(left, sympy.Set) or isinstance(right, sympy.Set):
        return _same_sets(left, right)
    if isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr):
        return _same_values(left, right)
    raise Undecided("the two are of different kinds, or of none that is compared")


def _same_values(left: sympy.Expr, right: sympy.Expr) -> bool:
    if _plainly_different(left, right):
        return False
    for one, other in ((left, right), (right, left)):
        if _is_decimal(one) and (value := _irrational(other)) is not None:
            return _approximates(str(one), value)
    if left == right:
        return True
    if left.atoms(AppliedUndef, sympy.Derivative) or right.atoms(AppliedUndef, sympy.Derivative):
        return bool(verify(left, right, timeout_seconds=None))
    left, right = _exact(left), _exact(right)
    if left == right:
        return True
    if left.is_Rational and right.is_Rational:
        return False
    letters = sorted((left.free_symbols | right.free_symbols) - {sympy.I}, key=str)
    if not letters:
        return _same_constants(left, right)
    if len(letters) > len(_POINTS[0]) * 4:
        raise Undecided("too many letters")
    return _same_at_points(left, right, letters)


def _plainly_different(left: sympy.Expr, right: sympy.Expr) -> bool:
    """Return whether a glance at real values tells two expressions apart, before anything is worked out exactly.

    Most wrong answers end here, and so do expressions that would take ages (a power of 10^9, a sum of as many terms).
    """
    letters = sorted(left.free_symbols | right.free_symbols, key=str)
    if len(letters) > len(_POINTS[0]) or left.has(sympy.I, AppliedUndef) or right.has(sympy.I, AppliedUndef):
        return False
    values = dict(zip(letters, _POINTS[0], strict=False))
    try:
        one, other = (sympy.N(side.subs(values) if values else side, 15) for side in (left, right))
    except (ValueError, TypeError, OverflowError, ArithmeticError, NotImplementedError, AttributeError):
        return False
    if not isinstance(one, sympy.Float) or not isinstance(other, sympy.Float):
        return False
    closeness = sympy.Float("1e-4") if _is_decimal(left) or _is_decimal(right) else sympy.Float("1e-8")
    return bool(abs(one - other) > closeness * max(abs(one), abs(other)))


def _same_constants(left: sympy.Expr, right: sympy.Expr) -> bool:
    for digits in (_DIGITS, _ALL_DIGITS):
        agree = _agree(left, right, digits)
        if agree is None:
            raise Undecided("one of the two has no value")
        if not agree:
            return False
    return True


def _agree(left: sympy.Expr, right: sympy.Expr, digits: int) -> bool | None:
    one, other = (sympy.N(side, digits + 10) for side in (left, right))
    if not (one.is_number and other.is_number) or not (one.is_finite and other.is_finite):
        return None if one != other else True
    if not (one.is_comparable or one.as_real_imag()[0].is_Float) and one.has(sympy.Integral, sympy.Sum, sympy.Limit):
        return None
    scale = max(abs(one), abs(other))
    return bool(scale == 0 or abs(one - other) <= scale * sympy.Float(10) ** -digits)


def _same_at_points(left: sympy.Expr, right: sympy.Expr, letters: Sequence[sympy.Symbol]) -> bool:
    """Return whether both are equal wherever they are real, and real at the same points: √(1/n) is 1/√n, but √(x²) is
    not x."""
    complex_numbers = left.has(sympy.I) or right.has(sympy.I)
    tried = 0
    for row in _POINTS:
        values = {
            letter: row[at % len(row)] * (1 + sympy.Rational(at // len(row), 7)) for at, letter in enumerate(letters)
        }
        one, other = (sympy.N(side.subs(values), 40) for side in (left, right))
        if not all(side.is_number and side.is_finite for side in (one, other)):
            continue
        if (
            one.free_symbols
            or other.free_symbols
            or one.has(sympy.Integral, sympy.Sum)
            or other.has(sympy.Integral, sympy.Sum)
        ):
            raise Undecided("the sum or integral could not be worked out")
        scale = max(abs(one), abs(other))
        small = scale * sympy.Float(10) ** -25
        if not complex_numbers:
            real = [bool(abs(sympy.im(side)) <= small) for side in (one, other)]
            if not any(real):
                continue
            if not all(real):
                return False
        if scale and abs(one - other) > small:
            return False
        tried += 1
    if tried < 2:
        raise Undecided("they have values at too few of the points tried")
    return True


def _is_decimal(value: sympy.Expr) -> bool:
    return isinstance(value, sympy.Float) or (value.is_Mul and value.args[0] == -1 and isinstance(-value, sympy.Float))


def _irrational(value: sympy.Expr) -> Fraction | None:
    """Return an irrational constant as a fraction that is close enough to round."""
    if value.free_symbols or value.atoms(sympy.Float, AppliedUndef):
        return None
    exact = _exact(value)
    if exact.is_rational:
        return None
    number = sympy.N(exact, 60)
    return Fraction(str(number)) if isinstance(number, sympy.Float) else None


def _approximates(decimal: str, value: Fraction) -> bool:
    """Return whether a decimal is a value rounded or cut off at its last digit, six significant digits at least."""
    text = decimal.strip().lstrip("-")
    mantissa, _, power = text.lower().partition("e")
    mantissa = mantissa.rstrip("0") if "." in mantissa else mantissa
    places = len(mantissa.partition(".")[2]) - int(power or 0)
    if len(mantissa.replace(".", "").lstrip("0")) < _FEWEST or decimal.startswith("-") != (value < 0):
        return False
    scaled = abs(value) * Fraction(10) ** places
    told = Fraction(mantissa + (f"e{power}" if power else "")) * Fraction(10) ** places
    return told in {Fraction(scaled.__floor__()), Fraction((scaled + Fraction(1, 2)).__floor__())}


def _same_equations(left: Any, right: Any) -> bool:
    """Return whether two equations agree up to a factor. Nothing is solved: two that have no solution differ."""
    if not (isinstance(left, sympy.Eq) and isinstance(right, sympy.Eq)):
        raise Undecided("an equation is only compared with an equation")
    sides = [each for equation in (left, right) for each in equation.args]
    if not all(isinstance(side, sympy.Expr) for side in sides):
        return _same(left.lhs, right.lhs) and _same(left.rhs, right.rhs)
    one, other = (sympy.together(_exact(each.lhs - each.rhs)).as_numer_denom()[0] for each in (left, right))
    return _constant_factor(one, other) is not None


def _constant_factor(one: sympy.Expr, other: sympy.Expr) -> sympy.Expr | None:
    """Return the number by which one expression is a multiple of another."""
    letters = sorted(one.free_symbols | other.free_symbols, key=str)
    if one.free_symbols != other.free_symbols or not letters or len(letters) > len(_POINTS[0]):
        return None
    values = dict(zip(letters, _POINTS[1], strict=False))
    factor = (one / other).subs(values)
    if not factor.is_number or not factor.is_finite or factor.is_zero:
        return None
    return factor if _same_at_points(one, other * factor, letters) else None


def _same_sets(left: Any, right: Any) -> bool:
    left, right = (each if isinstance(each, sympy.Set) else sympy.FiniteSet(each) for each in (left, right))
    if left == right:
        return True
    if isinstance(left, sympy.FiniteSet) and isinstance(right, sympy.FiniteSet):
        return _match(list(left.args), list(right.args))
    left, right = _exact_set(left), _exact_set(right)
    if left == right:
        return True
    if isinstance(left, sympy.Interval) and isinstance(right, sympy.Interval):
        return (
            (left.left_open, left.right_open) == (right.left_open, right.right_open)
            and _same(left.start, right.start)
            and _same(left.end, right.end)
        )
    if isinstance(left, sympy.Union) and isinstance(right, sympy.Union):
        return _match(list(left.args), list(right.args))
    if left.free_symbols or right.free_symbols:
        raise Undecided("sets with letters in them are not compared")
    empty = left.symmetric_difference(right).is_empty
    if empty is None:
        raise Undecided("whether the two sets are equal could not be found out")
    return bool(empty)


def _exact_set(value: sympy.Set) -> Any:
    return value.replace(lambda each: isinstance(each, sympy.Float), lambda each: sympy.Rational(str(each))).doit()


def _match(ours: list[Any], theirs: list[Any]) -> bool:
    if len(ours) != len(theirs):
        return False
    for one in ours:
        at = next((at for at, other in enumerate(theirs) if _same(one, other)), None)
        if at is None:
            return False
        del theirs[at]
    return True


def _equal_relations(reference: str, answer: str) -> bool:
    left, right = (_clauses(text, which) for text, which in ((reference, "reference"), (answer, "answer")))
    if not isinstance(left, list) and not isinstance(right, list):
        return _same_sets(left, right)
    sets = [_solution(side) if isinstance(side, list) else (None, side) for side in (left, right)]
    if all(isinstance(side, sympy.Set) for _, side in sets):
        names = {name for name, _ in sets if name is not None}
        return len(names) < 2 and _same_sets(sets[0][1], sets[1][1])
    if not isinstance(left, list) or not isinstance(right, list) or len(left) != 1 or len(right) != 1:
        raise Undecided("relations in several letters are compared one with one")
    return len(left[0]) == len(right[0]) and _match_relations(left[0], right[0])


def _clauses(text: str, which: str) -> Any:
    """Split relations joined by "and" into a list for each "or"; a set or expression if there is no relation."""
    if not is_relation(text):
        read = _read(text, which)
        if not isinstance(read, sympy.Set):
            raise Undecided("a relation is compared with sets and relations")
        return _exact_set(read)
    return [
        [relation for chain in split_top(part, _AND) for relation in _chain(chain, which)]
        for part in split_top(text, _OR)
    ]


def _chain(text: str, which: str) -> list[Any]:
    texts = split_top(text, _RELATION)
    signs = [match[0] for match in _RELATION.finditer(text)]
    if len(texts) != len(signs) + 1 or not signs:
        raise Undecided(f"the {which} is no relation that can be read")
    values = [_exact(_read(each.strip(), which)) for each in texts]
    if not all(isinstance(value, sympy.Expr) for value in values):
        raise Undecided(f"the {which} is no relation between numbers")
    return [(sign, *pair) for sign, pair in zip(signs, pairwise(values), strict=True)]


def _solution(groups: list[list[Any]]) -> tuple[str | None, Any]:
    """Return the set of numbers that a relation in one letter is true for, and the letter's name."""
    letters = {letter for group in groups for _, left, right in group for letter in (left - right).free_symbols}
    if len(letters) != 1:
        return None, None
    letter = letters.pop()
    real = sympy.Symbol("x", real=True)
    parts = []
    for group in groups:
        sets = []
        for sign, left, right in group:
            relation = _WORD_RELATIONS[sign](left.subs(letter, real), right.subs(letter, real))
            sets.append(
                relation.as_set() if relation not in (True, False) else sympy.S.Reals if relation else sympy.S.EmptySet
            )
        parts.append(sympy.Intersection(*sets))
    return letter.name.lower(), sympy.Union(*parts)


def _match_relations(ours: list[Any], theirs: list[Any]) -> bool:
    left = list(theirs)
    for one in ours:
        at = next((at for at, other in enumerate(left) if _same_relation(one, other)), None)
        if at is None:
            return False
        del left[at]
    return True


def _same_relation(one: tuple[str, Any, Any], other: tuple[str, Any, Any]) -> bool:
    turned = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
    factor = _constant_factor(one[1] - one[2], other[1] - other[2])
    if factor is None:
        return False
    return one[0] == (other[0] if factor.is_positive else turned[other[0]])
