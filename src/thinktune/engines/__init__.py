"""Engines turn token ids into completions. `open_engine` is the one way in from a model reference."""

from thinktune.engines.base import Completion, Engine, Request
from thinktune.engines.opening import Opened, open_engine

__all__ = ["Completion", "Engine", "Opened", "Request", "open_engine"]
