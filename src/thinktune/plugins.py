"""A user's own functions, named in a setting as `module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from thinktune.errors import ConfigError


def load_function(reference: str, setting: str) -> Callable[..., Any]:
    """Import a function, from the current folder or an installed package.

    Args:
        reference: `module:function`.
        setting: the setting that names it, for the error.

    Raises:
        ConfigError: there is no such function.
    """
    module, _, name = reference.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed command does not look into the current folder by itself
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{setting}: cannot import {reference!r}: {error}",
            hint="write module:function, with the module in the current folder or installed",
        ) from None
    if not callable(function):
        raise ConfigError(f"{setting}: {reference!r} is not a function")
    loaded: Callable[..., Any] = function
    return loaded
