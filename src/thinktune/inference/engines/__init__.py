"""Engines turn token ids into completions. `open_engine` is the one way in from a model reference."""

from thinktune.inference.engines.base import Completion, Engine, Request
from thinktune.inference.engines.open_engine import Opened, open_engine
from thinktune.inference.engines.settings import EngineSettings

__all__ = ["Completion", "Engine", "EngineSettings", "Opened", "Request", "open_engine"]
