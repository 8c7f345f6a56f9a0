"""The engines by name: how each is opened, and its limits. A new one is an entry here.

`module:function` names an engine of the user's own: a function that takes a `FoundModel` and returns an `Engine`, or an
`Engine` class whose objects are made so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from thinktune.errors import UsageError
from thinktune.inference.engines.base import Engine
from thinktune.inference.engines.found_model import FoundModel
from thinktune.inference.engines.hf.opening import open_transformers, why_not_transformers
from thinktune.inference.engines.settings import EngineSettings
from thinktune.inference.engines.vllm.engine import VLLM_CANNOT
from thinktune.inference.engines.vllm.opening import VllmStart, why_not_vllm
from thinktune.inference.engines.vllm.process import has_vllm, vllm_python
from thinktune.plugins import load_function


class Start(Protocol):
    """The start of an engine, begun early."""

    def open(self) -> Engine:
        """Load the model into the engine."""

    def cancel(self) -> None:
        """End what was begun, if no engine has it."""


@dataclass(frozen=True)
class EngineEntry:
    """
    Attributes:
        open: loads the model into the engine.
        title: its name in a sentence.
        why_not: the reason it cannot run a model, or None.
        unsupported: see `Engine`.
        require_installed: raises where the engine is not there.
        by_default: whether "auto" prefers it for a model.
        context_setting: see `Engine`.
        begin: begins, before the tokenizer is read, what an engine needs long for; None: nothing.
    """

    open: Callable[[FoundModel], Engine]
    title: str
    why_not: Callable[[FoundModel], str | None] = lambda model: None
    unsupported: frozenset[str] = Engine.unsupported
    require_installed: Callable[[], object] = lambda: None
    by_default: Callable[[FoundModel], bool] = lambda model: True
    context_setting: Callable[[EngineSettings], int | None] = lambda settings: None
    begin: Callable[[FoundModel], Start] | None = None


ENGINES = {
    "vllm": EngineEntry(
        lambda model: VllmStart(model).open(),
        "vLLM",
        why_not_vllm,
        VLLM_CANNOT,
        require_installed=vllm_python,
        by_default=lambda model: model.device.type == "cuda" and has_vllm(),
        context_setting=lambda settings: settings.vllm.max_model_len,
        begin=VllmStart,
    ),
    "transformers": EngineEntry(open_transformers, "the transformers engine", why_not_transformers),
}
"""In the order in which "auto" tries them."""


def find_engine(name: str) -> EngineEntry:
    """Look an engine up.

    Raises:
        UsageError, ConfigError: there is none of that name, or no such function.
    """
    if name in ENGINES:
        return ENGINES[name]
    if ":" not in name:
        raise UsageError(f"no engine {name!r}", hint=f"there are auto, {', '.join(ENGINES)}, and module:function")
    function = load_function(name, "infer.engine")
    return EngineEntry(function, name, unsupported=getattr(function, "unsupported", Engine.unsupported))


def require_engine(name: str) -> None:
    """Make sure, before anything is downloaded, that an engine is there.

    Raises:
        UsageError, ConfigError, MissingExtra: it is not.
    """
    if name != "auto":
        find_engine(name).require_installed()


def choose_engines(model: FoundModel) -> list[EngineEntry]:
    """Choose the engine that was asked for; for "auto" all that are here and can run the model, the best first.

    Raises:
        UsageError: the engine that was asked for, or the last one for "auto", cannot run this model.
    """
    asked = model.settings.engine
    able = [each for each in ENGINES.values() if each.by_default(model) and not each.why_not(model)]
    if asked == "auto" and able:
        return able
    entry = find_engine("transformers" if asked == "auto" else asked)
    if problem := entry.why_not(model):
        others = " or ".join(name for name, each in ENGINES.items() if not each.why_not(model))
        hint = others and f"use --engine {others}"
        raise UsageError(f"{entry.title} cannot run {model.reference}: {problem}", hint)
    return [entry]
