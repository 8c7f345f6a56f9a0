"""Worked arithmetic and word problems without end, so that thinking can be taught with no download.

Each kind of problem is one small function in `KINDS`. It draws its numbers, words a question, and works the answer out
through `Work`, which writes every step down as it computes it: a thought can therefore never disagree with its answer.
All kinds share the same few procedures (add the tens, then the ones; multiply part by part), short enough for a model
of 135 million parameters to imitate.

Rows have the `conversations` format of Bespoke-Stratos, so that they go the same way as real data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

Split = Literal["train", "test"]

LEVELS = (1, 2, 3)
TEST_SHARE = 0.1
"""Share of all problems that belongs to the test split."""

_ATTEMPTS = 200
"""Draws for a problem that is in the split and new; after that a repeated one is let through (a kind is exhausted)."""

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jamal", "Kim", "Lena", "Mei")
ITEMS = ("apples", "marbles", "stickers", "pencils", "cards", "shells", "cookies", "stamps", "beads", "coins")
BOXES = ("boxes", "bags", "baskets", "packs", "jars")


class Work:
    """Arithmetic that writes down every step. Each method returns the result and adds one sentence to `steps`."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def add(self, a: int, b: int) -> int:
        """Add as in 47 + 38: 47 + 30 = 77, 77 + 8 = 85."""
        return self._by_parts(a, "+", b, lambda value, part: value + part)

    def subtract(self, a: int, b: int) -> int:
        """Subtract as in 85 - 38: 85 - 30 = 55, 55 - 8 = 47."""
        return self._by_parts(a, "-", b, lambda value, part: value - part)

    def multiply(self, a: int, b: int) -> int:
        """Multiply as in 23 * 4: 20 * 4 = 80, 3 * 4 = 12, 80 + 12 = 92."""
        parts = _places(a)
        products = [f"{part} * {b} = {part * b}" for part in parts]
        if len(parts) > 1:
            products = [f"{a} * {b}: {products[0]}", *products[1:]]
            products.append(" + ".join(str(part * b) for part in parts) + f" = {a * b}")
        self._write(products)
        return a * b

    def divide(self, a: int, b: int) -> int:
        """Divide as in 84 / 6: 60 / 6 = 10, 24 / 6 = 4, 10 + 4 = 14. `b` divides `a`."""
        parts = _places(a // b)
        quotients = [f"{part * b} / {b} = {part}" for part in parts]
        if len(parts) > 1:
            quotients = [f"{a} / {b}: {quotients[0]}", *quotients[1:]]
            quotients.append(" + ".join(map(str, parts)) + f" = {a // b}")
        self._write(quotients)
        return a // b

    def _by_parts(self, a: int, sign: str, b: int, apply: Callable[[int, int], int]) -> int:
        parts = _places(b)
        value, written = a, []
        for part in parts:
            written.append(f"{value} {sign} {part} = {apply(value, part)}")
            value = apply(value, part)
        if len(parts) > 1:
            written[0] = f"{a} {sign} {b}: {written[0]}"
        self._write(written)
        return value

    def _write(self, clauses: list[str]) -> None:
        self.steps.append(", ".join(clauses) + ".")


@dataclass(frozen=True)
class Problem:
    """One problem. `numbers` is its content, whatever the words and the order around it."""

    question: str
    work: Work
    answer: int
    numbers: tuple[int, ...]

    @property
    def split(self) -> Split:
        """The split, decided by the numbers alone, so that it holds for every seed, count and kind."""
        digest = hashlib.sha256(repr(sorted(self.numbers)).encode()).digest()
        return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"


def problems(split: Split, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `count` rows, kind after kind and level after level; a larger count begins with the smaller one's rows.

    No two rows of different splits share their numbers. Within a split, a problem comes again only when its kind has
    no new one left.
    """
    random = Random(f"{seed} {split}")
    seen: set[tuple[str, tuple[int, ...]]] = set()
    for index in range(count):
        kind = list(KINDS)[index % len(KINDS)]
        level = LEVELS[index // len(KINDS) % len(LEVELS)]
        problem = _draw(kind, level, split, random, seen)
        seen.add((kind, problem.numbers))
        yield _row(problem, kind, level)


def _draw(kind: str, level: int, split: Split, random: Random, seen: set[tuple[str, tuple[int, ...]]]) -> Problem:
    attempts = 0
    while True:
        attempts += 1
        problem = KINDS[kind](random, level)
        new = (kind, problem.numbers) not in seen
        if problem.split == split and (new or attempts > _ATTEMPTS):
            return problem


def _row(problem: Problem, kind: str, level: int) -> dict[str, Any]:
    return conversation(problem.question, " ".join(problem.work.steps), problem.answer, kind=kind, level=level)


def conversation(question: str, thought: str, answer: object, **more: object) -> dict[str, Any]:
    """Make a row of the format of Bespoke-Stratos, with `more` columns."""
    reply = (
        f"<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{answer}\n\n<|end_of_solution|>"
    )
    return {"conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": reply}], **more}


def _places(number: int) -> list[int]:
    """Return the non-zero place values: 407 gives [400, 7]."""
    digits = str(number)
    return [int(digit) * 10 ** (len(digits) - at - 1) for at, digit in enumerate(digits) if digit != "0"]


def _at(level: int, *limits: int) -> int:
    return limits[level - 1]


def _subtrahend(random: Random, value: int, low: int, high: int, level: int) -> int:
    """Draw a number to subtract from `value`; below level 3 without borrowing, which small models learn last."""
    choices = [number for number in range(low, high + 1) if level == 3 or number % 10 <= value % 10]
    return random.choice(choices)


def _addend(random: Random, value: int, low: int, high: int, level: int) -> int:
    """Draw a number to add to `value`; below level 3 without a carry, so that subtracting it again borrows nothing."""
    choices = [number for number in range(low, high + 1) if level == 3 or number % 10 + value % 10 < 10]
    return random.choice(choices)


def _ask(random: Random, wordings: tuple[str, ...], **values: object) -> str:
    """Draw one of the wordings, with names and things for its placeholders."""
    name, other = random.sample(NAMES, 2)
    drawn = {"name": name, "other": other, "thing": random.choice(ITEMS), "box": random.choice(BOXES)}
    question = random.choice(wordings).format(**{**drawn, **values})
    return question[0].upper() + question[1:]


_COMPUTE = ("What is {term}?", "Compute {term}.", "Work out {term}.", "How much is {term}?")


def add_and_subtract(random: Random, level: int) -> Problem:
    a, b = random.randint(21, _at(level, 49, 69, 89)), random.randint(12, 39)
    c = _subtrahend(random, a + b, 5, _at(level, 19, 24, 29), level)
    work = Work()
    answer = work.subtract(work.add(a, b), c)
    return Problem(_ask(random, _COMPUTE, term=f"{a} + {b} - {c}"), work, answer, (a, b, c))


def multiply_and_add(random: Random, level: int) -> Problem:
    a, b, c = random.randint(12, _at(level, 19, 39, 69)), random.randint(3, _at(level, 5, 7, 9)), random.randint(11, 49)
    work = Work()
    answer = work.add(work.multiply(a, b), c)
    return Problem(_ask(random, _COMPUTE, term=f"{a} * {b} + {c}"), work, answer, (a, b, c))


def equation(random: Random, level: int) -> Problem:
    factor, x = random.randint(2, _at(level, 4, 6, 9)), random.randint(3, 9)
    shift = _addend(random, factor * x, 11, 39, level)
    total = factor * x + shift
    work = Work()
    answer = work.divide(work.subtract(total, shift), factor)
    wordings = ("If {term}, what is x?", "Solve {term} for x.", "Find x when {term}.", "What is x if {term}?")
    return Problem(_ask(random, wordings, term=f"{factor}x + {shift} = {total}"), work, answer, (factor, shift, total))


def average(random: Random, level: int) -> Problem:
    top = _at(level, 29, 39, 49)
    a, b = random.randint(11, top), random.randint(12, top)
    b += (a + b) % 2
    work = Work()
    answer = work.divide(work.add(a, b), 2)
    wordings = (
        "What is the average of {a} and {b}?",
        "Find the mean of {a} and {b}.",
        "{name} is {a} years old and {other} is {b}. What is their average age?",
    )
    return Problem(_ask(random, wordings, a=a, b=b), work, answer, (a, b))


def compare(random: Random, level: int) -> Problem:
    count, each = random.randint(3, _at(level, 5, 7, 9)), random.randint(12, _at(level, 19, 29, 39))
    fewer = _subtrahend(random, count * each, 11, 29, level)
    work = Work()
    answer = work.subtract(work.multiply(each, count), fewer)
    wordings = (
        "{name} has {count} {box} of {each} {thing}. {other} has {fewer} {thing}. "
        "How many more {thing} does {name} have than {other}?",
        "{other} owns {fewer} {thing}. {name} owns {count} {box} with {each} {thing} in each. "
        "By how many {thing} does {name} lead?",
    )
    return Problem(_ask(random, wordings, count=count, each=each, fewer=fewer), work, answer, (count, each, fewer))


def collect(random: Random, level: int) -> Problem:
    count, each = random.randint(3, _at(level, 5, 7, 9)), random.randint(12, _at(level, 19, 39, 59))
    have = random.randint(12, 59)
    work = Work()
    answer = work.add(work.multiply(each, count), have)
    wordings = (
        "{name} has {have} {thing} and buys {count} {box} with {each} {thing} each. How many {thing} is that now?",
        "A shop gets {count} {box} of {each} {thing}. It had {have} before. How many {thing} does the shop have now?",
        "{name} fills {count} {box} with {each} {thing} each, and {have} are left. How many {thing} are there in all?",
    )
    return Problem(_ask(random, wordings, count=count, each=each, have=have), work, answer, (count, each, have))


def change(random: Random, level: int) -> Problem:
    price, count = random.randint(12, _at(level, 15, 19, 29)), random.randint(2, _at(level, 4, 5, 6))
    purse = price * count + _addend(random, price * count, 11, 59, level)
    work = Work()
    answer = work.subtract(purse, work.multiply(price, count))
    wordings = (
        "{name} has {purse} dollars and buys {count} {goods} for {price} dollars each. "
        "How many dollars does {name} have left?",
        "{goods} cost {price} dollars each. {name} pays for {count} of them from {purse} dollars. "
        "How much money is left?",
        "At {price} dollars each, {name} takes {count} {goods}. How much remains of {purse} dollars?",
    )
    goods = random.choice(("books", "shirts", "tickets", "lamps", "toys", "plants"))
    question = _ask(random, wordings, purse=purse, count=count, price=price, goods=goods)
    return Problem(question, work, answer, (price, count, purse))


def share(random: Random, level: int) -> Problem:
    people, each = random.randint(2, _at(level, 4, 6, 9)), random.randint(4, 9)
    first = random.randint(3, people * each - 3)
    second = people * each - first
    work = Work()
    answer = work.divide(work.add(first, second), people)
    wordings = (
        "{name} brings {a} {thing} and {other} brings {b}. They share them equally among {people} children. "
        "How many does each child get?",
        "{name} and {other} put {a} and {b} {thing} together and split them into {people} equal {box}. "
        "How many {thing} are in each?",
    )
    question = _ask(random, wordings, a=first, b=second, people=people)
    return Problem(question, work, answer, (people, first, second))


def perimeter(random: Random, level: int) -> Problem:
    top = _at(level, 29, 49, 69)
    length, width = random.randint(15, top), random.randint(12, top)
    work = Work()
    answer = work.multiply(work.add(length, width), 2)
    wordings = (
        "A rectangular {place} is {length} meters long and {width} meters wide. How many meters of fence does it need?",
        "How many meters of fence go around a rectangular {place} of {length} by {width} meters?",
        "{name} walks once around a {place} of {length} by {width} meters. How many meters is that?",
    )
    place = random.choice(("garden", "field", "park", "yard", "pool"))
    return Problem(_ask(random, wordings, place=place, length=length, width=width), work, answer, (length, width))


KINDS: dict[str, Callable[[Random, int], Problem]] = {
    kind.__name__: kind
    for kind in (
        add_and_subtract,
        multiply_and_add,
        equation,
        average,
        compare,
        collect,
        change,
        share,
        perimeter,
    )
}
"""Every kind of problem by name. Add a function here to teach it, drop one to stop."""
