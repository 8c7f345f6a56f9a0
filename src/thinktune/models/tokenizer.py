"""The tokenizer of a model, with a pad token that does not spoil training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thinktune.config import Load
from thinktune.errors import MissingExtra, ModelError
from thinktune.models.chat import Chat
from thinktune.models.folder import TOKENIZER_FILES
from thinktune.models.references import Resolved


def read_tokenizer(resolved: Resolved, load: Load, notify: Callable[[str], None]) -> Any:
    """The tokenizer that belongs to a resolved reference: the adapter's own where it has one, else the base's.

    Its pad token is never the one that ends a turn, where the vocabulary allows it. No token is added, and no
    embedding resized.

    Raises:
        ModelError: no tokenizer, a broken one, or one without a chat template.
    """
    tokenizer = _read(resolved, load)
    chat = Chat(tokenizer)
    set_pad_token(tokenizer, {chat.end_of_turn_id, tokenizer.eos_token_id}, notify)
    return tokenizer


def tokenizer_folder(resolved: Resolved) -> tuple[Path, str | None]:
    """Where the tokenizer of a resolved reference lies: the outermost adapter that has one, else the base; and the
    name of the GGUF file that it is in, if it is."""
    for adapter in reversed(resolved.adapters):
        if any((adapter / name).is_file() for name in TOKENIZER_FILES):
            return adapter, None
    return resolved.folder, resolved.gguf


def set_pad_token(tokenizer: Any, ends: set[int | None], notify: Callable[[str], None]) -> None:
    """Make sure that padding is not an end-of-turn token.

    Trainers mask padding out of the loss by its id. Where that is also the id that ends a turn, the model never
    learns to stop.

    Args:
        ends: ids that end a turn; None among them is ignored.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return
    for token in _pad_candidates(tokenizer):
        if tokenizer.convert_tokens_to_ids(token) not in ends:
            tokenizer.pad_token = token
            return
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    notify(f"the vocabulary has no token for padding but {tokenizer.pad_token}, which also ends a turn")


def _pad_candidates(tokenizer: Any) -> Iterator[str]:
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    yield from (token for token in special if "pad" in token.lower())
    yield from (token for token in ("<|endoftext|>", "<|end_of_text|>", tokenizer.unk_token) if token in special)
    yield from (token for token in special if "reserved" in token.lower() or "unused" in token.lower())
    yield from (token for token in special if token not in tokenizer.chat_template)


def _read(resolved: Resolved, load: Load) -> Any:
    from transformers import AutoTokenizer

    folder, gguf = tokenizer_folder(resolved)
    if gguf is None and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})",
            hint="copy the tokenizer files of the model it was made from into that folder",
        )
    extra = {"gguf_file": gguf} if gguf else {}
    if gguf:
        require_gguf()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=load.trust_remote_code, **extra
        )
        if not isinstance(tokenizer.model_max_length, int | float):
            raise ValueError(f"model_max_length is {tokenizer.model_max_length!r:.50}, not a number")
        return tokenizer
    # The file formats are many, and each parser raises what it likes (the Rust ones a bare Exception).
    except Exception as error:
        raise ModelError(
            f"the tokenizer in {_name(folder, gguf)} cannot be read: {first_line(error)}",
            hint="the folder is broken or half downloaded: download or copy it again",
        ) from error


def require_gguf() -> None:
    """Raises MissingExtra where the package that reads GGUF files is absent."""
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingExtra("reading GGUF files needs the package gguf", hint="pip install 'thinktune[gguf]'")


def _name(folder: Path, gguf: str | None) -> Path:
    return folder / gguf if gguf else folder


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
