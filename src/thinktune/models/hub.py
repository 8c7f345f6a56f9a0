"""Models from the Hugging Face hub and from ModelScope, each through its own client, into its own cache.

Only the needed files are fetched, and never a pickle. A download that may succeed later is tried again, with a growing
pause; one that cannot is refused at once, in a sentence of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

from thinktune.config import Load
from thinktune.errors import MissingExtra, ModelError, ThinktuneError
from thinktune.models.folder import PICKLES, TOKENIZER_FILES, check_adapter_folder, check_model_folder, is_adapter
from thinktune.retry import MayPass, Offline, download, first_line, hub_fault, reach_modelscope

logger = logging.getLogger(__name__)

_TOKENIZER = ("*.json", "*.jinja", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors",)
# Sub-folders hold other formats; Mistral's `consolidated` is a second copy of the weights.
_NOT_NEEDED = ("*/*", "consolidated*.safetensors")


def download_from_hub(name: str, load: Load, *, weights: bool = True) -> Path:
    """Return the folder of `owner/name` in Hugging Face's cache; download or update it if need be.

    Raises:
        ModelError: there is no such model, it is gated or private, or it has only pickled weights.
        DownloadError: the hub does not answer, and there is no whole copy in the cache.
    """
    return _download(name, load, lambda: _fetch_hub(name, load, weights), lambda: _cached_hub(name, load, weights))


def download_from_modelscope(name: str, load: Load, *, weights: bool = True) -> Path:
    """Return the folder of `owner/name` in ModelScope's cache; otherwise as `download_from_hub`.

    Raises:
        MissingExtra: ModelScope's client is not installed.
    """
    if find_spec("modelscope") is None:
        raise MissingExtra("ms: models need ModelScope's client", hint="pip install 'thinktune[modelscope]'")
    return _download(
        f"ms:{name}",
        load,
        lambda: _fetch_modelscope(name, load, weights),
        lambda: _cached_modelscope(name, load, weights),
    )


def _download(name: str, load: Load, fetch: Callable[[], Path], cached: Callable[[], Path | None]) -> Path:
    """Fetch, trying again where that may help; fall back to a whole copy in the cache as soon as the network fails."""

    def fetch_or_look() -> Path:
        try:
            return fetch()
        except (MayPass, Offline) as error:
            if (folder := cached()) is None:
                raise
            logger.info(f"{name}: {error}; using the copy in the cache ({folder})")
            return folder

    return download(
        name, fetch_or_look, attempts=load.attempts, wait=load.wait, more_space="free some, or move the cache"
    )


def _patterns(load: Load, weights: bool) -> list[str]:
    return [*_TOKENIZER, *(_WEIGHTS if weights else ()), *(["*.py"] if load.trust_remote_code else [])]


def _refuse_pickles(name: str, files: Sequence[str]) -> None:
    if any(fnmatch(file, pattern) for file in files for pattern in _WEIGHTS):
        return
    pickles = [file for file in files if any(fnmatch(file, pattern) for pattern in PICKLES)]
    if pickles:
        raise ModelError(
            f"{name} offers its weights only as {pickles[0]}: pickled files can run code, and are refused",
            hint="choose a variant with safetensors weights",
        )
    raise ModelError(f"{name} offers no safetensors weights", hint="is it a model for transformers?")


def _fetch_hub(name: str, load: Load, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        # Asked first in any case: the download itself would ask a hub that is not there for half a minute.
        listing = HfApi().model_info(name, timeout=10).siblings or []
        if weights:
            _refuse_pickles(name, [entry.rfilename for entry in listing])
        return Path(snapshot_download(name, allow_patterns=_patterns(load, weights), ignore_patterns=list(_NOT_NEEDED)))
    except ThinktuneError:
        raise
    except Exception as error:
        raise _judge_hub(name, error) from error


def _judge_hub(name: str, error: Exception) -> Exception:
    """Turn an error of huggingface_hub into ours: refused for good or passing. Others are returned as they are."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{name} is gated: its owner wants you to accept terms first",
            hint=f"accept them on the model's page, then log in with: hf auth login ({constants.ENDPOINT}/{name})",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"there is no model {name} on the hub (or it is private), and no such path here",
            hint="check the spelling; for a private one log in with: hf auth login",
        )
    if (fault := hub_fault(error)) is not None:
        return fault
    if isinstance(error, errors.HfHubHTTPError):
        return ModelError(f"the hub refuses {name}: {first_line(error)}", hint="log in with: hf auth login")
    return error


def _cached_hub(name: str, load: Load, weights: bool) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(
            snapshot_download(
                name,
                allow_patterns=_patterns(load, weights),
                ignore_patterns=list(_NOT_NEEDED),
                local_files_only=True,
            )
        )
    except errors.LocalEntryNotFoundError:
        return None
    return _if_whole(folder, weights)


def _if_whole(folder: Path, weights: bool) -> Path | None:
    try:
        if weights and is_adapter(folder):
            check_adapter_folder(folder)
        elif weights:
            check_model_folder(folder)
    except ModelError:
        return None
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def _fetch_modelscope(name: str, load: Load, weights: bool) -> Path:
    from modelscope.hub.snapshot_download import snapshot_download
    from modelscope_hub import HubApi

    reach_modelscope()
    try:
        if weights:
            _refuse_pickles(f"ms:{name}", [entry.path for entry in HubApi().list_repo_files(name, "model")])
        return Path(snapshot_download(name, allow_patterns=_patterns(load, weights), ignore_patterns=list(_NOT_NEEDED)))
    except ThinktuneError:
        raise
    except Exception as error:
        raise _judge_modelscope(name, error) from error


def _judge_modelscope(name: str, error: BaseException) -> BaseException:
    """Turn an error of modelscope into ours: refused for good or passing. Others are returned as they are."""
    import requests
    from modelscope_hub import errors

    if isinstance(error, requests.HTTPError) and error.__cause__ is not None:
        error = error.__cause__  # the client wraps some of its own errors
    if isinstance(error, errors.FileDownloadError):
        judged = [_judge_modelscope(name, failure) for failure in error.failed_files.values()]
        return next((one for one in judged if not isinstance(one, MayPass)), judged[0])
    if isinstance(error, errors.NotExistError):
        return ModelError(
            f"there is no model {name} on ModelScope (or it is private)",
            hint="check the spelling; for a private one log in with: modelscope login",
        )
    if isinstance(error, (errors.AuthenticationError, errors.PermissionDeniedError)):
        return ModelError(f"ModelScope refuses {name}: {first_line(error)}", hint="log in with: modelscope login")
    if isinstance(error, errors.NetworkError):
        return MayPass(f"ModelScope cannot be reached ({type(error).__name__})")
    if isinstance(error, errors.HubError) and error.retryable:
        return MayPass(f"ModelScope answers: {first_line(error)}")
    if isinstance(error, (requests.RequestException, ConnectionError, TimeoutError)):
        return MayPass(f"the connection broke off ({first_line(error)})")
    return error


def _cached_modelscope(name: str, load: Load, weights: bool) -> Path | None:
    from modelscope.hub.snapshot_download import snapshot_download
    from modelscope_hub.errors import CacheNotFound

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except CacheNotFound:
        return None
    return _if_whole(folder, weights)
