"""Import Gradio, with the settings that have to be made before."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def prepare_gradio(files: Path) -> None:
    """Import Gradio with its telemetry and statistics off and its files in a folder, and fast."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(files)
    # By default it remembers 10,000 events, and goes through them all after each, for a page that is not served here.
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(sys.maxsize)
    _import_without_stubs()


def _import_without_stubs() -> None:
    """Import Gradio as if its components had no source files: it writes the type stubs of each into its own folder at
    every import, which takes nearly half of it."""
    file_of = inspect.getfile

    def no_file_of_gradio(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no source file")
        return file_of(thing)

    inspect.getfile = no_file_of_gradio  # type: ignore[assignment]
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = file_of


@contextmanager
def one_application() -> Iterator[None]:
    """Let Gradio make its web application when the page is served, and not twice before, while it is built: each has
    eighty routes, which FastAPI looks at one by one."""
    from gradio.routes import App

    make = App.create_app
    App.create_app = staticmethod(lambda *_, **__: None)  # type: ignore[assignment]
    try:
        yield
    finally:
        App.create_app = make  # type: ignore[method-assign]
