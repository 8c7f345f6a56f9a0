"""References of models that a server has: `openai:MODEL@URL`. They can be asked; there are no weights here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from thinktune.errors import UsageError

PREFIX = "openai:"
_HINT = "write openai:MODEL@URL, for example openai:Qwen/Qwen2.5-3B-Instruct@http://127.0.0.1:8000/v1"
_REFERENCE = re.compile(r"openai:(?P<model>\S+?)@(?P<url>https?://\S+)")


@dataclass(frozen=True)
class Endpoint:
    """
    Attributes:
        model: the name that the server knows it by.
        url: of the API, up to `/v1` or what stands in its place.
    """

    model: str
    url: str


def is_endpoint(reference: object) -> bool:
    return str(reference).startswith(PREFIX)


def read_endpoint(reference: str) -> Endpoint:
    """Take a reference apart.

    Raises:
        UsageError: it is not openai:MODEL@URL, or the URL holds what belongs into the environment: references are
            written into records.

    >>> read_endpoint("openai:gpt-4.1-mini@https://api.openai.com/v1/")
    Endpoint(model='gpt-4.1-mini', url='https://api.openai.com/v1')
    """
    if not (match := _REFERENCE.fullmatch(reference)):
        raise UsageError(f"{_without_secrets(reference)} is no endpoint", hint=_HINT)
    url = urlsplit(match["url"])
    if not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise UsageError(
            f"{_without_secrets(reference)}: the URL may have a host, a port and a path only",
            hint="the key is read from the environment: OPENAI_API_KEY",
        )
    return Endpoint(match["model"], match["url"].rstrip("/"))


def _without_secrets(reference: str) -> str:
    """Leave out the parts of a URL in which passwords and keys stand."""
    return re.sub(r"//[^/]*@", "//…@", re.sub(r"[?#].*", "?…", reference, flags=re.DOTALL))
