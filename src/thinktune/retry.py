"""Downloads from a hub, tried again with a growing pause while the hub or the network falters."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from thinktune.errors import DownloadError
from thinktune.files import telling_full_disk

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_UNREACHABLE = 1.0  # seconds between two attempts to reach a hub that is not there
_PATIENCE = 5.0  # seconds of such attempts: a connection that times out takes as long by itself

_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})


class MayPass(Exception):
    """A fault of the network or of the hub that may be gone in a moment."""


class Unreachable(MayPass):
    """No connection came about. Most often there is no network, and long pauses would only hide that."""


class Offline(Exception):
    """The person has told the client to stay off the network."""


def download(name: str, fetch: Callable[[], T], *, attempts: int, wait: float, more_space: str) -> T:
    """Return the result of `fetch`, which is called again after a `MayPass`; of one that is `Unreachable`, for seconds
    only.

    Args:
        name: subject of the messages.
        attempts: number of calls at most.
        wait: seconds before the second call; each later pause is twice as long.
        more_space: hint for a full disk.

    Raises:
        DownloadError: `Offline`, or a `MayPass` at every attempt.
        DiskFull: no space left for the download.
    """
    reason, attempt, started = "", 0, time.monotonic()
    for attempt in range(1, attempts + 1):
        longest = float("inf")
        try:
            with telling_full_disk(name, "downloading", hint=more_space):
                return fetch()
        except Offline as error:
            raise DownloadError(f"{name}: {error}, and there is no whole copy in the cache") from error
        except MayPass as error:
            reason = str(error)
            if isinstance(error, Unreachable):
                longest = _LONGEST_UNREACHABLE
                if time.monotonic() - started > _PATIENCE:
                    break
        if attempt < attempts:
            pause = min(wait * 2 ** (attempt - 1), longest)
            logger.info(f"{name}: {reason}; attempt {attempt + 1} of {attempts} in {pause:g} s")
            time.sleep(pause)
    raise DownloadError(
        f"{name}: {reason}, after {attempt} attempt{'s' * (attempt > 1)}, and there is no whole copy in the cache",
        hint="check the network (thinktune doctor), or download it elsewhere and name its folder",
    )


def reach_modelscope() -> None:
    """Ask ModelScope once whether it is there: its client goes on asking for half a minute.

    Raises:
        Unreachable: it is not.
    """
    import requests
    from modelscope_hub.config import HubConfig

    try:
        requests.head(str(HubConfig().endpoint), timeout=_PATIENCE, allow_redirects=False)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise Unreachable(f"ModelScope cannot be reached ({type(error).__name__})") from error


def hub_fault(error: Exception) -> MayPass | Offline | None:
    """Judge an error of huggingface_hub. None: it is refused for good, or no fault of hub and network."""
    from huggingface_hub import errors

    http_error: Any = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, by its version
    cause = error.__cause__
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(cause, errors.OfflineModeIsEnabled):
        return Offline("HF_HUB_OFFLINE is set")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return MayPass(f"the hub answers {status}") if status in _PASSING_STATUS else None
    if isinstance(error, (errors.LocalEntryNotFoundError, http_error)):
        kind = type(cause or error).__name__
        return (Unreachable if kind.startswith("Connect") else MayPass)(f"the hub cannot be reached ({kind})")
    if isinstance(error, (ConnectionError, TimeoutError)) or "Consistency check failed" in str(error):
        return MayPass(f"the connection broke off ({first_line(error)})")
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
