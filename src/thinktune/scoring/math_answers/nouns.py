"""The words beside a number: nouns in the singular, without empty words; and words that are no nouns."""

from __future__ import annotations

import re

from thinktune.scoring.math_answers.plain_text import NAMES

_STATEMENTS = """
or and if when where not than plus minus times over to mod modulo least most between unless except remainder factorial
below above squared cubed through until by under within almost nearly either neither nor is are was were equals equal
choose out
"""
STATEMENTS = NAMES | frozenset(_STATEMENTS.split())
"""Words that make another statement of a number, and so are not taken for nouns."""

_SAID_BEFORE = "is are was were equals equal out"
SAID_BEFORE = frozenset(_SAID_BEFORE.split())
"""Words of statements that may lead up to a number all the same."""

_SILENT_WORDS = """
the a an of in per each every total altogether unit square cubic st nd rd th it he she they we i you there will has have
had be been so that this his her their its total exactly approximately about around roughly only just get need take cost
make number answer result value final amount sum all for with on at as which who can would should must do does did gives
give yields
"""
_SILENT = frozenset(_SILENT_WORDS.split())
_IRREGULAR = {
    "children": "child", "people": "person", "men": "man", "women": "woman", "feet": "foot", "mice": "mouse",
    "geese": "goose", "teeth": "tooth", "leaves": "leaf", "knives": "knife", "loaves": "loaf",
}  # fmt: skip
_CLASSIFIERS = "个只本条张件位名棵颗朵把枝支台套块片次种箱袋包瓶杯间座辆头匹份"
_CLASSIFIER = re.compile(rf"^[{_CLASSIFIERS}]")
_PLURAL = re.compile(r"(?:s|x|z|ch|sh|o)es$")


def nouns(words: list[str]) -> frozenset[str]:
    """Reduce words to one form each.

    >>> sorted(nouns(["the", "Apples", "of", "children"])), nouns(["个苹果"])
    (['apple', 'child'], frozenset({'苹果'}))
    """
    found = (_singular(word.casefold().strip(".'’-")) for word in words)
    return frozenset(name for name in found if name and name not in _SILENT)


def _singular(name: str) -> str:
    if name and "\u4e00" <= name[0] <= "\u9fff":
        return _CLASSIFIER.sub("", name)
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if name.endswith("ies") and len(name) > 4:
        return name[:-3] + "y"
    if _PLURAL.search(name):
        return name[:-2]
    return name[:-1] if name.endswith("s") and not name.endswith("ss") and len(name) > 3 else name
