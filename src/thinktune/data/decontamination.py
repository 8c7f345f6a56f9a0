"""Training examples that hold a problem of the evaluation data: a score on it would measure memory.

Prompts and replies are searched for runs of words of each problem's question, as they stand and with all numbers taken
for equal, so that a problem with other numbers, or with numbers in words, is found too. An example holds a problem if
it has

- 13 words of it in a row (Brown et al. 2020, appendix C), or
- runs of 8 words that cover at least half of it (Lambert et al. 2024, Tülu 3, section 3.2), or
- its text as its whole question, if that has fewer than 8 words.

Runs that more than two different problems have, such as "where m and n are relatively prime positive integers", are
their manner of speaking, and count for none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thinktune.data.duplicates import question_of, text_of
from thinktune.data.examples import Example
from thinktune.data.words import Hashes, hash_words, ngrams, without_numbers

_LONG, _SHORT = 13, 8
_COVERED = 0.5  # of a problem's words, by runs of 8
_COMMON = 2  # problems that may share a run
_BITS = 22  # of the table that tells, of nearly every run of an example, that no problem has it


@dataclass(frozen=True)
class Match:
    """An example's problem.

    Attributes:
        problem: `source:row` of it.
        words: length of the runs that were found; 0: its whole question.
        numbers: whether the numbers are the problem's, too.
    """

    problem: str
    words: int
    numbers: bool


class _Runs:
    """All runs of so many words of the problems, and which problem has each where.

    Args:
        kinds: a number for each problem, the same for those that differ in their numbers alone.
    """

    def __init__(self, problems: Sequence[Hashes], kinds: npt.NDArray[np.intp], length: int) -> None:
        runs = [ngrams(words, length) for words in problems]
        keys = np.concatenate(runs)
        order = np.argsort(keys, kind="stable")
        self._keys = keys[order]
        self._problems = np.repeat(np.arange(len(problems)), [len(each) for each in runs])[order]
        self._starts = np.concatenate([np.arange(len(each)) for each in runs])[order]
        self._common = self._shared(kinds)
        # Two looks into a table (Bloom 1970) spare the search for nearly every run that no problem has.
        self._table = np.zeros(2**_BITS, np.bool_)
        for places in self._places(self._keys):
            self._table[places] = True

    def _places(self, runs: Hashes) -> tuple[Hashes, Hashes]:
        return runs >> np.uint64(64 - _BITS), (runs >> np.uint64(64 - 2 * _BITS)) & np.uint64(2**_BITS - 1)

    def _shared(self, kinds: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Tell the runs that problems of too many kinds have."""
        _, key = np.unique(self._keys, return_inverse=True)
        pairs = np.unique(np.stack([key, kinds[self._problems]]), axis=1)
        common: npt.NDArray[np.bool_] = (np.bincount(pairs[0]) > _COMMON)[key]
        return common

    def places_in(self, runs: Hashes) -> npt.NDArray[np.intp]:
        """Return the places, among the problems' runs, of those that are among these."""
        first, second = self._places(runs)
        likely = runs[self._table[first] & self._table[second]]
        places = np.searchsorted(self._keys, likely)
        there = places < len(self._keys)
        there[there] = self._keys[places[there]] == likely[there]
        return np.unique(places[there])

    def starts(self, places: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
        """Yield problem and start of each run at these places, without those that too many problems have."""
        for first in places:
            last = first if self._common[first] else np.searchsorted(self._keys, self._keys[first], "right")
            for at in range(first, last):
                yield int(self._problems[at]), int(self._starts[at])


class ProblemIndex:
    """The problems of evaluation data, by their words.

    Args:
        problems: `source:row` and question of each.
    """

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self._names: list[str] = []
        self._whole: dict[str, str] = {}
        words: list[Hashes] = []
        for name, question in problems:
            self._whole.setdefault(_spelled(question), name)
            self._names.append(name)
            words.append(hash_words(question))
        masked = [without_numbers(each) for each in words]
        known: dict[bytes, int] = {}
        kinds = np.array([known.setdefault(each.tobytes(), len(known)) for each in masked], np.intp)
        self._lengths = {True: [len(each) for each in words], False: [len(each) for each in masked]}
        self._runs = {
            (numbers, length): _Runs(each, kinds, length)
            for numbers, each in ((True, words), (False, masked))
            for length in (_LONG, _SHORT)
        }

    def __len__(self) -> int:
        return len(self._names)

    def find(self, example: Example) -> Match | None:
        """Return the problem that an example holds; None: it holds none."""
        if name := self._whole.get(_spelled(question_of(example))):
            return Match(name, 0, True)
        words = hash_words(text_of(example))
        for numbers, sequence in ((True, words), (False, without_numbers(words))):
            places = self._runs[numbers, _SHORT].places_in(ngrams(sequence, _SHORT))
            if len(places) == 0:  # then no longer run is a problem's either
                continue
            long = self._runs[numbers, _LONG]
            for problem, _ in long.starts(long.places_in(ngrams(sequence, _LONG))):
                return Match(self._names[problem], _LONG, numbers)
            if (covered := self._covered(numbers, places)) is not None:
                return Match(self._names[covered], _SHORT, numbers)
        return None

    def _covered(self, numbers: bool, places: npt.NDArray[np.intp]) -> int | None:
        """Return the first problem of whose words enough are in these runs."""
        starts: dict[int, list[int]] = {}
        for problem, start in self._runs[numbers, _SHORT].starts(places):
            starts.setdefault(problem, []).append(start)
        for problem in sorted(starts):
            covered = {word for start in starts[problem] for word in range(start, start + _SHORT)}
            if len(covered) >= _COVERED * self._lengths[numbers][problem]:
                return problem
        return None


def _spelled(question: str) -> str:
    return " ".join(question.lower().split())
