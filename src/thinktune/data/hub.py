"""Data sets from the Hugging Face hub (through `datasets`) and from ModelScope (through its own client).

Both keep what they fetched in `data.cache`, and use it, with a notice, when the network is down.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from thinktune.config import Load
from thinktune.data.examples import Row
from thinktune.data.files import read_path
from thinktune.errors import DataError, DiskFull, DownloadError, MissingExtra

Notify = Callable[[str], None]
T = TypeVar("T")

_WHOLE = ".thinktune-whole"
"""Marks a ModelScope folder whose download came to its end."""


class _MayPass(Exception):
    """A fault of the network or the hub that may be gone in a moment."""


def read_hub_dataset(source: str, split: str, cache: Path, load: Load, notify: Notify) -> Iterator[Row]:
    """Yield the rows of `owner/name`, or of `owner/name:subset`.

    Raises:
        DataError: no such data set, subset or split.
        DownloadError: the hub does not answer, and nothing is cached.
    """
    import datasets

    name, _, subset = source.partition(":")

    def fetch() -> Any:
        try:
            builder = datasets.load_dataset_builder(name, subset or None, cache_dir=str(cache))
            if type(builder).__name__ == "Cache":  # datasets falls back by itself, and says so only in its log
                notify(f"{source}: the hub does not answer; using the copy in {cache}")
            builder.download_and_prepare()
            return builder.as_dataset(split=split)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise DataError(f"no data set {source}: {error}", hint="nor is there such a file or folder here") from None
        except datasets.exceptions.DatasetsError as error:
            raise DataError(f"data set {source}: {error}", hint="is it one of rows with text?") from None
        except ValueError as error:
            hint = "name its subset: owner/name:subset" if "onfig" in str(error) else "check data.split"
            raise DataError(f"data set {source}: {error}", hint=hint) from None
        except (ConnectionError, TimeoutError) as error:
            raise _MayPass(str(error)) from error

    for number, fields in enumerate(_try_again(fetch, source, load, notify), start=1):
        yield Row(number, fields)


def read_modelscope_dataset(source: str, split: str, cache: Path, load: Load, notify: Notify) -> Iterator[Row]:
    """Yield the rows of the data files of `ms:owner/name`; raises as `read_hub_dataset`, and

    Raises:
        MissingExtra: ModelScope's client is not installed.
    """
    try:
        from modelscope.hub.snapshot_download import dataset_snapshot_download
        from modelscope_hub.errors import HubError, NotExistError
    except ImportError:
        raise MissingExtra(f"{source} needs ModelScope's client", hint="pip install 'thinktune[modelscope]'") from None
    name = source.removeprefix("ms:")
    folder = cache / "modelscope" / name.replace("/", "___")
    whole = folder / _WHOLE

    def fetch() -> None:
        try:
            dataset_snapshot_download(name, local_dir=str(folder))
            whole.touch()
        except NotExistError as error:
            raise DataError(f"no data set {source}: {error}") from None
        except (HubError, ConnectionError, TimeoutError) as error:
            if not whole.exists():
                raise _MayPass(str(error)) from error
            notify(f"{source}: ModelScope does not answer; using the copy in {folder}")

    _try_again(fetch, source, load, notify)
    yield from read_path(folder, split)


def _try_again(fetch: Callable[[], T], source: str, load: Load, notify: Notify) -> T:
    reason = ""
    for attempt in range(load.attempts):
        if attempt:
            pause = load.wait * 2 ** (attempt - 1)
            notify(f"{source}: {reason}; attempt {attempt + 1} of {load.attempts} in {pause:g} s")
            time.sleep(pause)
        try:
            return fetch()
        except _MayPass as error:
            reason = str(error)
            if "offline" in reason.lower():
                break
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull(
                    f"no space left while downloading {source}", hint="free some, or set data.cache"
                ) from None
            raise
    raise DownloadError(
        f"data set {source}: {reason}; there is no copy in the cache",
        hint="check the network (thinktune doctor), or download the files elsewhere and name their folder",
    )
