r"""Mathematics: a reference answer and one that may be written differently.

Both are first normalized (`normalize`). Numbers with units, times, ratios and numbers of a base are then decided here,
exactly; lists, tuples and equations are taken apart (`structures`). The rest, expressions, goes to a process that
can be killed, because sympy hangs on some inputs (`verify_worker`, `symbolic`). Two answers that cannot be
decided to be equal are not, and the verdict's note says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any

from thinktune.config import Sampling
from thinktune.scoring.base import Score, Task, Verdict, keys_of_equal, reference_of, score_by
from thinktune.scoring.math_answers.normalize import normalise, tight
from thinktune.scoring.math_answers.numerals import chinese_number, english_number
from thinktune.scoring.math_answers.plain_text import is_prose, to_latex
from thinktune.scoring.math_answers.quantities import (
    Quantity,
    beside,
    conversions,
    equal_quantities,
    read_measured,
    read_quantity,
)
from thinktune.scoring.math_answers.stated import lenient_answers
from thinktune.scoring.math_answers.structures import (
    ELLIPSIS,
    Group,
    is_name,
    is_relation,
    read_based,
    read_group,
    read_matrix,
    read_ratio,
    same_ratio,
    sides,
)
from thinktune.scoring.math_answers.times import Clock, read_clock, read_date, same_clock, same_date
from thinktune.scoring.math_answers.verify_worker import verify

_LONGEST = 1000  # characters of an answer worth a symbolic comparison; a final answer is a fraction of that
_DEEPEST = 20  # braces or parentheses in each other; parsers take exponential time over them
_MOST = 12  # elements of lists whose order does not matter that are compared each with each other as expressions
_WORDS = re.compile(r"[^\W\d_][^\W\d_'’-]*(?:[ ,]{1,2}[^\W\d_'’-]+)*")
_BUILDER = re.compile(
    r"\\?\{\s?([A-Za-z])\s?(?:\\in\s?\\mathbb\s?\{?R\}?\s?)?(?:\||\\mid|\\vert|:)(.*?)\\?\}", re.DOTALL
)
_FRACTION = re.compile(r"\d\s?/\s?(\d+)|frac\s?\{\s?\d+\s?\}\s?\{\s?(\d+)\s?\}|frac\s?\d\s?(\d)")
_SIGN = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_ANGLE, _RADIAN = (("angle", 1),), (("radian", 1),)
_UNDECIDED = "not decided: "


@cache
def scorer_name() -> str:
    try:
        return f"thinktune math 4, math-verify {version('math-verify')}"
    except PackageNotFoundError:
        return "thinktune math 4, without math-verify"


def score(text: str, gold: Mapping[str, Any], finish_reason: str) -> Score:
    return score_by(text, gold, finish_reason, compare=compare, lenient=lenient_answers, scorer=scorer_name())


def compare(reference: str, answer: str) -> Verdict:
    r"""Return whether an answer equals the reference.

    >>> compare("1250", "$1,250.00").equal
    True
    >>> compare("3/4", r"\boxed{\frac{3}{4}}").equal
    True
    """
    if reference.strip() == answer.strip():
        return Verdict(True)
    if len(answer) > _LONGEST or not answer.strip():
        return Verdict(False, f"an answer of {len(answer)} characters is not compared" if answer.strip() else None)
    reference, answer = normalise(reference), normalise(answer)
    if not answer:
        return Verdict(False)
    if _depth(answer) > _DEEPEST:
        return Verdict(tight(reference) == tight(answer), "an answer nested so deeply is not compared")
    return _decide(reference, answer)


def _depth(text: str) -> int:
    return max(accumulate((char in "({[") - (char in ")}]") for char in text), default=0)


def _decide(reference: str, answer: str) -> Verdict:
    """Decide whether two normalised answers are equal."""
    if tight(reference) == tight(answer):
        return Verdict(bool(answer))
    for judge in (_times, _based, _ratios, _quantities, _words, _equations, _builders, _relations, _matrices, _groups):
        if (verdict := judge(reference, answer)) is not None:
            return verdict
    return _expressions(reference, answer)


def _times(reference: str, answer: str) -> Verdict | None:
    reference, answer = _untexted(reference), _untexted(answer)
    dates = read_date(reference), read_date(answer)
    if dates[0] is not None and dates[1] is not None:
        return Verdict(same_date(dates[0], dates[1]))
    for date, other in zip(dates, (answer, reference), strict=True):
        if date is not None and other.isdecimal():  # "what day of May?"
            return Verdict(int(other) == (date.day or date.month))
    clocks = read_clock(reference), read_clock(answer)
    ratios = read_ratio(reference), read_ratio(answer)
    for clock, ratio in zip(clocks, reversed(ratios), strict=True):
        if clock is not None and clock.bare and ratio is not None and None in clocks:
            return None  # 10:15 and 2:3
    if clocks[0] is not None and clocks[1] is not None:
        if not same_clock(clocks[0], clocks[1]) and ratios[0] and ratios[1] and same_ratio(ratios[0], ratios[1]):
            return Verdict(False, f"{_UNDECIDED}{reference} and {answer} may be times or ratios")
        return Verdict(same_clock(clocks[0], clocks[1]))
    for clock, other in zip(clocks, (answer, reference), strict=True):
        if clock is not None and not clock.bare:
            return Verdict(_is_hour(clock, other))
    return None


def _is_hour(clock: Clock, text: str) -> bool:
    """Return whether a bare number is the hour of a time that leaves out the half of the day."""
    return text.isdecimal() and len(text) < 3 and clock.seconds % 43200 == int(text) * 3600 % 43200


def _based(reference: str, answer: str) -> Verdict | None:
    values = read_based(reference), read_based(answer)
    if values == (None, None):
        return None
    if None not in values:
        return Verdict(values[0] == values[1])
    plain = read_quantity(answer if values[1] is None else reference)
    if plain is None or plain.value is None:
        return None
    equal = plain.value in values
    return Verdict(equal, None if equal else "a number without a base is taken as decimal")


def _ratios(reference: str, answer: str) -> Verdict | None:
    ratios = read_ratio(reference), read_ratio(answer)
    if ratios[0] is not None and ratios[1] is not None:
        return Verdict(same_ratio(ratios[0], ratios[1]))
    for ratio, other in zip(ratios, (answer, reference), strict=True):
        if ratio is not None and len(ratio) == 2 and (number := read_quantity(other)) and not number.words:
            return Verdict(bool(ratio[1]) and not number.measures and number.value == ratio[0] / (ratio[1] or 1))
    return None


def _quantities(reference: str, answer: str) -> Verdict | None:
    left, right = read_quantity(reference), read_quantity(answer)
    return equal_quantities(left, right) if left is not None and right is not None else None


def _words(reference: str, answer: str) -> Verdict | None:
    """Compare words as words: to a parser a word is a product of letters, so that anagrams are equal."""
    texts = _untexted(reference), _untexted(answer)
    worded = [bool(_WORDS.fullmatch(text)) for text in texts]
    if all(worded) and not all(len(text) < 3 for text in texts):  # ab is ba
        return Verdict(*_same_words(*texts))
    if any(worded) and any(is_prose(to_latex(text)) for text, is_word in zip(texts, worded, strict=True) if is_word):
        return Verdict(False, f"{_UNDECIDED}words are not compared with mathematics")
    return None


def _same_words(reference: str, answer: str) -> tuple[bool, str | None]:
    ours, theirs = (" ".join(re.findall(r"\w+", text.casefold())) for text in (reference, answer))
    if ours == theirs:
        return True, None
    letters = [text.replace(" ", "") for text in (ours, theirs)]
    return letters[0] == letters[1], None


def _untexted(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s?\{([^{}]*)\}", r"\1", text).strip()


def _equations(reference: str, answer: str) -> Verdict | None:
    """Compare the value of an equation: x = 5 is 5, but neither y = 5 nor x + y = 5."""
    if is_relation(reference) or is_relation(answer):
        return None
    ours, theirs = sides(reference), sides(answer)
    if len(ours) == len(theirs) == 1 or any(
        len(split) > 1 and read_group(text) for split, text in ((ours, reference), (theirs, answer))
    ):
        return None
    if len(ours) > 1 and len(theirs) > 1:
        values = [_told(each) for each in (ours, theirs)]
        if values[0] and values[1] and tight(values[0][0]) == tight(values[1][0]):
            return _decide(values[0][1], values[1][1])
        return None
    single, (equation, is_answer) = (answer, (ours, False)) if len(theirs) == 1 else (reference, (theirs, True))
    told = _told(equation)
    if told is None and any(re.search(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])", side) for side in equation):
        return Verdict(False)  # x + y = 5 does not say 5
    stated = [*_exact(answer if is_answer else reference, equation), told[1] if told else equation[-1]]
    verdicts = (_decide(single, value) if is_answer else _decide(value, single) for value in stated)
    first = next(verdicts)
    return first if first.equal else next(verdicts, first)


def _exact(text: str, equation: list[str]) -> list[str]:
    r"""Return the exact value of an equation that ends in its approximation: \frac{\pi}{4} \approx 0.785. Of two plain
    numbers that are not near each other, neither is one of the other."""
    if text.rfind("\\approx") < text.rfind("=") or is_name(equation[-2]):
        return []
    exact, near = (read_quantity(side) for side in equation[-2:])
    if exact and near and exact.value is not None and near.value is not None:
        return equation[-2:-1] if abs(exact.value - near.value) <= abs(exact.value) / 100 else []
    return equation[-2:-1]


def _told(equation: list[str]) -> tuple[str, str] | None:
    """Split an equation into name and value: the last of several."""
    if is_name(equation[0]):
        return equation[0], equation[-1]
    return (equation[-1], equation[0]) if len(equation) == 2 and is_name(equation[-1]) else None


def _builders(reference: str, answer: str) -> Verdict | None:
    conditions = [_BUILDER.fullmatch(text) for text in (reference, answer)]
    if not any(conditions):
        return None
    texts = [match[2].strip() if match else text for match, text in zip(conditions, (reference, answer), strict=True)]
    return _decide(texts[0], texts[1])


def _relations(reference: str, answer: str) -> Verdict | None:
    if not is_relation(reference) and not is_relation(answer):
        return None
    texts = [re.sub(r"^[A-Za-z]\s?\\in(?![A-Za-z])\s?", "", to_latex(text)) for text in (reference, answer)]
    return verify(texts[0], texts[1])


def _matrices(reference: str, answer: str) -> Verdict | None:
    """Compare a matrix with a list of its rows, and a row or column with the list or tuple of its elements."""
    matrices = read_matrix(reference), read_matrix(answer)
    at = 0 if matrices[0] is not None else 1
    rows, other = matrices[at], read_group((reference, answer)[1 - at])
    if rows is None or matrices[1 - at] is not None or other is None or other.kind not in {"()", "[]", "list"}:
        return None
    nested = [read_group(item) for item in other.items]
    if all(each is not None and each.kind in {"[]", "()"} for each in nested):
        theirs = [list(each.items) for each in nested if each is not None]
    else:
        theirs = [list(other.items)]
        rows = [[row[0] for row in rows]] if all(len(row) == 1 for row in rows) else rows
    if [*map(len, rows)] != [*map(len, theirs)]:
        return Verdict(False)
    pairs = [pair for each in zip(rows, theirs, strict=True) for pair in zip(*each, strict=True)]
    verdicts = (_element(*(pair if at == 0 else reversed(pair))) for pair in pairs)
    return next((verdict for verdict in verdicts if not verdict.equal), Verdict(True))


def _groups(reference: str, answer: str) -> Verdict | None:
    left, right = (read_group(_signs(text)) for text in (reference, answer))
    if left is None and right is None:
        return None
    if left is None or right is None:
        group, single = (left or right), (reference if left is None else answer)
        assert group is not None
        if group.kind == "set" and len(group.items) == 1:
            return _element(*((group.items[0], single) if right is None else (single, group.items[0])))
        if group.kind in {"list", "set"} and not re.search(r"\\(?:cup|cap|setminus|mathbb|pm|mp)", single):
            return Verdict(False)
        return None
    if left.name and right.name and left.name != right.name:
        return Verdict(False)
    kinds = {left.kind, right.kind}
    if kinds in ({"set", "()"}, {"set", "[]"}, {"set", "(]"}, {"set", "[)"}):
        return Verdict(False)
    if len(kinds) == 2 and kinds != {"list", "set"} and not (kinds == {"list", "()"} or len(left.items) > 2):
        return Verdict(False)
    if len(left.items) != len(right.items):
        dots = ELLIPSIS in left.items and ELLIPSIS in right.items
        return Verdict(False, f"{_UNDECIDED}the meaning of dots is not guessed" if dots else None)
    return _elements(left, right)


def _signs(text: str) -> str:
    r"""Write \pm out: 3 \pm 2 as 3 + 2, 3 - 2."""
    found = _SIGN.findall(text)
    if not found or len(found) > 4 or read_group(text) is not None:
        return text
    both = [_SIGN.sub(lambda match: upper if match[0] == r"\pm" else lower, text) for upper, lower in ("+-", "-+")]  # noqa: B023
    return ",".join(each.strip().removeprefix("+") for each in both)


def _elements(left: Group, right: Group) -> Verdict:
    """Compare elements in their order, or, if it has no meaning, each with any of the others."""
    pairs = list(zip(left.items, right.items, strict=True))
    verdicts = []
    for pair in pairs:
        verdicts.append(_element(*pair))
        if not verdicts[-1].equal:
            break
    else:
        return Verdict(True)
    if left.ordered or right.ordered:
        return verdicts[-1]
    return _in_any_order(list(left.items), list(right.items))


def _in_any_order(ours: list[str], theirs: list[str]) -> Verdict:
    notes = []
    if len(ours) > _MOST and not all(read_quantity(item) for item in (*ours, *theirs)):
        return Verdict(False, f"{_UNDECIDED}more than {_MOST} expressions are compared in their order only")
    for one in ours:
        for at, other in enumerate(theirs):
            verdict = _element(one, other)
            if verdict.failed or (verdict.note and "did not end" in verdict.note):
                return verdict
            if verdict.equal:
                del theirs[at]
                break
            notes.append(verdict.note)
        else:
            return Verdict(False, next((note for note in notes if note), None))
    return Verdict(True)


def _element(one: str, other: str) -> Verdict:
    return _decide(*(chinese_number(english_number(each)) for each in (one, other)))


def _expressions(reference: str, answer: str) -> Verdict:
    """Compare the expressions symbolically, and the units behind them."""
    left, right = (read_quantity(text) or read_measured(text) for text in (reference, answer))
    bodies = [to_latex(_body(each)) for each in (left, right)]
    if any(is_prose(_untexted(body)) for body in bodies):
        return Verdict(False, f"{_UNDECIDED}words are not compared with mathematics")
    if left.measures and right.measures:
        factor = _factor(left, right)
        if factor is None:
            return Verdict(False)
        if factor != "1":
            bodies[0] = rf"\left({bodies[0]}\right)\cdot {factor}"
    verdict = verify(bodies[0], bodies[1])
    if not verdict.equal and any("/" in side.unit for side in (left, right)):  # 1/x is no quantity of "per x"
        return verify(to_latex(reference), to_latex(answer))
    return beside(left, right) if verdict.equal else verdict


def _body(quantity: Quantity) -> str:
    if quantity.value is None:
        return quantity.body
    if quantity.body:
        return quantity.body
    value = quantity.value
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _factor(reference: Quantity, answer: Quantity) -> str | None:
    """Return the factor from the reference's unit to the answer's, as LaTeX; None if the two measure different
    things."""
    kinds = [{each.kinds for each in side.measures} for side in (reference, answer)]
    for one, other, factor in ((_ANGLE, _RADIAN, r"\frac{\pi}{180}"), (_RADIAN, _ANGLE, r"\frac{180}{\pi}")):
        if one in kinds[0] and other in kinds[1]:
            return factor
    for ours, theirs in conversions(reference, answer):
        if not ours.zero and not theirs.zero:
            ratio = ours.factor / theirs.factor
            return "1" if ratio == 1 else rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
    return None


def is_unfinished(gold: Mapping[str, Any], answer: str) -> bool:
    """Return whether a right answer to which a number is the reference is a computation, such as the question's own.

    >>> is_unfinished({"reference": "84"}, "12 x 7"), is_unfinished({"reference": "84"}, "12 x 7 = 84")
    (True, False)
    >>> is_unfinished({"reference": "7"}, "84/12"), is_unfinished({"reference": "0.75"}, "3/4")
    (True, False)
    """
    reference = normalise(reference_of(gold))
    if not _is_number(reference) or any(read(reference) for read in (read_clock, read_date, read_ratio)):
        return False
    return not any(_is_number(side) and _decide(reference, side).equal for side in sides(normalise(answer)))


def _is_number(text: str) -> bool:
    """Return whether a text is a number by itself, perhaps with a unit; a fraction is one in its lowest terms."""
    text = text.replace(":", "/") if read_ratio(text) else text
    quantity = read_quantity(text)
    if quantity is None or quantity.value is None:
        return False
    fraction = _FRACTION.search(text)
    return fraction is None or quantity.value.denominator in map(int, filter(None, fraction.groups()))


TASK = Task(
    "math",
    Sampling(max_tokens=1024),
    score,
    vote_keys=partial(keys_of_equal, compare=compare, most_unclear=3),  # what is not decided may have taken seconds
    is_unfinished=is_unfinished,
)
