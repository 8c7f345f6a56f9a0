"""The options of a multiple-choice question, if its gold record has them, so that an option's own text counts as its
letter and a letter of that text (`A. Michael B. Jordan`) does not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from thinktune.scoring.base import FULL_WIDTH

Options = Mapping[str, str]
"""Texts by letter, from A on."""

_GIVEN = ("options", "choices")
_ASKED = ("prompt", "question")
_LONGEST = 10_000  # characters at the end of a question, where its options stand
_STARTS = 20  # places that may begin the list of options
_LABELLED = r" ?[(\[]?{} ?[)\].:、] ?"
_HALF_WIDTH = str.maketrans(FULL_WIDTH | {"\u3000": " ", "。": "."})
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm)\b\s?|\\boxed\b|\\[()\[\]!,; ]|\\q?quad\b|[$`*{}\"“”]")


def options_of(gold: Mapping[str, Any]) -> Options:
    """Read the options of a record: `options` or `choices` (a list, letters to texts, lists `{text, label}`), else
    those that its `prompt` or `question` lists as A, B, C…; empty if it has none.

    >>> options_of({"choices": ["ten", "twelve"]}), options_of({"prompt": "How many? (A) ten (B) twelve"})
    ({'A': 'ten', 'B': 'twelve'}, {'A': 'ten', 'B': 'twelve'})
    """
    for name in _GIVEN:
        if options := _given(gold.get(name)):
            return options
    texts = [text for name in _ASKED if isinstance(text := gold.get(name), str)]
    return next((options for text in texts if (options := _listed(text))), {})


def letter_of_text(answer: str, options: Options) -> str | None:
    """Return the letter of the only option whose text an answer is, or None."""
    said = as_text(answer)
    found = [letter for letter, text in options.items() if said and as_text(text) == said]
    return found[0] if len(found) == 1 else None


def labelled_text(answer: str, options: Options) -> str | None:
    """Return the text behind the letter that an answer begins with, or None."""
    letters = "".join(options)
    match = re.match(
        rf"(?:option|choice)?[ (\[]*([{letters}{letters.lower()}])(?![A-Za-z0-9'])[ )\].:、-]*(.+)",
        as_text(answer, fold=False),
        re.S | re.I,
    )
    return match and match[2]


def as_text(text: str, *, fold: bool = True) -> str:
    """Normalise a text: no markup, half width, no marks at its end, so that two spellings are one."""
    text = " ".join(_MARKUP.sub("", text[:4000].translate(_HALF_WIDTH)).split()).strip(" .;,")
    return text.casefold() if fold else text


def _given(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping) and isinstance(value.get("text"), list) and isinstance(value.get("label"), list):
        value = dict(zip(map(str, value["label"]), value["text"], strict=False))
    if isinstance(value, Mapping):
        pairs = [(str(name).strip(" ().").upper(), text) for name, text in value.items()]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        pairs = list(zip(ascii_uppercase, value, strict=False))
    else:
        return {}
    options = {letter: _unlabelled(letter, str(text)) for letter, text in pairs}
    return options if len(options) > 1 and list(options) == list(ascii_uppercase[: len(options)]) else {}


def _unlabelled(letter: str, text: str) -> str:
    return re.sub("^" + _LABELLED.format(letter), "", text.translate(_HALF_WIDTH)).strip()


def _listed(text: str) -> dict[str, str]:
    """Read the options that a question lists, a line each or one behind the other."""
    text = re.sub(r"[ \t]+", " ", text[-_LONGEST:].translate(_HALF_WIDTH))
    return _run(text, r"(?:^|\n)") or _run(text, r"(?:^|(?<=[\s,;.?]))")


def _run(text: str, before: str) -> dict[str, str]:
    """Read the texts between labels A, B, C… in this order, from the last A on that begins such a list."""
    starts = list(re.finditer(before + _LABELLED.format("A"), text))
    for start in reversed(starts[-_STARTS:]):
        places = [start]
        for letter in ascii_uppercase[1:]:
            following = re.compile(before + _LABELLED.format(letter)).search(text, places[-1].end())
            if following is None:
                break
            places.append(following)
        if len(places) > 1:
            ends = [place.start() for place in places[1:]] + [len(text)]
            return {
                letter: text[place.end() : end].strip()
                for letter, place, end in zip(ascii_uppercase, places, ends, strict=False)
            }
    return {}
