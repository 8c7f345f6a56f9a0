"""The models of the studio: each base model once in memory, the adapters of runs switched on it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune.errors import ThinktuneError, UsageError
from thinktune.imports import importing
from thinktune.inference.engines import EngineSettings, Opened
from thinktune.inference.engines.found_model import find_model
from thinktune.inference.engines.open_engine import open_endpoint
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.models.adapters import changes_base
from thinktune.models.endpoints import is_endpoint
from thinktune.models.folder import SETTINGS_FILE, adapter_sha256, is_adapter, is_whole

if TYPE_CHECKING:
    from thinktune.inference.engines.shared_engine import SharedModel
    from thinktune.models import Chat

_CLOSING_SECONDS = 1.0  # that the end of the server waits for a model that is being loaded


@dataclass(frozen=True)
class ModelHandle:
    """One model of the studio, ready to be asked."""

    reference: str
    chat: Chat
    tuned: bool
    fingerprint: str
    format_settings: Mapping[str, Any]
    shared: SharedModel
    adapter: str | None

    def open(self, handle: RequestHandle) -> Opened:
        """Open the model for one caller."""
        engine = self.shared.engine(self.adapter, handle)
        return Opened(engine, self.chat, self.fingerprint, self.tuned, self.format_settings)


class Pool:
    """Loads models when they are first asked for, and lists those on offer.

    Args:
        references: those that the studio was started with.
        runs: the folder of run folders; those with an adapter are offered too.
        settings: `load` and `quantize` of every model.
    """

    def __init__(self, references: Sequence[str], runs: Path, settings: EngineSettings | None = None) -> None:
        self._references = tuple(dict.fromkeys(references))
        self._runs = runs
        self._settings = settings or EngineSettings()
        self._lock = threading.Lock()
        self._shared: dict[tuple[str, str | None], SharedModel] = {}
        self._model_handles: dict[tuple[str, str], ModelHandle] = {}
        self._adapters = 0
        self._closed = threading.Event()
        self.loading: str | None = None
        """The model that is being loaded now."""

    def names(self) -> list[str]:
        """List every model that may be asked: those given, then the runs that are trained, newest first, then the base
        models of these."""
        tuned = self.tuned()
        return list(dict.fromkeys([*self._references, *tuned, *filter(None, map(base_of, tuned))]))

    def tuned(self) -> list[str]:
        """List the runs that have an adapter, or a model trained as a whole, newest first."""
        places = [
            place for at in ("*", "*/*") for kind in ("adapter", "merged") for place in self._runs.glob(f"{at}/{kind}")
        ]
        found = [place for place in places if is_adapter(place) or (place.name == "merged" and is_whole(place))]
        return [str(place.parent) for place in sorted(found, key=lambda place: -place.stat().st_mtime)]

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Hold up the loading of models: two threads that import transformers at once fail."""
        with self._lock:
            yield

    def choices(self) -> list[tuple[str, str]]:
        """Return the name that people see and the reference of each model: a run has that of its folder."""
        return [(self.shown(name), name) for name in self.names()]

    def shown(self, reference: str) -> str:
        path = Path(reference)
        return str(path.relative_to(self._runs)) if path.is_relative_to(self._runs) else reference

    def pair(self) -> tuple[str, str]:
        """Return the models that a page begins with: the newest run and its base, or the first model and ""."""
        newest = next(iter(self.tuned()), None)
        return (newest, base_of(newest) or "") if newest else (self.names()[0], "")

    def open(self, reference: str, handle: RequestHandle) -> Opened:
        """Open a model for one caller: one in memory (see `take`), or one behind a server.

        Raises:
            UsageError, ThinktuneError: see `take`.
        """
        if is_endpoint(reference) and reference in self.names():
            return open_endpoint(reference, self._settings, handle=handle)
        return self.take(reference).open(handle)

    def take(self, reference: str) -> ModelHandle:
        """Return a model, loaded now if it is not in memory. One call loads, others wait for it.

        Raises:
            UsageError: the studio does not offer this model, or has been closed.
            ThinktuneError: errors of loading it.
        """
        if reference not in self.names():
            raise UsageError(f"the studio has no model {reference!r}", hint=f"there are {', '.join(self.names())}")
        with self._lock:
            if self._closed.is_set():
                raise UsageError("the studio has been closed")
            self.loading = reference
            try:
                return self._take(reference)
            finally:
                self.loading = None
                if self._closed.is_set():
                    self._let_go()

    def close(self) -> None:
        """Release every model; one that is being loaded, which nothing interrupts, as soon as it is loaded."""
        self._closed.set()
        if self._lock.acquire(timeout=_CLOSING_SECONDS):
            try:
                self._let_go()
            finally:
                self._lock.release()

    def _let_go(self) -> None:
        for shared in self._shared.values():
            shared.close()
        self._shared.clear()
        self._model_handles.clear()

    def _take(self, reference: str) -> ModelHandle:
        from thinktune.models import resolve

        resolved = resolve(reference, self._settings.load, prefer_merged=False)
        version = adapter_sha256(resolved.adapter) if resolved.adapter else ""
        if resolved.settings.get("whole"):
            version = str((resolved.folder / SETTINGS_FILE).stat().st_mtime_ns)
        model_handle = self._model_handles.get((reference, version))  # a run that was trained anew is another model
        if model_handle is not None and not model_handle.shared.failed:
            return model_handle
        # Adapters upon adapters, and those that change their base, are rare: such models are merged, each by itself.
        alone = len(resolved.adapters) != 1 or changes_base(resolved.adapters[0])
        switched = None if alone else resolved.adapter
        base = resolved.base if switched else reference
        place = str(resolved.folder if switched or not resolved.adapters else reference)
        key = (f"{place} {version}" if resolved.settings.get("whole") else place, resolved.gguf)
        shared = self._shared.get(key)
        if shared is None or shared.failed:
            shared = self._shared[key] = self._load_shared(base)
        name = None
        if switched:
            self._adapters += 1
            name = f"adapter{self._adapters}"
            shared.add_adapter(name, switched)
        found = find_model(reference, self._settings)
        fingerprint = f"{found.fingerprint}{' unmerged' if switched else ''}"
        model_handle = ModelHandle(reference, found.chat, found.tuned, fingerprint, found.format_settings, shared, name)
        self._model_handles[reference, version] = model_handle
        return model_handle

    def _load_shared(self, base: str) -> SharedModel:
        with importing():  # when the page is there already: they bring torch with them
            from thinktune.inference.engines.hf.fidelity import faithful_engine
            from thinktune.inference.engines.shared_engine import SharedModel
            from thinktune.models import load_model

        loaded = load_model(base, load=self._settings.load, quantize=self._settings.quantize)
        return SharedModel(faithful_engine(loaded, find_model(base, self._settings).fingerprint))


def base_of(run: str) -> str | None:
    """Return the reference of the model that a run was trained on, as its adapter has it written down, or its model."""
    folder = Path(run) / "adapter"
    folder = folder if folder.is_dir() else Path(run) / "merged"
    try:
        base = json.loads((folder / "thinktune.json").read_text(encoding="utf-8")).get("base_model")
    except (OSError, ValueError, AttributeError):
        return None
    return base if isinstance(base, str) and base else None


def reason(error: ThinktuneError) -> str:
    """Put an error in words for a page: the fault, and the remedy."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
