"""Examples that say again the words of an earlier one: exactly, or nearly.

Two examples are near duplicates if they have the same numbers in question and answer, and the sets of their word pairs
overlap by 70% (Jaccard). Candidates come from MinHash signatures in bands (Broder 1997; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, ch. 3); the overlap of each candidate is then counted exactly, so that hashing drops nothing
that differs. Word pairs are kept where sentences change places; of different problems of GSM8K, the most alike overlap
by half.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec

import numpy as np

from thinktune.data.examples import Example
from thinktune.data.words import Hashes, hash_words, ngrams, numbers
from thinktune.errors import MissingExtra

_OVERLAP = 0.7
_BANDS, _ROWS = 32, 4  # a pair that overlaps by 70% shares a band with a probability of 0.9998
_SEED = 1


class Duplicates:
    """The examples so far, each of which differs from all before it.

    Args:
        prompts: compare the prompts alone, whatever the replies.

    Raises:
        MissingExtra: rensa, which computes the signatures, is not installed.
    """

    def __init__(self, *, prompts: bool = False) -> None:
        if find_spec("rensa") is None:
            raise MissingExtra("data.deduplicate needs the package rensa", hint="pip install 'thinktune[dedup]'")
        self._text: Callable[[Example], str] = question_of if prompts else text_of
        self._decisive: Callable[[Example], str] = question_of if prompts else _question_and_answer
        self._kept: list[Example] = []
        self._exact: dict[bytes, int] = {}
        self._near: defaultdict[bytes, list[int]] = defaultdict(list)

    def find_or_add(self, example: Example) -> tuple[Example, bool] | None:
        """Return the earlier example that this one repeats, and whether it does so exactly; None, and remember it, if
        there is none."""
        text = self._text(example)
        digest = _digest(" ".join(text.split()).encode("utf-8", "surrogatepass"))
        if (same := self._exact.get(digest)) is not None:
            return self._kept[same], True
        bands = self._bands(example)
        for candidate in dict.fromkeys(other for band in bands for other in self._near.get(band, ())):
            if _overlap(_word_pairs(text), _word_pairs(self._text(self._kept[candidate]))) >= _OVERLAP:
                return self._kept[candidate], False
        self._exact[digest] = len(self._kept)
        for band in bands:
            self._near[band].append(len(self._kept))
        self._kept.append(example)
        return None

    def _bands(self, example: Example) -> list[bytes]:
        """Return the keys under which near duplicates meet. The numbers are in all of them."""
        from rensa import RMinHash

        pairs = _word_pairs(self._text(example))
        if len(pairs) == 0:
            return []
        signature = RMinHash.digest_matrix_from_flat_token_hashes(
            pairs, np.array([0, len(pairs)], np.uint64), _BANDS * _ROWS, _SEED
        ).to_rows()[0]
        decisive = np.sort(numbers(hash_words(self._decisive(example)))).tobytes()
        bands = np.array(signature, np.uint32).reshape(_BANDS, _ROWS)
        return [_digest(bytes([at]) + band.tobytes() + decisive)[:8] for at, band in enumerate(bands)]


def question_of(example: Example) -> str:
    """Return the turns before the reply, without the system text, which many examples share."""
    return "\n".join(turn["content"] for turn in example.messages if turn["role"] != "system")


def text_of(example: Example) -> str:
    """Return everything in an example that is its own."""
    return f"{question_of(example)}\n{example.think}\n{example.answer}"


def _question_and_answer(example: Example) -> str:
    return f"{question_of(example)}\n{example.answer}"


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


@lru_cache(maxsize=16)
def _word_pairs(text: str) -> Hashes:
    words = hash_words(text)
    pairs = np.sort(ngrams(words, 2) if len(words) > 1 else words)
    distinct: Hashes = pairs[np.diff(pairs, prepend=~pairs[:1]) != 0]
    return distinct


def _overlap(one: Hashes, other: Hashes) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
