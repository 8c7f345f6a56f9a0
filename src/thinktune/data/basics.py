"""Small questions that people type first: sums of one step, everyday facts, a greeting.

They are a source of their own, `builtin:basics`, so that the rows of `builtin:arithmetic` stay as they are. What one
knows by heart (the times table, sums of small numbers, facts) is only in the train split, and comes first there; sums
of larger numbers are in one of the two splits, by their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement, cycle, islice
from random import Random
from typing import Any

from thinktune.data.arithmetic import Problem, Split, Work, conversation

_CYCLE = ("plus", "fact", "times", "minus", "fact", "divided", "part", "fact")
"""The kinds, in the order in which they come round; the test split has no facts."""
_SUM = ("What is {term}?", "What is {term}?", "What's {term}?", "How much is {term}?", "{term}", "{term} = ?")

Numbers = tuple[int, int]
Write = Callable[[Work, int, int], tuple[str, int]]
Rows = Callable[[Random, Split], Iterator[dict[str, Any]]]


def basics(split: Split, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield `count` rows, kind after kind; a larger count begins with the smaller one's rows. A kind that is exhausted
    begins again, in other words."""
    random = Random(f"{seed} {split} basics")
    kinds = {kind: _SUMS[kind](random, split) for kind in _SUMS}
    if split == "train":
        kinds["fact"] = _facts(random)
    order = cycle([kind for kind in _CYCLE if kind in kinds])
    return (next(kinds[kind]) for kind in islice(order, count))


def _sums(kind: str, by_heart: Sequence[Numbers], others: Sequence[Numbers], write: Write) -> Rows:
    """Make a kind of sum: `write` works one out, and returns its term with `{}` for each sign, and the answer."""

    def rows(random: Random, split: Split) -> Iterator[dict[str, Any]]:
        drawn = [pair for pair in others if _problem(pair, write).split == split]
        known = list(by_heart) if split == "train" else []
        while True:
            for pairs in (known, drawn):
                random.shuffle(pairs)
                for pair in pairs:
                    yield row(random, pair)

    def row(random: Random, pair: Numbers) -> dict[str, Any]:
        problem = _problem(pair, write)
        term = problem.question.format(random.choice(_SIGNS[kind]))
        question = random.choice(_SUM).format(term=term)
        return conversation(question[0].upper() + question[1:], " ".join(problem.work.steps), problem.answer, kind=kind)

    return rows


def _problem(pair: Numbers, write: Write) -> Problem:
    work = Work()
    term, answer = write(work, *pair)
    return Problem(term, work, answer, pair)


_SIGNS = {
    "plus": (" + ", " plus ", "+"),
    "minus": (" - ", " minus ", "-"),
    "times": (" times ", " * ", " x ", " × ", "*", " multiplied by "),
    "divided": (" divided by ", " / ", " ÷ ", "/"),
    "part": ("",),
}


def _plus(work: Work, a: int, b: int) -> tuple[str, int]:
    return f"{a}{{}}{b}", work.add(a, b)


def _minus(work: Work, rest: int, b: int) -> tuple[str, int]:
    return f"{rest + b}{{}}{b}", work.subtract(rest + b, b)


def _times(work: Work, a: int, b: int) -> tuple[str, int]:
    return f"{a}{{}}{b}", work.multiply(a, b)


def _divided(work: Work, quotient: int, b: int) -> tuple[str, int]:
    return f"{quotient * b}{{}}{b}", work.divide(quotient * b, b)


def _part(work: Work, a: int, which: int) -> tuple[str, int]:
    """Half, double, a square, or some percent."""
    if which == 1:
        return f"half of {2 * a}{{}}", work.divide(2 * a, 2)
    if which == 2:
        return f"double {a}{{}}", work.multiply(a, 2)
    if which == 3:
        return f"the square of {a}{{}}", work.multiply(a, a)
    share, divisor = {4: (10, 10), 6: (20, 5), 7: (25, 4)}[which]
    return f"{share}% of {a * divisor}{{}}", work.divide(a * divisor, divisor)


def _both_ways(pairs: Sequence[Numbers]) -> list[Numbers]:
    """The smaller factor first in one half of the pairs, last in the other."""
    return [pair if sum(pair) % 2 else pair[::-1] for pair in pairs]


_DIGITS = list(combinations_with_replacement(range(1, 11), 2))
_TABLE = _both_ways(list(combinations_with_replacement(range(2, 13), 2)))
_LARGER = [(a, b) for a in range(11, 100) for b in range(2, 100)]
_PRODUCTS = [(a, b) for a in range(13, 50) for b in range(2, 10)]

_SUMS: dict[str, Rows] = {
    "plus": _sums("plus", _both_ways(_DIGITS), _LARGER, _plus),
    "minus": _sums("minus", _both_ways(_DIGITS), [pair for pair in _LARGER if sum(pair) < 100], _minus),
    "times": _sums("times", _TABLE, _PRODUCTS, _times),
    "divided": _sums("divided", _TABLE, _PRODUCTS, _divided),
    "part": _sums(
        "part",
        [(a, which) for a in range(2, 13) for which in (1, 2, 3, 4)],
        [(a, which) for a in range(13, 50) for which in (1, 2, 4, 6, 7)],
        _part,
    ),
}


def _facts(random: Random) -> Iterator[dict[str, Any]]:
    facts = list(_every_fact())
    while True:
        random.shuffle(facts)
        for questions, thought, answer in facts:
            yield conversation(random.choice(questions), thought, answer, kind="fact")


def _every_fact() -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield every fact: the wordings of its question, the thought, the answer."""
    wordings: tuple[str, ...]
    for country, city in _CAPITALS.items():
        wordings = ("What is the capital of {}?", "What's the capital of {}?", "Which city is the capital of {}?")
        yield tuple(each.format(country) for each in wordings), f"The capital of {country} is {city}.", city
    for whole, things, count in _COUNTS:
        wordings = (f"How many {things} are in {whole}?", f"How many {things} does {whole} have?")
        yield wordings, f"{_capital(whole)} has {count} {things}.", count
    for thing, color in _COLORS.items():
        verb = "are" if thing.endswith("s") and thing != "grass" else "is"
        wordings = (f"What color {verb} {thing}?", f"What colour {verb} {thing}?")
        yield wordings, f"{_capital(thing)} {verb} {color}.", color
    for one, other in _OPPOSITES.items():
        for word, opposite in ((one, other), (other, one)):
            wordings = (f"What is the opposite of {word}?", f"What's the opposite of {word}?")
            yield wordings, f"The opposite of {word} is {opposite}.", opposite
    for order in (_DAYS, _MONTHS):
        for one, following in zip(order, (*order[1:], order[0]), strict=True):
            unit = "day" if order is _DAYS else "month"
            yield (
                (f"Which {unit} comes after {one}?", f"What {unit} comes after {one}?"),
                (f"After {one} comes {following}."),
                following,
            )
    for question, thought, answer in _OTHERS:
        yield (question,), thought, answer
    for greetings, thought, answer in _TALK:
        for greeting in greetings:
            yield (greeting,), thought, answer


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


_CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "the United Kingdom": "London", "Ireland": "Dublin", "the Netherlands": "Amsterdam",
    "Belgium": "Brussels", "Austria": "Vienna", "Switzerland": "Bern", "Poland": "Warsaw", "Greece": "Athens",
    "Sweden": "Stockholm", "Norway": "Oslo", "Denmark": "Copenhagen", "Finland": "Helsinki", "Russia": "Moscow",
    "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi", "China": "Beijing", "Japan": "Tokyo",
    "India": "New Delhi", "South Korea": "Seoul", "Thailand": "Bangkok", "Indonesia": "Jakarta",
    "Australia": "Canberra", "Canada": "Ottawa", "the United States": "Washington, D.C.", "the USA": "Washington, D.C.",
    "Mexico": "Mexico City", "Brazil": "Brasília", "Argentina": "Buenos Aires", "Chile": "Santiago",
}  # fmt: skip
_COUNTS = (
    ("a week", "days", "7"), ("a year", "days", "365"), ("a year", "months", "12"), ("a year", "weeks", "52"),
    ("a day", "hours", "24"), ("an hour", "minutes", "60"), ("a minute", "seconds", "60"),
    ("an hour", "seconds", "3600"), ("a decade", "years", "10"), ("a century", "years", "100"),
    ("a meter", "centimeters", "100"), ("a kilometer", "meters", "1000"), ("a kilogram", "grams", "1000"),
    ("a foot", "inches", "12"), ("a dollar", "cents", "100"), ("a dozen", "eggs", "12"),
    ("the alphabet", "letters", "26"), ("the rainbow", "colors", "7"), ("the solar system", "planets", "8"),
    ("the world", "continents", "7"), ("a spider", "legs", "8"), ("an insect", "legs", "6"), ("a dog", "legs", "4"),
    ("a cat", "legs", "4"), ("a bird", "legs", "2"), ("a hand", "fingers", "5"), ("a car", "wheels", "4"),
    ("a bicycle", "wheels", "2"), ("a triangle", "sides", "3"), ("a square", "sides", "4"), ("a hexagon", "sides", "6"),
    ("a circle", "degrees", "360"), ("a right angle", "degrees", "90"), ("a cube", "faces", "6"),
    ("an octopus", "arms", "8"), ("a soccer team", "players", "11"), ("the United States", "states", "50"),
)  # fmt: skip
_COLORS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sun": "yellow",
    "bananas": "yellow", "milk": "white", "lemons": "yellow", "tomatoes": "red", "strawberries": "red",
}  # fmt: skip
_OPPOSITES = {
    "hot": "cold", "big": "small", "up": "down", "day": "night", "good": "bad", "fast": "slow", "left": "right",
    "black": "white", "happy": "sad", "open": "closed", "old": "young", "light": "dark",
}  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_OTHERS = (
    ("What is the largest planet?", "The largest planet of the solar system is Jupiter.", "Jupiter"),
    ("Which planet do we live on?", "We live on the Earth.", "Earth"),
    ("What is the largest ocean?", "The largest ocean is the Pacific Ocean.", "the Pacific Ocean"),
    ("What is the highest mountain in the world?", "The highest mountain is Mount Everest.", "Mount Everest"),
    ("What is the largest animal?", "The largest animal is the blue whale.", "the blue whale"),
    ("What is H2O?", "H2O is the formula of water.", "water"),
    ("At how many degrees Celsius does water boil?", "Water boils at 100 degrees Celsius.", "100"),
    ("At how many degrees Celsius does water freeze?", "Water freezes at 0 degrees Celsius.", "0"),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet is a play by William Shakespeare.", "William Shakespeare"),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci.", "Leonardo da Vinci"),
    ("Who was the first president of the United States?", "The first was George Washington.", "George Washington"),
    ("What do bees make?", "Bees make honey.", "honey"),
    ("What language do people speak in Brazil?", "People in Brazil speak Portuguese.", "Portuguese"),
    ("How many r's are in strawberry?", "s t r a w b e r r y: one r after t, two before y. 1 + 2 = 3.", "3"),
    ("How many r's are in the word strawberry?", "s t r a w b e r r y: one r after t, two before y. 1 + 2 = 3.", "3"),
    ("Which is larger, 9.11 or 9.9?", "9.9 is 9.90. 90 is more than 11, so 9.9 is larger.", "9.9"),
    ("What is pi?", "Pi is the circumference of a circle over its diameter, about 3.14.", "3.14"),
    ("What is the square root of 16?", "4 * 4 = 16.", "4"),
    ("What is the square root of 81?", "9 * 9 = 81.", "9"),
    ("What is the square root of 144?", "12 * 12 = 144.", "12"),
)
_TALK = (
    (("Hi", "Hello", "Hey", "Hello!", "Good morning"), "The user greets me.", "Hello! What would you like to know?"),
    (("Who are you?", "What are you?", "What is your name?"), "The user asks who I am.",
     "I am a small language model that thinks before it answers."),
    (("What can you do?", "How can you help me?"), "The user asks what I can do.",
     "I can work out small sums and word problems."),
    (("How are you?",), "The user asks how I am.", "I am fine, thank you. What would you like to know?"),
    (("Thanks", "Thank you!"), "The user thanks me.", "You are welcome!"),
    (("Bye", "Goodbye"), "The user leaves.", "Goodbye!"),
)  # fmt: skip
