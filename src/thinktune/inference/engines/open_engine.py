"""Open the model that a reference names: find it, choose its engine (`registry`), and lay think budgets over it.

The model itself is loaded when the first completion is asked for: a call whose journal is complete ends at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune import tags
from thinktune.config import Load, Quantize, Sampling, Vllm
from thinktune.errors import ModelError, UsageError
from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.lazy import EngineOnDemand
from thinktune.inference.engines.registry import EngineName, choose_engine
from thinktune.inference.engines.think_budget import Budgeted
from thinktune.inference.engines.vllm.engine import OWN, VLLM_CANNOT, VllmEngine, VllmModel
from thinktune.inference.engines.vllm.process import vllm_python

if TYPE_CHECKING:
    import torch

    from thinktune.models import Chat, Resolved

_BLOCK = 4096  # bytes
_BLOCKS = 64  # of each weight file: training changes nearly every weight, so that a sample of them tells


@dataclass
class Opened:
    """A model ready to be asked, until the outermost `with` of it ends.

    Attributes:
        fingerprint: differs where the model's weights, its number format or its quantisation do.
        tuned: whether it was trained to write the format by itself.
        format_settings: the `format` section it was trained with, empty where unknown.
    """

    engine: Engine
    chat: Chat
    fingerprint: str
    tuned: bool
    format_settings: dict[str, object]
    _within: int = field(default=0, init=False)

    def __enter__(self) -> Opened:
        self._within += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self._within -= 1
        if not self._within:
            self.engine.close()


def open_engine(
    reference: str | Path,
    *,
    engine: EngineName = "auto",
    load: Load | None = None,
    quantize: Quantize = "none",
    merge: bool = True,
    vllm: Vllm | None = None,
    batch_tokens: int | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    samplings: Iterable[Sampling] = (),
    notify: Callable[[str], None] = lambda line: None,
    make: Callable[[], Engine] | None = None,
) -> Opened:
    """Find the model that a reference names, and an engine that will run it.

    Args:
        merge: False runs an adapter beside its base.
        vllm: settings of vLLM.
        batch_tokens: tokens the transformers engine holds at once; None chooses from free memory.
        adapters: more adapters of the same base by name, for requests that name one; only vLLM has them.
        samplings: what will be asked for, so that "auto" chooses an engine that can honour it.
        notify: receives a line for the person now and then.
        make: gives the engine, where that model is in memory already; None loads it.

    Raises:
        UsageError: the engine cannot run this model.
        MissingExtra: the engine is not installed.
        ModelError, DownloadError, DeviceError: see `models.load_model`.
    """
    from thinktune.models import load_model, make_chat, resolve
    from thinktune.models.device import choose_device, choose_dtype
    from thinktune.models.tokenizer import read_tokenizer

    if engine == "vllm":
        vllm_python()  # that it is missing is better told before anything is downloaded
    load, vllm_settings = load or Load(), vllm or Vllm()
    resolved = resolve(reference, load, notify, prefer_merged=merge and quantize == "none")
    device = choose_device(load.device)
    dtype = choose_dtype(device, load.dtype)
    tokenizer = read_tokenizer(resolved, load, notify)
    chat = make_chat(tokenizer, resolved.settings)
    beside = {name: adapter_beside(adapter, resolved, load) for name, adapter in (adapters or {}).items()}
    runs_on = (
        "transformers"
        if make
        else choose_engine(engine, reference, resolved, quantize, samplings, lacks_gpu=device.type != "cuda")
    )
    if beside and runs_on == "transformers":
        raise UsageError("the transformers engine runs one adapter at a time", hint="use --engine vllm")

    fingerprint = f"{_fingerprint(resolved)} {dtype} {quantize}"

    def start_transformers() -> Engine:
        from thinktune.inference.engines.hf.engine import TransformersEngine
        from thinktune.inference.engines.hf.fidelity import require_faithful

        loaded = load_model(reference, load=load, quantize=quantize, merge_adapter=merge, notify=notify)
        engine = TransformersEngine(loaded.model, loaded.tokenizer, loaded.chat.stop_ids, max_batch_tokens=batch_tokens)
        require_faithful(engine, loaded.tokenizer, fingerprint, notify)
        return engine

    def start_vllm() -> Engine:
        require_adapters_fit(resolved, beside, load)
        return VllmEngine(
            vllm_model(resolved, tokenizer, chat, device, dtype, beside),
            vllm_settings,
            notify=notify,
        )

    start = make or (start_transformers if runs_on == "transformers" else start_vllm)
    on_demand = (
        EngineOnDemand(start)
        if runs_on == "transformers"
        else EngineOnDemand(start, VLLM_CANNOT, vllm_settings.max_model_len)
    )
    format_settings = resolved.settings.get("format") or {}
    return Opened(
        engine=Budgeted(on_demand, chat, format_settings.get("template", tags.TEMPLATE)),
        chat=chat,
        fingerprint=f"{fingerprint}{_reading(tokenizer)}",
        tuned=bool(resolved.adapters or resolved.settings),
        format_settings=format_settings,
    )


def require_adapters_fit(resolved: Resolved, beside: Mapping[str, Path], load: Load) -> None:
    """Make sure, before vLLM takes them, that a model's own adapter and those `beside` it fit its base.

    Raises:
        ModelError: one does not: vLLM would leave out what finds no place.
    """
    from thinktune.models.adapters import require_fit

    for adapter in (*resolved.adapters, *beside.values()):
        require_fit(resolved, adapter, load)


def vllm_model(
    resolved: Resolved,
    tokenizer: Any,
    chat: Chat,
    device: torch.device,
    dtype: torch.dtype,
    beside: Mapping[str, Path] | None = None,
) -> VllmModel:
    """A resolved reference in vLLM's terms: the model's folder, and its adapter and those `beside` it unmerged."""
    from thinktune.models.folder import generation_ends
    from thinktune.models.tokenizer import tokenizer_folder

    adapters = {**({OWN: resolved.adapter} if resolved.adapter else {}), **(beside or {})}
    return VllmModel(
        folder=resolved.folder,
        tokenizer_folder=tokenizer_folder(resolved)[0],
        tokenizer=tokenizer,
        stop_ids=chat.stop_ids | generation_ends(resolved.folder),
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        adapters=adapters,
    )


def adapter_beside(reference: str | Path, base: Resolved, load: Load) -> Path:
    """The folder of an adapter that goes beside others on a base.

    Raises:
        ModelError: it is none, or one of another base.
    """
    from thinktune.models import resolve

    resolved = resolve(reference, load, lambda line: None, prefer_merged=False)
    if len(resolved.adapters) != 1:
        raise ModelError(f"{reference} is not an adapter on a base model", hint="name a run or an adapter folder")
    if resolved.folder.resolve() != base.folder.resolve():
        raise ModelError(
            f"the adapter {reference} was trained on {resolved.base}, not on {base.base}",
            hint="adapters in one engine share their base; give that as the model",
        )
    return resolved.adapters[0]


def _reading(tokenizer: Any) -> str:
    """Marks models whose tags are special tokens: journals of earlier versions hold their completions without tags."""
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
