"""Texts as words and n-grams of words, each a number of 64 bits: compared by `duplicates` and `decontamination`.

A word is a run of letters and digits, or one Chinese, Japanese or Korean character; case, punctuation and signs do not
count. Hashes depend on the words alone, so that they are the same in every process.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Hashes: TypeAlias = npt.NDArray[np.uint64]

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_SPACES = bytes(code if code >= 0x80 or chr(code).isalnum() else 0x20 for code in range(256))
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion "
    "零 〇 一 二 三 四 五 六 七 八 九 十 百 千 万 亿 两"
)
_MOST_WORDS = 2**20  # that are remembered
_NUMBER = np.uint64(1)
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


class _Vocabulary(dict[bytes, int]):
    """The hash of each word. Its lowest bit is set for numbers, in digits or in words."""

    _numbers = frozenset(_NUMBER_WORDS.encode().split())

    def __missing__(self, word: bytes) -> int:
        if len(self) >= _MOST_WORDS:
            self.clear()
        digest = int.from_bytes(blake2b(word, digest_size=8).digest())
        self[word] = value = digest | 1 if word[:1].isdigit() or word in self._numbers else digest & ~1
        return value


_vocabulary = _Vocabulary()


@lru_cache(maxsize=4)  # each text is asked for by more than one
def hash_words(text: str) -> Hashes:
    """Return the hash of each word of a text, in order."""
    if not text.isascii():
        text = _NOT_ASCII.sub(_apart, unicodedata.normalize("NFKC", text))
    words = text.lower().encode("utf-8", "surrogatepass").translate(_SPACES).split()
    return np.fromiter(map(_vocabulary.__getitem__, words), np.uint64, len(words))


def _apart(run: re.Match[str]) -> str:
    """Put spaces in the place of signs, and around characters that are words of their own."""
    return "".join(
        f" {each} " if "\u3040" <= each <= "\ud7af" else each for each in (c if c.isalnum() else " " for c in run[0])
    )


def numbers(words: Hashes) -> Hashes:
    """Return the numbers among hashed words, in order."""
    return words[(words & _NUMBER).astype(np.bool_)]


def without_numbers(words: Hashes) -> Hashes:
    """Put one and the same word in the place of each run of numbers: "twenty five", 25 and 1,000 are then equal."""
    is_number = (words & _NUMBER).astype(np.bool_)
    follows = np.zeros_like(is_number)
    follows[1:] = is_number[:-1]
    masked: Hashes = np.where(is_number, _NUMBER, words)[~(is_number & follows)]
    return masked


def ngrams(words: Hashes, length: int) -> Hashes:
    """Return the hash of each run of `length` words, in order: a polynomial of theirs, modulo 2**64."""
    count = len(words) - length + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    powers, inverses = _powers(max(1024, 1 << len(words).bit_length()))
    sums = np.zeros(len(words) + 1, np.uint64)
    np.cumsum(words * powers[: len(words)], out=sums[1:])
    return np.asarray((sums[length:] - sums[:count]) * inverses[:count])


@lru_cache(maxsize=4)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    def powers_of(base: int) -> Hashes:
        return np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(count - 1, base, np.uint64)]))

    return powers_of(_BASE), powers_of(pow(_BASE, -1, 2**64))
