"""Import Gradio, with the settings that have to be made before."""

from __future__ import annotations

import functools
import inspect
import os
import ssl
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
    _import_for_a_page()


def _import_for_a_page() -> None:
    """Import Gradio without what serves its developers.

    As if its components had no source files, since it writes the type stubs of each into its own folder at every
    import, which takes nearly half of it; and without the documentation of two hundred events, each of which is a
    template that is compiled.
    """
    import jinja2

    file_of, template = inspect.getfile, jinja2.Template

    def no_file_of_gradio(thing: Any) -> str:
        if isinstance(thing, type) and thing.__module__.startswith("gradio."):
            raise OSError("no source file")
        return file_of(thing)

    inspect.getfile = no_file_of_gradio  # type: ignore[assignment]
    jinja2.Template = _Unrendered  # type: ignore[assignment, misc]
    try:
        with one_tls_context():
            import gradio  # noqa: F401
    finally:
        inspect.getfile, jinja2.Template = file_of, template  # type: ignore[misc]


class _Unrendered:
    """A template that stays as it is written."""

    def __init__(self, text: str) -> None:
        self._text = text

    def render(self, **_: object) -> str:
        return self._text


@contextmanager
def one_tls_context() -> Iterator[None]:
    """Let the clients that are made within the block share what they know of certificates: each reads all of them, and
    Gradio makes four, which talk to this server only."""
    make = ssl.create_default_context
    ssl.create_default_context = functools.cache(make)  # type: ignore[assignment]
    try:
        yield
    finally:
        ssl.create_default_context = make


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
