"""Checks that a request is meant for this server: by its own name, and not sent by another site's page."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit


def why_foreign(
    headers: Mapping[str, str], names: Collection[str], suffix: str = "", *, navigates: bool = False
) -> tuple[int, str] | None:
    """Return the status and the sentence that refuse a request, or None.

    Args:
        headers: with names in lower case.
        names: allowed host names, besides addresses.
        suffix: suffix of further allowed names, such as that of a tunnel; "" for none.
        navigates: whether following another site's link to here is harmless.
    """
    host = headers.get("host", "")
    if not _is_ours(host, names, suffix):
        return 421, "this server has another name"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return 403, "requests of other sites are refused"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not navigates:
        return 403, "requests of other sites are refused"
    return None


def _is_ours(host: str, names: Collection[str], suffix: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)  # a page that rebinds a name cannot make the browser send an address
    except ValueError:
        return name in names or bool(suffix and name.endswith(suffix))
    return True
