"""The model that a reference names, found and described, but not loaded: the input of every engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune import tags
from thinktune.config import Load
from thinktune.errors import ModelError
from thinktune.inference.engines.settings import EngineSettings
from thinktune.notices import muted

if TYPE_CHECKING:
    import torch

    from thinktune.models import Chat, Resolved

_BLOCK = 4096  # bytes
_BLOCKS = 64  # of each weight file: training changes nearly every weight, so that a sample of them tells


@dataclass(frozen=True)
class FoundModel:
    """
    Attributes:
        reference: as the person named it.
        adapters: folders of further adapters of the same base, by the name that requests use.
        settings: how it is to be run.
    """

    reference: str | Path
    resolved: Resolved
    device: torch.device
    dtype: torch.dtype
    adapters: Mapping[str, Path]
    settings: EngineSettings

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers, read when it is first asked for. Raises as `models.load_model` does."""
        from thinktune.models.tokenizer import read_tokenizer

        return read_tokenizer(self.resolved, self.settings.load)

    @cached_property
    def chat(self) -> Chat:
        """The chat of that tokenizer."""
        from thinktune.models import make_chat

        return make_chat(self.tokenizer, self.resolved.settings)

    @property
    def tuned(self) -> bool:
        """Whether it was trained to write the format by itself."""
        return bool(self.resolved.adapters or self.resolved.settings)

    @property
    def format_settings(self) -> dict[str, Any]:
        """The `format` section it was trained with, empty where unknown."""
        return self.resolved.settings.get("format") or {}

    @cached_property
    def computation(self) -> str:
        """A fingerprint of weights, number format and quantisation."""
        return f"{_fingerprint(self.resolved)} {self.dtype} {self.settings.quantize}"

    @property
    def fingerprint(self) -> str:
        """`computation`, and how its text is read: part of every key of a journal."""
        return f"{self.computation}{_reading(self.tokenizer)}"


def find_model(
    reference: str | Path,
    settings: EngineSettings,
    adapters: Mapping[str, str | Path] | None = None,
    hardware: tuple[torch.device, torch.dtype] | None = None,
) -> FoundModel:
    """Find the model that a reference names; download its missing files, but load no weights.

    Args:
        adapters: further adapters of the same base, by name.
        hardware: device and dtype it is to run with; None: those of this machine.

    Raises:
        ModelError, DownloadError, DeviceError: see `models.load_model`.
    """
    from thinktune.models import resolve
    from thinktune.models.device import choose_device, choose_dtype

    load = settings.load
    resolved = resolve(reference, load, prefer_merged=settings.merge and settings.quantize == "none")
    if hardware is None:
        device = choose_device(load.device)
        hardware = device, choose_dtype(device, load.dtype)
    return FoundModel(
        reference=reference,
        resolved=resolved,
        device=hardware[0],
        dtype=hardware[1],
        adapters={name: _adapter_beside(adapter, resolved, load) for name, adapter in (adapters or {}).items()},
        settings=settings,
    )


def _adapter_beside(reference: str | Path, base: Resolved, load: Load) -> Path:
    """Find the folder of an adapter that goes beside others on a base.

    Raises:
        ModelError: it is none, or one of another base.
    """
    from thinktune.models import resolve

    with muted():
        resolved = resolve(reference, load, prefer_merged=False)
    if len(resolved.adapters) != 1:
        raise ModelError(f"{reference} is not an adapter on a base model", hint=resolved.adapter_hint)
    if resolved.folder.resolve() != base.folder.resolve():
        raise ModelError(
            f"the adapter {reference} was trained on {resolved.base}, not on {base.base}",
            hint="adapters in one engine share their base; give that as the model",
        )
    return resolved.adapters[0]


def _reading(tokenizer: Any) -> str:
    """Mark models whose tags are special tokens: journals of earlier versions hold their completions without tags."""
    return " with tags" if set(tags.TAGS) & set(tokenizer.all_special_tokens) else ""


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
