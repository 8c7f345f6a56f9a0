"""From `openai:MODEL@URL` to a model ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from thinktune.errors import MissingExtra, UsageError
from thinktune.inference.engines.endpoint.engine import EndpointEngine
from thinktune.inference.engines.endpoint.messages_chat import MessagesChat
from thinktune.inference.engines.request_handle import RequestHandle
from thinktune.inference.engines.settings import EngineSettings
from thinktune.models.endpoints import read_endpoint


def endpoint_fingerprint(reference: str) -> str:
    """Return the fingerprint of an endpoint's model: its name and place, since its weights are not seen."""
    endpoint = read_endpoint(reference)
    return f"openai {endpoint.model} {endpoint.url}"


def endpoint_engine(
    reference: str,
    settings: EngineSettings,
    *,
    beside: Mapping[str, object] | None = None,
    handle: RequestHandle | None = None,
) -> tuple[EndpointEngine, MessagesChat]:
    """Make the engine and the chat of an endpoint. Nothing is sent yet.

    Args:
        beside: adapters, which an endpoint cannot have.
        handle: by which the engine's one caller may stop it.

    Raises:
        UsageError: the reference is none, or a setting is for models whose weights are here.
        MissingExtra: OpenAI's client is not installed.
    """
    endpoint = read_endpoint(reference)
    for wrong, what in (
        (settings.engine not in ("auto", "transformers"), f"--engine {settings.engine}"),
        (settings.quantize != "none", f"--quantize {settings.quantize}"),
        (bool(beside), "adapters"),
    ):
        if wrong:
            raise UsageError(f"{reference} runs on its server: {what} cannot be chosen here", hint="leave it out")
    if find_spec("openai") is None:
        raise MissingExtra("openai:MODEL@URL needs OpenAI's client", hint="pip install 'thinktune[openai]'")
    return EndpointEngine(endpoint, settings.endpoint, handle), MessagesChat(reference)
