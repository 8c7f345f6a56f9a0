"""Teach a chat model to think before it answers. Importing this imports nothing heavy."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from thinktune import network
from thinktune.errors import ThinktuneError
from thinktune.tags import Parsed, parse, render
from thinktune.version import __version__ as __version__

if TYPE_CHECKING:
    from thinktune.config import Config, load_config
    from thinktune.inference.python_api import Infer

network.switch_off_telemetry()  # before any library reads the environment

__all__ = ["Config", "Infer", "Parsed", "ThinktuneError", "load_config", "parse", "render"]

# Imported when they are first asked for: the config brings pydantic with it, which `--help` has no time for, and Infer
# brings the engines.
_LAZY = {
    "Config": "thinktune.config",
    "Infer": "thinktune.inference.python_api",
    "load_config": "thinktune.config",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value
