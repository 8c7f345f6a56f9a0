"""The tokenizer of a model, with a pad token that does not spoil training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thinktune import tags
from thinktune.config import Load
from thinktune.errors import MissingExtra, ModelError
from thinktune.imports import importing
from thinktune.models.chat import Chat
from thinktune.models.folder import TOKENIZER_FILES, read_json
from thinktune.models.foreign import ALLOW, check_foreign_code, needs_own_code
from thinktune.models.references import Resolved

logger = logging.getLogger(__name__)


def read_tokenizer(resolved: Resolved, load: Load) -> Any:
    """Load the tokenizer of a resolved reference: the adapter's own if it has one, else the base's.

    Its pad token is never the one that ends a turn, where the vocabulary allows it. No token is added, and no
    embedding resized.

    Raises:
        ModelError: no tokenizer, a broken one, one without a chat template, one that writes tokens which the model has
            no embeddings for, or a model that names programs to run (see `foreign`).
    """
    folder, _ = tokenizer_folder(resolved)
    check_foreign_code(list(dict.fromkeys([resolved.folder, *resolved.adapters, folder])), load)
    tokenizer = _read(resolved, load)
    chat = Chat(tokenizer)
    rows = _embeddings(resolved)
    set_pad_token(tokenizer, {chat.end_of_turn_id, tokenizer.eos_token_id}, rows)
    if rows is not None:
        _check_fits(chat, rows, folder, resolved)
    return tokenizer


def tokenizer_folder(resolved: Resolved) -> tuple[Path, str | None]:
    """Return the folder of a resolved reference's tokenizer (the outermost adapter that has one, else the base) and the
    name of the GGUF file that it is in, if any."""
    for adapter in reversed(resolved.adapters):
        if any((adapter / name).is_file() for name in TOKENIZER_FILES):
            return adapter, None
    return resolved.folder, resolved.gguf


def _embeddings(resolved: Resolved) -> int | None:
    """Return the vocabulary size in the base model's config; None for GGUF files, which have their own tokenizer."""
    if resolved.gguf:
        return None
    file = resolved.folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    text = config.get("text_config")
    rows = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return rows if isinstance(rows, int) else None


def _check_fits(chat: Chat, rows: int, folder: Path, resolved: Resolved) -> None:
    """Make sure that no text leads to a token which the model has no embedding for.

    A special token beyond them that no prompt and no reply can hold does no harm (Gemma 3 has one, for images).

    Raises:
        ModelError: one that can be reached, named.
    """
    tokenizer = chat.tokenizer
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    if not beyond:
        return
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    turns = [{"role": "user", "content": "a"}]
    written = {*chat.prompt_ids(turns), *chat.reply_ids(tags.TEMPLATE), tokenizer.pad_token_id}
    reached = {index: token for index, token in beyond.items() if index not in special or index in written}
    if not reached:
        return
    first = min(reached)
    raise ModelError(
        f"the tokenizer in {folder} is larger than the model: {len(reached)} of its tokens, the first "
        f"{reached[first]!r} ({first}), are beyond the {rows:,} embeddings of {resolved.folder}",
        hint="use the tokenizer that the model was made with; or resize the embeddings where tokens were added, and "
        "train them",
    )


def set_pad_token(tokenizer: Any, ends: set[int | None], rows: int | None = None) -> None:
    """Make sure that padding is not an end-of-turn token.

    Trainers mask padding out of the loss by its id. Where that is also the id that ends a turn, the model never
    learns to stop.

    Args:
        ends: ids that end a turn; None among them is ignored.
        rows: number of embeddings of the model, if known: padding needs one as well.
    """

    def is_fit(token: int | None) -> bool:
        return token is not None and token not in ends and (rows is None or token < rows)

    if is_fit(tokenizer.pad_token_id):
        return
    for token in _pad_candidates(tokenizer):
        if is_fit(tokenizer.convert_tokens_to_ids(token)):
            tokenizer.pad_token = token
            return
    if tokenizer.pad_token_id is None or (rows is not None and tokenizer.pad_token_id >= rows):
        tokenizer.pad_token = tokenizer.eos_token
    logger.warning(f"the vocabulary has no token for padding but {tokenizer.pad_token}, which also ends a turn")


def _pad_candidates(tokenizer: Any) -> Iterator[str]:
    added = [token for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    special = [token.content for token in added if token.content not in tags.TAGS]  # which are trained
    yield from (token for token in special if "pad" in token.lower())
    yield from (token for token in ("<|endoftext|>", "<|end_of_text|>", tokenizer.unk_token) if token in special)
    yield from (token for token in special if "reserved" in token.lower() or "unused" in token.lower())
    yield from (token for token in special if token not in tokenizer.chat_template)


def _read(resolved: Resolved, load: Load) -> Any:
    with importing():
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
    # The file formats are many, and each parser has errors of its own (the Rust ones a bare Exception).
    except Exception as error:
        if not load.trust_remote_code and needs_own_code(folder):
            raise ModelError(f"the tokenizer in {folder} needs code of its own", hint=ALLOW) from error
        raise ModelError(
            f"the tokenizer in {_name(folder, gguf)} cannot be read: {first_line(error)}",
            hint="the folder is broken or half downloaded: download or copy it again",
        ) from error


def require_gguf() -> None:
    """Raise MissingExtra if the package that reads GGUF files is absent."""
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingExtra("reading GGUF files needs the package gguf", hint="pip install 'thinktune[gguf]'")


def _name(folder: Path, gguf: str | None) -> Path:
    return folder / gguf if gguf else folder


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
