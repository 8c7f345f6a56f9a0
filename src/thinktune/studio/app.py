"""`thinktune demo`: the page, served."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread, Timer
from typing import TYPE_CHECKING, Any

from thinktune.errors import MissingExtra, ThinktuneError, UsageError
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.studio.batch_jobs import MOST_BYTES
from thinktune.studio.following import ADDRESS
from thinktune.studio.gradio_setup import one_application, one_tls_context, prepare_gradio
from thinktune.studio.once import Once
from thinktune.studio.sign_in import Door

if TYPE_CHECKING:
    from thinktune.inference.engines import EngineSettings
    from thinktune.studio.state import Studio

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TUNNEL = ".gradio.live"
_PAGE_SECONDS = 3.0  # for the first page to come up in a browser, before the first model is loaded all the same
_GRACEFUL_SECONDS = 1  # for open connections to end; a page that is open holds one, and waits for ever
_END_SECONDS = 5.0  # for all of the end
MOST_SESSIONS = 100
"""Pages that the server remembers the state of, a quarter of a MiB each; those not heard of for longest go first."""
USER = "studio"
"""The name to sign in with, where a password is asked for."""


class Server:
    """A running studio.

    Attributes:
        url: address of the page; without a password, with the token that opens it.
        password: None if there is only the token.
        address: the page with the token, which opens it whether or not there is a password.
    """

    def __init__(
        self, demo: Any, url: str, password: str | None, close: Callable[[], None], *, token: str = ""
    ) -> None:
        self.address = f"{url.rstrip('/')}/?token={token}" if token else url
        self.url = url if password is not None else self.address
        self.password = password
        self._demo = demo
        self._close = close

    def wait(self) -> None:
        """Wait until Ctrl-C or SIGTERM; then close, and end the process: at once if something would hold it up."""
        ended = Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        try:
            ended.wait()
        except KeyboardInterrupt:
            pass
        finally:
            # Nothing interrupts a library that reads weights or computes, in threads that Python would wait for.
            limit = Timer(_END_SECONDS, os._exit, (0,))
            limit.daemon = True
            limit.start()
            self.close()

    def close(self) -> None:
        """Stop answering. Batch jobs go on with the next server, trainings go on now."""
        self._demo.server.config.timeout_graceful_shutdown = _GRACEFUL_SECONDS
        self._demo.close()
        self._close()


def serve(
    models: Sequence[str],
    *,
    runs: Path = Path("runs"),
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    password: str | None = None,
    data: Sequence[str] = (),
    settings: EngineSettings | None = None,
) -> Server:
    """Start the studio and return when its page can be opened; the first model is loaded after that.

    Args:
        models: references; runs with an adapter are offered besides.
        runs: the folder of run folders. The studio keeps its own files in its `studio/`.
        host: any host but this machine's own asks for a password, which is made up if none is given.
        port: None: the first free one from 7860 on.
        data: files and folders of data that trainings of the page may use, besides hubs' and built-in ones.
        share: let Gradio's relay publish the page, behind the password.
        settings: `load` and `quantize` of every model.

    Raises:
        MissingExtra: gradio is not installed.
        UsageError: the port is taken, or the page cannot be shared.
    """
    if find_spec("gradio") is None:
        raise MissingExtra("the studio needs gradio", hint="pip install 'thinktune[demo]'")
    from thinktune.studio.model_pool import Pool
    from thinktune.studio.state import Studio

    exposed = share or host not in _LOOPBACK
    pool = Pool(models or ["builtin:smollm2"], runs, settings)
    studio = Studio(pool, runs, may_train=not exposed, data=data)
    password = password or (secrets.token_urlsafe(9) if exposed else None)
    server = open_page(studio, host=host, port=port, share=share, password=password)
    Thread(target=_load_first, args=(studio,), daemon=True).start()
    return server


def open_page(
    studio: Studio,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
    password: str | None = None,
) -> Server:
    """Serve the page of a studio, and resume the jobs that an earlier server left. Arguments as for `serve`. Nothing is
    answered without the token of the address, or the password if there is one.

    Raises:
        UsageError: the port is taken, or the page cannot be shared.
    """
    files = Path(tempfile.mkdtemp(prefix="thinktune-studio-"))
    prepare_gradio(files)
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from thinktune.studio.page import build
    from thinktune.studio.translations import translations

    use_hurried_connections()
    door = Door(password)
    with one_application():
        demo, appearance = build(studio)
    try:
        with one_tls_context():
            _, url, public = demo.launch(
                server_name=host,
                server_port=port,
                share=share,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                ssr_mode=False,
                enable_monitoring=False,
                max_threads=100,
                max_file_size=MOST_BYTES,
                state_session_capacity=MOST_SESSIONS,
                footer_links=[],
                run_history=False,  # or browsers keep every call: ratings, and conversations that were ended
                i18n=translations(),
                app_kwargs={
                    "middleware": [_guard(host, share, files, door), Middleware(Once)],
                    "routes": [Route(ADDRESS, studio.following.answer)],
                    "openapi_url": None,
                },
                **appearance,
            )
    except OSError as error:
        shutil.rmtree(files, ignore_errors=True)
        raise UsageError(f"the studio cannot listen: {error}", hint="choose another --port") from None
    if share and not public:  # Gradio has said why, and would go on without
        demo.close(verbose=False)
        shutil.rmtree(files, ignore_errors=True)
        raise UsageError(
            "the page cannot be shared: Gradio's relay cannot be reached, or its program frpc is not there",
            hint="leave out --share, or let people in by --host",
        )
    door.port = demo.server_port
    studio.jobs.start()

    def close() -> None:
        studio.sessions.stop_all()
        shutil.rmtree(files, ignore_errors=True)
        studio.jobs.close()
        studio.pool.close()

    return Server(demo, public or url, password, close, token=door.token)


def use_hurried_connections() -> None:
    """Let the server that Gradio starts close connections that say nothing; Gradio has no setting for it."""
    import uvicorn.config

    uvicorn.config.HTTP_PROTOCOLS["auto"] = "thinktune.web.connections:HurriedProtocol"


def _guard(host: str, share: bool, files: Path, door: Door) -> Any:
    from starlette.middleware import Middleware

    from thinktune.studio.guard import Guard

    names = {host.lower(), socket.gethostname().lower()}
    return Middleware(Guard, names=names, suffix=_TUNNEL if share else "", files=files, door=door)


def _load_first(studio: Studio) -> None:
    """Load the first model, so that the first question need not wait for it. The page goes first: reading a model would
    slow it."""
    studio.opened.wait(_PAGE_SECONDS)
    try:
        studio.pool.open(studio.pool.names()[0], RequestHandle())
    except ThinktuneError as error:
        logger.error(str(error))
