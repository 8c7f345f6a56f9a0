"""From a model reference to an engine: the one place that chooses which engine runs a model.

The model itself is loaded when the first completion is asked for: a call whose journal is complete ends at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from thinktune import tags
from thinktune.config import Load, Quantize
from thinktune.engines.base import Completion, Engine, Request
from thinktune.engines.budget import Budgeted
from thinktune.errors import UsageError

if TYPE_CHECKING:
    from thinktune.models import Chat, Resolved

EngineName = Literal["auto", "transformers", "vllm"]
_BLOCK = 4096  # bytes
_BLOCKS = 64  # of each weight file: training changes nearly every weight, so that a sample of them tells


@dataclass
class Opened:
    """A model ready to be asked.

    Attributes:
        fingerprint: differs where the model's weights, its number format or its quantisation do.
        tuned: whether it was trained to write the format by itself.
        format_settings: the `format` section it was trained with, empty where unknown.
        start: loads the model now, instead of at the first completion.
    """

    engine: Engine
    chat: Chat
    fingerprint: str
    tuned: bool
    format_settings: dict[str, object]
    start: Callable[[], object]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()


def open_engine(
    reference: str | Path,
    *,
    engine: EngineName = "auto",
    load: Load | None = None,
    quantize: Quantize = "none",
    batch_tokens: int | None = None,
    notify: Callable[[str], None] = lambda line: None,
    make: Callable[[], Engine] | None = None,
) -> Opened:
    """Find the model that a reference names, and an engine that will run it.

    Args:
        batch_tokens: tokens the engine holds at once; None chooses from free memory.
        notify: receives a line for the person now and then.
        make: gives the engine, where that model is in memory already; None loads it.

    Raises:
        UsageError: the engine is not available in this version.
        ModelError, DownloadError, MissingExtra, DeviceError: see `models.load_model`.
    """
    if engine == "vllm":
        raise UsageError(
            "the engine vllm is not available in this version of thinktune", hint="use --engine transformers"
        )
    from thinktune.models import load_model, make_chat, resolve
    from thinktune.models.device import choose_device, choose_dtype
    from thinktune.models.tokenizer import read_tokenizer

    load = load or Load()
    resolved = resolve(reference, load, notify, prefer_merged=quantize == "none")
    dtype = choose_dtype(choose_device(load.device), load.dtype)

    def start() -> Engine:
        from thinktune.engines.transformers import TransformersEngine

        loaded = load_model(reference, load=load, quantize=quantize, notify=notify)
        return TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids, max_batch_tokens=batch_tokens)

    chat = make_chat(read_tokenizer(resolved, load, notify), resolved.settings)
    on_demand = EngineOnDemand(make or start)
    format_settings = resolved.settings.get("format") or {}
    return Opened(
        engine=Budgeted(on_demand, chat, format_settings.get("template", tags.TEMPLATE)),
        chat=chat,
        fingerprint=f"{_fingerprint(resolved)} {dtype} {quantize}",
        tuned=bool(resolved.adapters or resolved.settings),
        format_settings=format_settings,
        start=on_demand.start,
    )


class EngineOnDemand(Engine):
    """Starts the real engine at its first use."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        self._make = make
        self._engine: Engine | None = None

    @property
    def context_length(self) -> int:  # type: ignore[override]
        return self.start().context_length

    def generate(self, requests: Iterable[Request]) -> Generator[Completion, None, None]:
        yield from self.start().generate(requests)

    def stream(self, request: Request) -> Iterator[str]:
        yield from self.start().stream(request)

    def logprobs(self, prompt_ids: Sequence[int], continuation_ids: Sequence[int]) -> list[float]:
        return self.start().logprobs(prompt_ids, continuation_ids)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None  # lets go of the model, so that the next one has its memory

    def start(self) -> Engine:
        """Load the model now."""
        if self._engine is None:
            self._engine = self._make()
        return self._engine


def _fingerprint(resolved: Resolved) -> str:
    from thinktune.models.folder import adapter_sha256, check_model_folder

    digest = hashlib.sha256()
    files = [resolved.folder / resolved.gguf] if resolved.gguf else check_model_folder(resolved.folder)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as stream:
            for index in range(_BLOCKS):
                stream.seek(index * size // _BLOCKS)
                digest.update(stream.read(_BLOCK))
    for adapter in resolved.adapters:
        digest.update(adapter_sha256(adapter).encode())
    return digest.hexdigest()[:32]
