"""llama.cpp as a reader of GGUF files, in a process of its own: it aborts where a file is not as it expects."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from thinktune.errors import MissingExtra, ModelError


def read_by_llama_cpp(
    file: Path, texts: Sequence[str], prompts: Sequence[list[int]], tokens: int
) -> tuple[list[int], list[list[int]]]:
    """Return the number of tokens of each text, and so many greedy tokens after each prompt.

    Raises:
        MissingExtra: llama.cpp is not installed.
        ModelError: it does not read the file.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        hint = "pip install xllamacpp"
        raise MissingExtra("a GGUF file of this model type is read back by llama.cpp only", hint=hint)
    with TemporaryDirectory(prefix="thinktune-gguf-") as folder:
        said = Path(folder) / "said"
        with ProcessPoolExecutor(1, get_context("spawn"), _write_to, (said,)) as process:
            try:
                return process.submit(_read, file, texts, prompts, tokens).result()
            except (BrokenProcessPool, RuntimeError) as error:
                words = said.read_text(errors="replace").split("\n") if said.exists() else []
                last = next((line.strip() for line in words if "ASSERT" in line or " E " in line), str(error))
                raise ModelError(f"llama.cpp does not read the file: {last}") from None


def _write_to(file: Path) -> None:
    """Send all that llama.cpp says to a file: a line for each of its steps."""
    log = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _read(
    file: Path, texts: Sequence[str], prompts: Sequence[list[int]], tokens: int
) -> tuple[list[int], list[list[int]]]:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx = max(map(len, prompts)) + 2 * tokens
    settings.n_parallel, settings.warmup = 1, False
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)

    def ask(prompt: str | list[int], count: int) -> Any:
        request = {"prompt": prompt, "temperature": 0, "n_predict": count, "cache_prompt": False}
        return server.handle_completions({**request, "verbose": True, "return_tokens": True})

    counts = [ask(text, 1)["usage"]["prompt_tokens"] for text in texts]
    return counts, [ask(prompt, tokens)["__verbose"]["tokens"] for prompt in prompts]
