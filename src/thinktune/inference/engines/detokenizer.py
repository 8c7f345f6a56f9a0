"""From token ids to text: whole characters only, the marks of a turn out, stop strings found and kept.

Special tokens that are part of a model's text, such as `<think>` in many vocabularies, stay. Only the tokens that
begin, end and pad a turn are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from thinktune.tags import TAGS

_MARKS = ("bos", "eos", "pad", "unk", "sep", "cls")
_BROKEN = "\ufffd"  # written by a decoder for bytes that are not (yet) a character


def turn_marks(tokenizer: Any) -> frozenset[int]:
    """Return the ids of tokens that a tokenizer names as beginning, ending or padding a text; never a tag of the
    format."""
    marks = (getattr(tokenizer, f"{name}_token", None) for name in _MARKS)
    return frozenset(tokenizer.convert_tokens_to_ids(mark) for mark in marks if mark is not None and mark not in TAGS)


class Detokenizer:
    """Decodes the continuations of one model."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._vocabulary = vocabulary
        self._left_out = stop_ids | turn_marks(tokenizer)
        self._decode_batch = _batch_decoder(tokenizer)
        self.closers = lru_cache(maxsize=64)(self._closers)

    def decode(self, ids: Sequence[int]) -> str:
        said = [token for token in ids if token not in self._left_out]
        text: str = self._tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def final_text(self, ids: Sequence[int], stops: tuple[str, ...]) -> str:
        """Decode a finished continuation: cut right after the first stop string, half a character left off."""
        return _cut(self.decode(self._without_end(ids)), stops)

    def final_texts(self, rows: Sequence[tuple[Sequence[int], tuple[str, ...]]]) -> list[str]:
        """Decode finished continuations, given with their stop strings, as `final_text` does; by many threads if the
        tokenizer can."""
        if self._decode_batch is None:
            return [self.final_text(ids, stops) for ids, stops in rows]
        said = [[token for token in self._without_end(ids) if token not in self._left_out] for ids, _ in rows]
        texts = self._decode_batch(said, skip_special_tokens=False)
        return [_cut(text, stops) for text, (_, stops) in zip(texts, rows, strict=True)]

    def has_stop(self, ids: Sequence[int], stops: tuple[str, ...]) -> bool:
        """Return whether the last token completes a stop string. Decodes only the tokens that can be part of it."""
        # Every token holds at least a byte, so a stop string spans no more tokens than it has bytes.
        tail = self.decode(ids[-max(len(stop.encode()) for stop in stops) - 4 :])
        return any(stop and stop in tail for stop in stops)

    def _without_end(self, ids: Sequence[int]) -> Sequence[int]:
        return ids[:-1] if ids and ids[-1] in self._stop_ids else ids

    def _closers(self, stops: tuple[str, ...]) -> frozenset[int] | None:
        """Return the ids of the tokens that can complete a stop string, or None if any might.

        Most tokens lack the string's last character, so that a look into this set spares decoding at every step.
        Printable ASCII stands for itself in the pieces of every kind of tokenizer; other characters may not.
        """
        lasts = {stop[-1] for stop in stops if stop}
        if not lasts:
            return frozenset()
        if not all("!" <= last <= "~" for last in lasts):
            return None
        pieces = self._tokenizer.convert_ids_to_tokens(range(min(self._vocabulary, len(self._tokenizer))))
        return frozenset(
            index
            for index, piece in enumerate(pieces)
            if piece is not None and (piece.startswith("<0x") or any(last in piece for last in lasts))
        )


def _cut(text: str, stops: tuple[str, ...]) -> str:
    ends = [text.find(stop) + len(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text.rstrip(_BROKEN)


def _batch_decoder(tokenizer: Any) -> Callable[..., list[str]] | None:
    """Return the decoder of many sequences at once that a tokenizer's `decode` is made of; None: it has its own."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or any(
        getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name) for name in ("decode", "_decode")
    ):
        return None
    decoder: Callable[..., list[str]] = tokenizer.backend_tokenizer.decode_batch
    return decoder


class TextStream:
    """Text as its tokens arrive; holds back a character whose bytes are not all there."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._ids: list[int] = []
        self._start = 0  # decoding starts at the piece before the new one, for tokenizers that drop a leading space
        self._read = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        before = self._detokenizer.decode(self._ids[self._start : self._read])
        text = self._detokenizer.decode(self._ids[self._start :])
        if len(text) <= len(before) or text.endswith(_BROKEN):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]
