r"""The letters that an answer to a multiple-choice question names.

An answer may be the letter (`B`, `(b)`, `\boxed{\text{B}}`), a list of them (`A and C`), a letter before the option's
text (`D. E. coli`), or a sentence that says so (`The answer is B, as A is too small`, `故选B`). A letter that merely
stands in the prose does not count, nor does one that is said to be wrong; an answer that contradicts itself names none:
it is left undecided, with a note.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from thinktune import tags
from thinktune.scoring.choice_answers.wordings import (
    ABBREVIATION,
    AFTER,
    AFTER_SMALL,
    AND,
    AUXILIARY_NOT,
    FURTHER,
    HEDGE,
    HINTED,
    ITEM,
    LABEL,
    MORE,
    NEGATED,
    NEGATIVE,
    OR,
    REASONED,
    RIGHT,
    SAID,
    TITLE,
    WRONG,
)

ALPHABET = "ABCDEFGHIJ"
"""Letters of options whose number is unknown."""
_SHORT = 2000  # characters of an answer that may be a sentence naming the letter


@dataclass(frozen=True)
class Reading:
    """The named letters, in the order of the alphabet; None if none is named, or it cannot be decided which."""

    letters: str | None
    note: str | None = None


def read_letters(answer: str, alphabet: str = ALPHABET, *, any_order: bool = False) -> Reading:
    r"""Read the letters of `alphabet` that an answer names.

    Args:
        any_order: `CA` are two letters too; else glued letters count in rising order only, as `BAD` is a word.

    >>> [read_letters(each).letters for each in ("D. E. coli", r"$\boxed{\text{C}}$", "故选ＡＣ")]
    ['D', 'C', 'AC']
    >>> read_letters("A train leaves").letters, read_letters("A or B").note
    (None, 'names several letters: A, B')
    """
    if len(answer) > _SHORT:
        return Reading(None)
    text, boxes = _open_boxes(answer)
    reader = _Reader(alphabet, any_order)
    boxed = {reading for box in boxes if (reading := reader.read(_plain(box))).letters}
    if len(boxed) == 1 and len(boxes) == 1:
        return boxed.pop()
    return reader.read(_plain(text))


def stated_last(text: str, alphabet: str = ALPHABET) -> str | None:
    """Read the letters of the last statement of an answer in a long text, or None."""
    return _Reader(alphabet, any_order=False).last_statement(_plain(_open_boxes(text)[0]))


def _open_boxes(answer: str) -> tuple[str, list[str]]:
    """Return an answer with its boxes replaced by their contents, and those contents."""
    boxes = []
    for _ in range(8):
        content = tags.last_boxed(answer)
        if content is None:
            break
        head, mark, tail = answer.rpartition(r"\boxed{")
        if not mark or not tail.lstrip().startswith(content):
            break
        answer = f"{head} {content} {tail.lstrip()[len(content) :].lstrip().removeprefix('}')}"
        boxes.append(content)
    return answer, boxes


_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|bf|rm)\b\s?|\\[()\[\]!]|[$`*]|^\s*#+\s|</?(?:b|i|u|p|em|strong|span|code)>",
    re.M,
)
_SPACE = re.compile(r"\\[,; ]|\\q?quad\b|[{}~]|[“”\"「」『』【】《》]|(?<![A-Za-z])['‘’_]+|['‘’_]+(?![A-Za-z])")


def _plain(text: str) -> str:
    """Remove markup and quotes, in half-width letters; single spaces, and line breaks kept."""
    text = "".join(char for char in unicodedata.normalize("NFKC", text) if unicodedata.category(char) != "Cf")
    text = _SPACE.sub(" ", _MARKUP.sub("", text.replace("。", ".").replace("’", "'")))
    text = re.sub(r"<([A-Z])>", r"\1", re.sub(r"([(\[])\s*([A-Za-z])\s*([)\]])", r"\1\2\3", text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


class _Undecided(Exception):
    """Letters are named, and it cannot be told which is meant."""


@dataclass(frozen=True)
class _Named:
    """A list of letters in a text, and its end."""

    letters: frozenset[str]
    end: int
    marked: bool


class _Reader:
    def __init__(self, alphabet: str, any_order: bool) -> None:
        self._alphabet = alphabet
        self._any_order = any_order

    def read(self, text: str) -> Reading:
        """Read the letters of a text as `_plain` gives it."""
        try:
            found = self._whole(text)
            if found is None:
                found = self._of_parts(text)
        except _Undecided as undecided:
            names = ", ".join(sorted(undecided.args[0]))
            return Reading(None, f"names several letters: {names}" if len(undecided.args[0]) > 1 else None)
        return Reading("".join(sorted(found)) if found else None)

    def last_statement(self, text: str) -> str | None:
        """Return the last statement of an answer; None if there is none, or it cannot be decided."""
        letters: frozenset[str] | None = None
        for match in SAID.finditer(text):
            try:
                letters = self._statement(text, match) or letters
            except _Undecided:
                letters = frozenset()
        return "".join(sorted(letters)) if letters else None

    def _whole(self, text: str) -> frozenset[str] | None:
        """Read a text that is nothing but a list of letters."""
        text = HEDGE.sub("", text.strip(" .,;:!"))
        text = re.sub(r"\s+(?:only|both)$|\s*[?!]$", "", text, flags=re.I)
        text = re.sub(r",?\s*(?:but\s+|and\s+)?(?:not|rather than|instead of)\s+\(?[A-Za-z]\)?$", "", text)
        text = re.sub(r"^([A-Za-z])\s?(?:选?项|选项)$", r"\1", text)
        if match := re.fullmatch(r"[(\[]?([A-Za-z])[)\]]?|[(\[]([^()\[\]]+)[)\]]", text):
            text = match[1] or match[2]  # half a bracket is no less clear
        named = self._list_at(text, 0, alone=True)
        if named is None:
            return None
        rest = text[named.end :].strip(" .,;)")
        return named.letters if not rest else None

    def _of_parts(self, text: str) -> frozenset[str] | None:
        """Return the letters that the label, the lines and the statements of a text agree in."""
        said = self._stated(text, SAID)
        label = self._label(text)
        lines = text.split("\n")
        found = said | ({label} if label else set())
        if len(lines) > 1:
            found |= {letters for line in (lines[0], lines[-1]) if (letters := self._whole(line))}
        if label and said and text[:1] in "Aa" and text[1:2] == ":":
            found = said  # `A:` before a sentence is short for "answer"
        if not found:
            found = self._stated(text, HINTED) | set(self._called_right(text))
        if not found and (match := re.search(r"[\w$)]{2} ?(?:\(|, )(?:option |choice )?\(?([A-Z])\)\.?$", text)):
            prose = re.search(r"\b[A-Z] ?\(\w\)", text) or NEGATIVE.search(text)
            found = {frozenset(match[1])} if match[1] in self._alphabet and not prose else set()
        if len(found) > 1:
            raise _Undecided(frozenset().union(*found))
        return next(iter(found), None)

    def _label(self, text: str) -> frozenset[str] | None:
        """Read the letter before an option's text, with those of further labels."""
        match = LABEL.match(text)
        if reasoned := REASONED.match(text):
            return frozenset(reasoned[1].upper()) if reasoned[1].upper() in self._alphabet else None
        if match is None or ABBREVIATION.match(text):
            return None
        first, rest = self._letter(match), text[match.end() :]
        if first is None or not rest or WRONG.match(rest) or AUXILIARY_NOT.match(rest):
            return None
        if re.match(r"[a-z]\.[a-z]", text):  # no space: `i.e`, or a name of a file
            return None
        if named := self._list_at(rest, 0, alone=True):
            # `D. Both A and B` is an option's text; `A. C` may be one, or two answers.
            if not rest[named.end :].strip(" .)") and (len(named.letters) < 2 or max(named.letters) > first):
                raise _Undecided(named.letters | {first})
            return frozenset(first)
        if (gap := OR.match(rest) or AND.match(rest)) and (named := self._list_at(rest, gap.end())):
            raise _Undecided(named.letters | {first})
        others = self._further_labels(text, match, first)
        if others and (NEGATIVE.search(rest) or re.search(r"\bor\b|或", rest)):
            raise _Undecided(others | {first})
        return others | {first}

    def _further_labels(self, text: str, match: re.Match[str], first: str) -> frozenset[str]:
        """Read the letters of labels of the same kind that begin a line or a further part of the text. Initials are
        none: they follow a label or each other (`A. H. pylori`), or a name (`A. John F. Kennedy`)."""
        kind, end, last, initials = _kind(match), match.end(), first, False
        if re.match(r"\s*(?:both|all|neither|none|either)\b", text[end:], re.I):
            return frozenset()
        found = set()
        for label in FURTHER.finditer(text, match.end()):
            if _kind(label) != kind or ABBREVIATION.match(text, label.start()):
                continue
            letter, before = self._letter(label), text[end : label.start()]
            if not before.strip() and kind == ".":
                initials, end = True, label.end()
                continue
            if letter is None or letter == first or (not before.endswith("\n") and TITLE.search(before)):
                continue
            line = before.endswith("\n")
            part = re.search(r"(?:[,;]|\b(?:and|or)|[&和或与])\s*$", before, re.I)
            ended = re.search(r"[.!?]\s*$", before)
            following = ord(letter) == ord(last) + 1
            if line or (not initials and (part or ended or following)):
                found.add(letter)
                last = letter
        return frozenset(found)

    def _stated(self, text: str, lead: re.Pattern[str]) -> set[frozenset[str]]:
        return {letters for match in lead.finditer(text) if (letters := self._statement(text, match))}

    def _statement(self, text: str, lead: re.Match[str]) -> frozenset[str] | None:
        """Read the letters behind words that lead to an answer, unless they are said to be wrong."""
        if NEGATED.search(text[max(0, lead.start() - 24) : lead.start()]):
            return None
        named = self._list_at(text, lead.end())
        if named is None or (lead.re is HINTED and text[lead.end()] == "a" and not named.marked):
            return None  # `it is a` has not been said to its end
        after = text[named.end :]
        return None if WRONG.match(after) or not (named.marked or AFTER.match(after)) else named.letters

    def _called_right(self, text: str) -> Iterator[frozenset[str]]:
        for match in ITEM.finditer(text):
            if NEGATED.search(text[max(0, match.start() - 24) : match.start()]) or match["mark"] == ".":
                continue
            if re.search(r"(?<![A-Za-z])[A-Za-z]\)?\s*(?:[,、;&]|\band|\bor|[和与或])\s*$", text[: match.start()]):
                continue  # within a list, which was read from its start
            named = self._list_at(text, match.start())
            if named and RIGHT.match(text, named.end) and not re.match(r"\s*\w+ not\b", text[named.end :]):
                yield named.letters

    def _list_at(self, text: str, at: int, *, alone: bool = False) -> _Named | None:
        """Read the list of letters that begins at a place: `(A)`, `A and C`, `AC`; an alternative cannot be decided."""
        first = ITEM.match(text, at)
        letters = first and self._letters(first, alone)
        if not first or not letters:
            return None
        end, item, marked = first.end(), first, _is_marked(first)
        while True:
            gap = AND.match(text, end) or OR.match(text, end) or re.compile(r"\s*").match(text, end)
            assert gap is not None
            following = ITEM.match(text, gap.end())
            more = following and self._letters(following, alone or bool(gap.group().strip()))
            if not following or not more or not self._goes_on(text, item, gap, following):
                break
            if OR.fullmatch(gap.group()):
                raise _Undecided(letters | more)
            letters, item, end = letters | more, following, following.end()
        return _Named(letters, end, marked)

    def _goes_on(self, text: str, item: re.Match[str], gap: re.Match[str], following: re.Match[str]) -> bool:
        """Return whether a letter continues the list of the one before it, instead of beginning new text."""
        after = text[following.end() :]
        if item["bare"] and following["bare"] and item["bare"].isupper() != following["bare"].isupper():
            return False
        if not gap.group().strip():  # nothing but space: between two of one kind in their order, and nothing behind
            if _is_round(item) or _is_round(following):
                return (
                    _is_round(item) and _is_round(following) and str(self._letter(item)) < str(self._letter(following))
                )
            return bool(gap.group()) and not item["mark"] + following["mark"] and not re.match(r"\s*[^\W_]", after)
        if gap.group().strip() in (",", ";"):
            others = MORE.match(after)
            clause = after[others.end() :] if others else after
            if WRONG.match(clause) or re.match(r"\s+(?:is|was|has)\b", clause):
                return False
        return not (following["mark"] == "." and re.match(r"\s+[a-z]", after) and "," in gap.group())

    def _letters(self, item: re.Match[str], alone: bool) -> frozenset[str] | None:
        """Read the letters of an item. A small one without a mark counts only if nothing but letters is expected."""
        if glued := item["glued"]:
            rising = self._any_order or list(glued) == sorted(glued)
            known = glued.isupper() and len(set(glued)) == len(glued) and all(char in self._alphabet for char in glued)
            return frozenset(glued) if known and rising else None
        if (letter := self._letter(item)) is None:
            return None
        bare = item["bare"]
        if bare and bare.islower() and not alone and not item["mark"]:
            rest = item.string[item.end() :]
            if not AFTER_SMALL.match(rest):
                return None
        return frozenset(letter)

    def _letter(self, match: re.Match[str]) -> str | None:
        groups = match.groupdict()
        letter = groups.get("round") or groups.get("square") or groups.get("letter") or groups.get("bare")
        return letter.upper() if letter and letter.upper() in self._alphabet else None


def _kind(label: re.Match[str]) -> str:
    return "(" if label["round"] or label["square"] or label["mark"].strip() == ")" else label["mark"].strip()


def _is_round(item: re.Match[str]) -> bool:
    return bool(item["round"] or item["square"])


def _is_marked(item: re.Match[str]) -> bool:
    return _is_round(item) or bool(item["mark"])
