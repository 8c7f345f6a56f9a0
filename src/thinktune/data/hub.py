"""Data sets from the Hugging Face hub (through `datasets`) and from ModelScope (through its own client).

Both keep their downloads in `data.cache`, and use them, with a notice, when the network is down.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from thinktune.config import Load
from thinktune.data.examples import Row
from thinktune.data.files import read_path
from thinktune.errors import DataError, DiskFull, DownloadError, MissingExtra

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WHOLE = ".thinktune-whole"
"""Marks a ModelScope folder whose download came to its end."""


_OFFLINE = "HF_HUB_OFFLINE is set"


class _MayPass(Exception):
    """A fault of the network or the hub that may be gone in a moment."""


def read_hub_dataset(source: str, split: str, cache: Path, load: Load) -> Iterator[Row]:
    """Yield the rows of `owner/name`, or of `owner/name:subset`.

    Raises:
        DataError: no such data set, subset or split.
        DownloadError: the hub does not answer, and nothing is cached.
    """
    rows = _try_again(lambda: _load_from_hub(source, split, cache), source, load)
    for number, fields in enumerate(rows, start=1):
        yield Row(number, fields)


def _load_from_hub(source: str, split: str, cache: Path) -> Any:
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    name, _, subset = source.partition(":")
    try:
        silence = _why_hub_is_silent(name)
        if silence is None:
            builder = datasets.load_dataset_builder(name, subset or None, cache_dir=str(cache))
            builder.download_and_prepare()
            return builder.as_dataset(split=split)
        newest = {"version": "auto", "hash": "auto"}
        dataset_name = name.rpartition("/")[2]
        try:
            builder = Cache(str(cache), dataset_name, subset or None, repo_id=name, **newest)
        except ValueError:  # nothing cached
            raise _MayPass(silence) from None
        logger.info(f"{source}: {silence}; using the copy in {cache}")
        return builder.as_dataset(split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(f"no data set {source}: {error}", hint="check the spelling, or log in: hf auth login") from None
    except datasets.exceptions.DatasetsError as error:
        cause = error.__cause__ or error
        raise DataError(f"data set {source}: {cause}", hint="download its files, and name their folder") from None
    except ValueError as error:
        hint = "name its subset: owner/name:subset" if "onfig" in str(error) else "check data.split"
        raise DataError(f"data set {source}: {error}", hint=hint) from None
    except (ConnectionError, TimeoutError) as error:
        raise _MayPass(str(error)) from error


def _why_hub_is_silent(name: str) -> str | None:
    """Ask the hub once whether the data set is there: its client goes on asking for half a minute, cached copy or not.

    Raises:
        DataError: the hub says that there is none, or not for this person.
    """
    from huggingface_hub import HfApi, errors

    http_error: Any = errors.HTTPError  # type: ignore[attr-defined]  # of httpx or httpx2, by its version
    try:
        HfApi().dataset_info(name, timeout=10)
    except errors.OfflineModeIsEnabled:
        return _OFFLINE
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"no file or folder {name} here, and no data set of that name on the hub (or it is private)",
            hint="check the spelling; for a private or gated one log in: hf auth login",
        ) from None
    except errors.HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            raise DataError(f"the hub refuses data set {name}: {error}", hint="log in: hf auth login") from None
        return f"the hub answers {error.response.status_code}"
    except (http_error, ConnectionError, TimeoutError) as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


def read_modelscope_dataset(source: str, split: str, cache: Path, load: Load) -> Iterator[Row]:
    """Yield the rows of the data files of `ms:owner/name`; raises as `read_hub_dataset`, and

    Raises:
        MissingExtra: ModelScope's client is not installed.
    """
    if find_spec("modelscope") is None:
        raise MissingExtra(f"{source} needs ModelScope's client", hint="pip install 'thinktune[modelscope]'")
    name = source.removeprefix("ms:")
    folder = cache / "modelscope" / name.replace("/", "___")
    _try_again(lambda: _fetch_from_modelscope(name, folder), source, load)
    yield from read_path(folder, split)


def _fetch_from_modelscope(name: str, folder: Path) -> None:
    from modelscope.hub.snapshot_download import dataset_snapshot_download
    from modelscope_hub import errors

    whole = folder / _WHOLE
    try:
        dataset_snapshot_download(name, local_dir=str(folder))
        whole.touch()
    except (errors.HubError, OSError) as error:  # OSError: of requests, which the client lets through
        reason = error.__cause__ or error
        if isinstance(reason, (errors.NotExistError, errors.AuthenticationError, errors.PermissionDeniedError)):
            raise DataError(
                f"ModelScope has no data set {name}, or not for you: {str(reason).splitlines()[0]}",
                hint="check the spelling; for a private one log in: modelscope login",
            ) from None
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        silence = f"ModelScope cannot be reached ({type(error).__name__})"
        if not whole.exists():
            raise _MayPass(silence) from error
        logger.info(f"ms:{name}: {silence}; using the copy in {folder}")


def _try_again(fetch: Callable[[], T], source: str, load: Load) -> T:
    reason = ""
    for attempt in range(load.attempts):
        if attempt:
            pause = load.wait * 2 ** (attempt - 1)
            logger.info(f"{source}: {reason}; attempt {attempt + 1} of {load.attempts} in {pause:g} s")
            time.sleep(pause)
        try:
            return fetch()
        except _MayPass as error:
            reason = str(error)
            if reason == _OFFLINE:
                break
        except OSError as error:
            if error.errno == errno.ENOSPC or "Not enough disk space" in str(error):  # datasets looks before it leaps
                raise DiskFull(
                    f"no space left while downloading {source}", hint="free some, or set data.cache"
                ) from None
            raise
    raise DownloadError(
        f"data set {source}: {reason}; there is no copy in the cache",
        hint="check the network (thinktune doctor), or download the files elsewhere and name their folder",
    )
