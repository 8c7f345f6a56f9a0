"""`thinktune push RUN OWNER/NAME`: a run's adapter or merged model, with its card, to a hub.

A copy is sent, in which no path of this machine is left: the base model is named by its id. A repository is made
private, and one that is public is only added to where that is meant.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thinktune.errors import MissingExtra, RunFolderError, ThinktuneError, UsageError
from thinktune.export.model_card import Base, base_of, require_id, write_card
from thinktune.files import write_json
from thinktune.models.folder import ADAPTER_CONFIG, SETTINGS_FILE, check_adapter_folder, check_model_folder, read_json
from thinktune.retry import first_line
from thinktune.run_folder import RunFolder

_MESSAGE = "Pushed by thinktune"


def push(run: Path, target: str, *, merged: bool = False, public: bool = False, base: str | None = None) -> str:
    """Send a run's adapter, or its merged model, to a hub, and return the address.

    Args:
        target: OWNER/NAME on the Hugging Face hub, or ms:OWNER/NAME on ModelScope.
        public: of a new repository, and whether one that is public may be added to.
        base: the id of the base model, where it is a folder of this machine.

    Raises:
        RunFolderError: no trained run, or nothing merged.
        UsageError: a base model without an id, or a public repository that was not meant.
        MissingExtra: ModelScope's client is not installed.
        ThinktuneError: the hub refuses it, or does not answer.
    """
    folder = RunFolder(run)
    if not folder.is_trained:
        raise RunFolderError(f"{run} is no trained run", hint="name a run folder whose training has ended")
    merged = merged or folder.read_config().lora is None
    part = folder.merged if merged else folder.adapter
    if merged and not part.is_dir():
        raise RunFolderError(f"{run} has no merged model", hint=f"thinktune merge {run}")
    (check_model_folder if merged else check_adapter_folder)(part)
    found = base_of(folder.read_config().model, base)
    require_id(found)
    name = target.removeprefix("ms:")
    if name.count("/") != 1 or not all(name.split("/")):
        raise UsageError(
            f"{target!r} is not OWNER/NAME", hint="for example me/my-model, or ms:me/my-model on ModelScope"
        )
    with _copy(folder, part, found, name) as copy:
        return (_to_modelscope if target.startswith("ms:") else _to_hub)(copy, name, public)


@contextmanager
def _copy(run: RunFolder, part: Path, base: Base, name: str) -> Iterator[Path]:
    """Make a folder of what is sent: the files as they are, by links, and those that name the base anew."""
    with tempfile.TemporaryDirectory(prefix="thinktune-push-") as place:
        copy = Path(place) / "model"
        shutil.copytree(part, copy, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
        for file, key in ((copy / ADAPTER_CONFIG, "base_model_name_or_path"), (copy / SETTINGS_FILE, "base_model")):
            if file.is_file():
                as_reference = key == "base_model" and base.on_modelscope
                values = read_json(file) | {key: f"ms:{base.id}" if as_reference else base.id}
                file.unlink()  # a link: what it leads to stays as it is
                write_json(file, {name: each for name, each in values.items() if not _names_a_place(each)})
        (copy / "README.md").unlink(missing_ok=True)
        write_card(run, copy, base=base, name=name)
        yield copy


def _link(source: str, target: str) -> None:
    os.symlink(Path(source).resolve(), target)


def _names_a_place(value: Any) -> bool:
    """Whether a value is a path of this machine."""
    return isinstance(value, str) and value.startswith("/")


def _to_hub(folder: Path, name: str, public: bool) -> str:
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        try:
            _require_meant(name, is_public=not api.model_info(name, timeout=10).private, meant=public)
        except errors.RepositoryNotFoundError:
            api.create_repo(name, private=not public)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=_MESSAGE)
    except (errors.HfHubHTTPError, errors.HTTPError, errors.LocalTokenNotFoundError, OSError) as error:  # type: ignore[attr-defined]
        raise _refused(name, error, "hf auth login") from error
    return f"{api.endpoint}/{name}"


def _to_modelscope(folder: Path, name: str, public: bool) -> str:
    if find_spec("modelscope") is None:
        raise MissingExtra("ms: needs ModelScope's client", hint="pip install 'thinktune[modelscope]'")
    import requests
    from modelscope_hub import HubApi, errors
    from modelscope_hub.types import Visibility

    api = HubApi()
    try:
        if api.repo_exists(name, "model"):
            shown = api.get_repo(name, "model").visibility in (Visibility.PUBLIC, None)
            _require_meant(f"ms:{name}", is_public=shown, meant=public)
        else:
            # A licence is the base model's and the data's to give; the client would write Apache-2.0.
            api.create_repo(name, "model", visibility="public" if public else "private", license="other")
        api.upload_folder(name, "model", folder, commit_message=_MESSAGE, disable_tqdm=True, use_cache=False)
    except (errors.HubError, requests.RequestException, OSError) as error:
        raise _refused(f"ms:{name}", error, "modelscope login") from error
    return f"ms:{name}"


def _require_meant(name: str, *, is_public: bool, meant: bool) -> None:
    """Raise UsageError if a repository that is there shows to everybody what was not meant to be shown."""
    if is_public and not meant:
        raise UsageError(
            f"{name} is there, and public", hint="--public if everybody may see the model; or another name"
        )


def _refused(name: str, error: Exception, login: str) -> ThinktuneError:
    return ThinktuneError(
        f"{name} cannot be pushed: {first_line(error)}", hint=f"sign in with a token that may write: {login}"
    )
