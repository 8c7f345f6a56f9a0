"""Open the model that a reference names: find it, and choose its engine (`registry`).

The model itself is loaded when the first completion is asked for: a call whose journal is complete ends at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune import tags
from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.endpoint.opening import endpoint_engine, endpoint_fingerprint
from thinktune.inference.engines.fleet.opening import choose_crew, fleet_candidates, hardware_of
from thinktune.inference.engines.found_model import FoundModel, find_model
from thinktune.inference.engines.lazy import Candidate, EngineOnDemand
from thinktune.inference.engines.registry import choose_engines, require_engine
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.engines.settings import EngineSettings
from thinktune.inference.engines.think_budget import ThinkBudgetEngine
from thinktune.models.endpoints import is_endpoint

if TYPE_CHECKING:
    from thinktune.models import Chat


@dataclass
class Opened:
    """A model ready to be asked, until the end of its `with`.

    Attributes:
        engine: given without think budgets, which are added here and nowhere else; a fleet's workers have them.
        fingerprint: differs where the model's weights, its number format or its quantisation do.
        tuned: whether it was trained to write the format by itself.
        format_settings: the `format` section it was trained with, empty where unknown.
        settings: those it was opened with.
    """

    engine: Engine
    chat: Chat
    fingerprint: str
    tuned: bool = False
    format_settings: Mapping[str, Any] = field(default_factory=dict)
    settings: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        template = str(self.format_settings.get("template", tags.TEMPLATE))
        if "think_budget" in self.engine.unsupported:
            self.engine = ThinkBudgetEngine(self.engine, self.chat, template)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.close()


def open_engine(
    reference: str | Path,
    settings: EngineSettings | None = None,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    start: Callable[[], Engine] | None = None,
) -> Opened:
    """Find the model that a reference names, and an engine that will run it, or the server that has it.

    Args:
        adapters: more adapters of the same base by name, for requests that name one; only vLLM has them.
        start: gives the engine, where that model is in memory already; None: it is loaded.

    Raises:
        UsageError: the engine cannot run this model, or there are not as many GPUs as workers.
        MissingExtra: the engine is not installed, or Ray is not.
        ModelError, DownloadError, DeviceError: see `models.load_model`.
    """
    settings = settings or EngineSettings()
    if is_endpoint(reference):
        return open_endpoint(str(reference), settings, adapters)
    if settings.is_fleet and start is None:
        return _open_fleet(reference, settings, adapters)
    require_engine(settings.engine)
    model = find_model(reference, settings, adapters)
    candidates = [Candidate(start)] if start else list(_candidates(model))
    try:
        return _opened(model, EngineOnDemand(*candidates))
    except BaseException:
        candidates[0].cancel()
        raise


def open_endpoint(
    reference: str,
    settings: EngineSettings,
    adapters: Mapping[str, str | Path] | None = None,
    handle: RequestHandle | None = None,
) -> Opened:
    """Open the model behind a server. Nothing is sent before the first request.

    Args:
        handle: by which the one caller of its engine may stop it.

    Raises:
        UsageError, MissingExtra: see `endpoint_engine`.
    """
    engine, chat = endpoint_engine(reference, settings, beside=adapters, handle=handle)
    return Opened(engine, chat, endpoint_fingerprint(reference), settings=settings)


def _open_fleet(reference: str | Path, settings: EngineSettings, adapters: Mapping[str, str | Path] | None) -> Opened:
    if settings.cluster is None:  # the machines of a cluster have engines of their own
        require_engine(settings.engine)
    crew = choose_crew(settings)
    model = find_model(reference, settings, adapters, hardware_of(crew, settings.load))
    return _opened(model, EngineOnDemand(*fleet_candidates(model, crew)))


def _candidates(model: FoundModel) -> Iterator[Candidate]:
    """Yield the engines that may run a model; the first, which most likely will, begins with its start."""
    for place, entry in enumerate(choose_engines(model)):
        begun = entry.begin(model) if entry.begin and place == 0 else None
        yield Candidate(
            begun.open if begun else partial(entry.open, model),
            entry.unsupported,
            entry.context_setting(model.settings),
            begun.cancel if begun else lambda: None,
        )


def _opened(model: FoundModel, engine: Engine) -> Opened:
    return Opened(
        engine,
        chat=model.chat,
        fingerprint=model.fingerprint,
        tuned=model.tuned,
        format_settings=model.format_settings,
        settings=model.settings,
    )
