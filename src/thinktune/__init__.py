"""Teach a chat model to think before it answers. Importing this imports nothing heavy."""

from typing import TYPE_CHECKING, Any

from thinktune import network
from thinktune.config import Config, load_config
from thinktune.errors import ThinktuneError
from thinktune.tags import Parsed, parse, render
from thinktune.version import __version__ as __version__

if TYPE_CHECKING:
    from thinktune.inference.python_api import Infer

network.switch_off_telemetry()  # before any library reads the environment

__all__ = ["Config", "Infer", "Parsed", "ThinktuneError", "load_config", "parse", "render"]


def __getattr__(name: str) -> Any:
    if name == "Infer":  # when it is first asked for: it brings the engines with it
        from thinktune.inference.python_api import Infer

        return Infer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
