"""Data sets from the Hugging Face hub (through `datasets`) and from ModelScope (through its own client).

Both keep their downloads in `data.cache`, and use them, with a notice, when the network is down.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from thinktune.config import Load
from thinktune.data.examples import Row
from thinktune.data.files import read_path
from thinktune.errors import DataError, MissingExtra
from thinktune.files import is_full_disk
from thinktune.retry import MayPass, Offline, Unreachable, download, first_line, hub_fault, reach_modelscope

logger = logging.getLogger(__name__)

T = TypeVar("T")

_WHOLE = ".thinktune-whole"
"""Marks a ModelScope folder whose download came to its end."""


def read_hub_dataset(source: str, split: str, cache: Path, load: Load) -> Iterator[Row]:
    """Yield the rows of `owner/name`, or of `owner/name:subset`.

    Raises:
        DataError: no such data set, subset or split.
        DownloadError: the hub does not answer, and nothing is cached.
    """
    rows = _download(source, load, lambda: _load_from_hub(source, split, cache))
    for number, fields in enumerate(rows, start=1):
        yield Row(number, fields)


def _load_from_hub(source: str, split: str, cache: Path) -> Any:
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    name, _, subset = source.partition(":")
    try:
        silence = _silence_of_hub(name)
        if silence is None:
            builder = datasets.load_dataset_builder(name, subset or None, cache_dir=str(cache))
            builder.download_and_prepare()
            return builder.as_dataset(split=split)
        newest = {"version": "auto", "hash": "auto"}
        dataset_name = name.rpartition("/")[2]
        try:
            builder = Cache(str(cache), dataset_name, subset or None, repo_id=name, **newest)
        except ValueError:  # nothing cached
            raise silence from None
        logger.info(f"{source}: {silence}; using the copy in {cache}")
        return builder.as_dataset(split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(f"no data set {source}: {error}", hint="check the spelling, or log in: hf auth login") from None
    except datasets.exceptions.DatasetsError as error:
        cause = error.__cause__ or error
        raise DataError(f"data set {source}: {cause}", hint="download its files, and name their folder") from error
    except ValueError as error:
        hint = "name its subset: owner/name:subset" if "onfig" in str(error) else "check data.split"
        raise DataError(f"data set {source}: {error}", hint=hint) from error
    except (ConnectionError, TimeoutError) as error:
        raise MayPass(str(error)) from error


def _silence_of_hub(name: str) -> MayPass | Offline | None:
    """Ask the hub once whether the data set is there: its client goes on asking for half a minute, cached copy or not.

    Raises:
        DataError: the hub says that there is none, or not for this person.
    """
    from huggingface_hub import HfApi, errors

    try:
        HfApi().dataset_info(name, timeout=10)
    except errors.RepositoryNotFoundError:
        raise DataError(
            f"no file or folder {name} here, and no data set of that name on the hub (or it is private)",
            hint="check the spelling; for a private or gated one log in: hf auth login",
        ) from None
    except Exception as error:
        if (fault := hub_fault(error)) is not None:
            return fault
        if isinstance(error, errors.HfHubHTTPError):
            raise DataError(f"the hub refuses data set {name}: {error}", hint="log in: hf auth login") from None
        raise
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
    _download(source, load, lambda: _fetch_from_modelscope(name, folder))
    yield from read_path(folder, split)


def _fetch_from_modelscope(name: str, folder: Path) -> None:
    from modelscope.hub.snapshot_download import dataset_snapshot_download
    from modelscope_hub import errors

    whole = folder / _WHOLE
    try:
        reach_modelscope()
        dataset_snapshot_download(name, local_dir=str(folder))
        whole.touch()
    except Unreachable as error:
        if not whole.exists():
            raise
        logger.info(f"ms:{name}: {error}; using the copy in {folder}")
    except (errors.HubError, OSError) as error:  # OSError: of requests, which the client lets through
        reason = error.__cause__ or error
        if isinstance(reason, (errors.NotExistError, errors.AuthenticationError, errors.PermissionDeniedError)):
            raise DataError(
                f"ModelScope has no data set {name}, or not for you: {first_line(reason)}",
                hint="check the spelling; for a private one log in: modelscope login",
            ) from None
        if is_full_disk(error):
            raise
        silence = f"ModelScope cannot be reached ({type(error).__name__})"
        if not whole.exists():
            raise MayPass(silence) from error
        logger.info(f"ms:{name}: {silence}; using the copy in {folder}")


def _download(source: str, load: Load, fetch: Callable[[], T]) -> T:
    name, hint = f"data set {source}", "free some, or set data.cache"
    return download(name, fetch, attempts=load.attempts, wait=load.wait, more_space=hint)
