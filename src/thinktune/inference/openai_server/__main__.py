"""Load a model and serve it until a signal ends it. `thinktune serve` becomes this program."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

from thinktune.errors import ThinktuneError


def main() -> int:
    parser = argparse.ArgumentParser(prog="thinktune serve")
    parser.add_argument("model")
    parser.add_argument("--name", action="append", default=[])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    given = parser.parse_args()
    try:
        _serve(given)
    except ThinktuneError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _serve(given: argparse.Namespace) -> None:
    import uvicorn

    from thinktune.config import Load
    from thinktune.inference.engines.found_model import find_model
    from thinktune.inference.engines.hf.fidelity import faithful_engine
    from thinktune.inference.engines.settings import EngineSettings
    from thinktune.inference.engines.shared_engine import SharedModel
    from thinktune.inference.openai_server.app import Endpoint
    from thinktune.models import load_model
    from thinktune.notices import show_notices
    from thinktune.web.connections import HurriedProtocol

    load = Load(device=given.device, dtype=given.dtype, trust_remote_code=given.trust_remote_code)
    show_notices()
    loaded = load_model(given.model, load=load)
    computation = find_model(given.model, EngineSettings("transformers", load)).computation
    model = SharedModel(faithful_engine(loaded, computation))
    hosts = {given.host.lower(), "localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    app = Endpoint(model, loaded.chat, [given.model, Path(given.model).name, *given.name], hosts)
    try:
        uvicorn.run(
            app,
            host=given.host,
            port=given.port,
            http=HurriedProtocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            timeout_graceful_shutdown=3,
        )
    finally:
        model.close()


if __name__ == "__main__":
    sys.exit(main())
