"""Teach a chat model to think before it answers. Importing this imports nothing heavy."""

from thinktune.config import Config, load_config
from thinktune.errors import ThinktuneError
from thinktune.tags import Parsed, parse, render

__version__ = "0.1.0"
__all__ = ["Config", "Parsed", "ThinktuneError", "load_config", "parse", "render"]
