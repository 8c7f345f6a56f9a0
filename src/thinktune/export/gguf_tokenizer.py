"""Tokenizers as GGUF has them: byte-level BPE, and SentencePiece's BPE with bytes for what it does not know."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from thinktune.errors import ModelError
from thinktune.models.chat import Chat
from thinktune.tags import TAGS

# Patterns by which text is split before pieces are looked up (their ends), and llama.cpp's names for them.
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITTING = {
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL: "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}" + _TAIL.replace(r"\p{L}", r"\p{L}\p{M}"): "qwen35",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL: "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}" + _TAIL.replace("[\\r\\n]*", "[\\r\\n/]*"): "gpt-4o",
}

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def add_tokenizer(writer: Any, folder: Path, tokenizer: Any, chat: Chat, size: int) -> None:
    """Write a tokenizer and its chat template; `size`: rows of the embeddings, of which some may stand for no text.

    Raises:
        ModelError: a tokenizer of another kind than these two, or that splits text in a way that is not known.
    """
    import gguf

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise ModelError(f"the tokenizer of {folder} is {model['type']}; GGUF is known here for BPE")
    pieces = {index: piece for piece, index in model["vocab"].items()}
    kinds = dict.fromkeys(pieces, gguf.TokenType.NORMAL)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        kinds.update(
            {model["vocab"][f"<0x{byte:02X}>"]: gguf.TokenType.BYTE for byte in range(256)}
            | {model["vocab"][model["unk_token"]]: gguf.TokenType.UNKNOWN}
        )
    for added in described["added_tokens"]:
        pieces[added["id"]] = added["content"]
        # llama.cpp does not print control tokens: tags are text, though a vocabulary may call them special.
        control = added["special"] and added["content"] not in TAGS
        kinds[added["id"]] = gguf.TokenType.CONTROL if control else gguf.TokenType.USER_DEFINED
    # Embeddings are often padded to a round number of rows, which no text leads to.
    writer.add_token_list([pieces.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([kinds.get(index, gguf.TokenType.UNUSED) for index in range(size)])
    if model.get("byte_fallback"):
        scores = _scores(described, folder)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([scores.get(pieces.get(index, ""), -1e4) for index in range(size)])
        writer.add_add_space_prefix(False)
        writer.add_unk_token_id(model["vocab"][model["unk_token"]])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_splitting(described, folder))
        writer.add_token_merges(merges)
    writer.add_eos_token_id(chat.end_of_turn_id)
    writer.add_eot_token_id(chat.end_of_turn_id)
    for add, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add(index)
    # The beginning of a conversation is in its template, as it was trained: llama.cpp and Ollama would repeat it.
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat.told_template())


def _splitting(described: dict[str, Any], folder: Path) -> str:
    """Return llama.cpp's name for the tokenizer's way of splitting text."""
    step = described.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    patterns = [each["pattern"].get("Regex", "") for each in steps if each["type"] == "Split"]
    digits = [each["individual_digits"] for each in steps if each["type"] == "Digits"]
    found = [name for pattern, name in _SPLITTING.items() if len(patterns) == 1 and patterns[0].endswith(pattern)]
    if found:
        return found[0]
    if digits == [True] and not patterns:
        return "smollm"
    if not patterns and not digits:
        return "gpt-2"
    raise _unknown(folder)


def _scores(described: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the score of each piece.

    SentencePiece joins the neighbours that make the piece of the highest score; merges made from it stand in the order
    of these pieces, each with all pairs that make it.

    Raises:
        ModelError: merges in another order or without some pairs, by which llama.cpp would split text otherwise.
    """
    normalizer, merges = described.get("normalizer") or {}, described["model"]["merges"]
    split = described.get("pre_tokenizer") or {}
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    order = [piece for piece, _ in groupby(one + other for one, other in pairs)]
    vocabulary, apart = described["model"]["vocab"], {added["content"] for added in described["added_tokens"]}
    ways = sum(_ways(piece, vocabulary) for piece in vocabulary.keys() - apart if not _BYTE.fullmatch(piece))
    plain = (normalizer.get("type"), normalizer.get("pattern"), normalizer.get("content"))
    if (
        plain != ("Replace", {"String": " "}, "▁")
        or split.get("pattern", {"String": " "}) != {"String": " "}  # there are none left to split at
        or len(order) != len(set(order))
        or len(set(pairs)) != ways
    ):
        raise _unknown(folder)
    return {piece: -float(rank) for rank, piece in enumerate(order)}


def _ways(piece: str, vocabulary: dict[str, int]) -> int:
    return sum(piece[:at] in vocabulary and piece[at:] in vocabulary for at in range(1, len(piece)))


def _unknown(folder: Path) -> ModelError:
    return ModelError(f"the tokenizer of {folder} splits text in a way that is not known here for GGUF")
