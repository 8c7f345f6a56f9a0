"""Open the model that a reference names: find it, and choose its engine (`registry`).

The model itself is loaded when the first completion is asked for: a call whose journal is complete ends at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinktune import tags
from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.found_model import find_model
from thinktune.inference.engines.lazy import Candidate, EngineOnDemand
from thinktune.inference.engines.registry import choose_engines, require_engine
from thinktune.inference.engines.settings import EngineSettings
from thinktune.inference.engines.think_budget import ThinkBudgetEngine

if TYPE_CHECKING:
    from thinktune.models import Chat


@dataclass
class Opened:
    """A model ready to be asked, until the end of its `with`.

    Attributes:
        engine: given without think budgets, which are added here and nowhere else.
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
    """Find the model that a reference names, and an engine that will run it.

    Args:
        adapters: more adapters of the same base by name, for requests that name one; only vLLM has them.
        start: gives the engine, where that model is in memory already; None: it is loaded.

    Raises:
        UsageError: the engine cannot run this model.
        MissingExtra: the engine is not installed.
        ModelError, DownloadError, DeviceError: see `models.load_model`.
    """
    settings = settings or EngineSettings()
    require_engine(settings.engine)
    model = find_model(reference, settings, adapters)
    candidates = (
        [Candidate(start)]
        if start
        else [
            Candidate(partial(each.open, model), each.unsupported, each.context_setting(settings))
            for each in choose_engines(model)
        ]
    )
    return Opened(
        engine=EngineOnDemand(*candidates),
        chat=model.chat,
        fingerprint=model.fingerprint,
        tuned=model.tuned,
        format_settings=model.format_settings,
        settings=settings,
    )
