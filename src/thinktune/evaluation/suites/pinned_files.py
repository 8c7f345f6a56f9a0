"""Files of the hub at one revision, known by their hashes.

Pins are those of the benchmark; what it leaves open is pinned by the first download, in a lock file beside the files,
which can be given to others. A file that differs from its pin is refused: scores on other problems are no comparison.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from thinktune.config import Load
from thinktune.errors import DataError
from thinktune.evaluation.suites.benchmark import Benchmark
from thinktune.files import write_json
from thinktune.records import read_record
from thinktune.retry import download, first_line, hub_fault

LOCK = "benchmarks.lock.json"


class NotAvailable(DataError):
    """A benchmark that cannot be had here as things are; others go on without it."""


class _Pin(TypedDict):
    source: str
    revision: str
    files: dict[str, str]


@dataclass(frozen=True)
class PinnedFiles:
    """The files of a benchmark, with their commit and SHA-256."""

    revision: str
    paths: dict[str, Path]
    hashes: dict[str, str]


def fetch_pinned(name: str, benchmark: Benchmark, cache: Path, load: Load) -> PinnedFiles:
    """Return the files of a benchmark, downloaded at its pinned revision if they are not in `cache`.

    Raises:
        NotAvailable: its data set is gated, and this person has no access.
        DataError: there is no such data set, revision or file, or a file is not the pinned one.
        DownloadError: the hub does not answer, and a file is not in the cache.
    """
    locked = _read_lock(cache).get(name)
    if locked is not None and locked["source"] != benchmark.source:
        locked = None
    revision = benchmark.revision or (locked["revision"] if locked else None)
    if revision is None:
        revision = _from_hub(benchmark, load, lambda hub: hub.HfApi().dataset_info(benchmark.source, timeout=10).sha)
    paths = {file: _fetch(benchmark, file, str(revision), cache, load) for file in benchmark.files}
    hashes = {file: _sha256(path) for file, path in paths.items()}
    for file, pin in benchmark.files.items():
        where = "thinktune" if pin else str(cache / LOCK)
        pin = pin or (locked["files"].get(file) if locked else None)
        if pin is not None and hashes[file] != pin:
            raise DataError(
                f"{benchmark.title}: {file} of {benchmark.source} is not the file that {where} pins: its SHA-256 is "
                f"{hashes[file]}, not {pin}",
                hint="scores on other problems cannot be compared; it is downloaded anew without the folder "
                f"{_folder(benchmark, cache)}",
            )
    if benchmark.revision is None or None in benchmark.files.values():
        pin_all = {"source": benchmark.source, "revision": str(revision), "files": hashes}
        write_json(cache / LOCK, {**_read_lock(cache), name: pin_all})
    return PinnedFiles(str(revision), paths, hashes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:  # some have more than a gigabyte
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(benchmark: Benchmark, cache: Path) -> Path:
    return cache / f"datasets--{benchmark.source.replace('/', '--')}"


def _read_lock(cache: Path) -> dict[str, _Pin]:
    file = cache / LOCK
    return dict(read_record(file, dict[str, _Pin])) if file.exists() else {}


def _fetch(benchmark: Benchmark, file: str, revision: str, cache: Path, load: Load) -> Path:
    """Return a file from the cache, else from the hub: a pinned file does not change, so nobody has to be asked."""
    from huggingface_hub import try_to_load_from_cache

    where = {"repo_type": "dataset", "revision": revision, "cache_dir": str(cache)}
    found = try_to_load_from_cache(benchmark.source, file, **where)
    if isinstance(found, str):
        return Path(found)

    def ask(hub: Any) -> str:
        # Asked first: the download itself would ask a hub that is not there for half a minute.
        hub.HfApi().dataset_info(benchmark.source, timeout=10)
        return str(hub.hf_hub_download(benchmark.source, file, **where))

    return Path(_from_hub(benchmark, load, ask))


def _from_hub(benchmark: Benchmark, load: Load, ask: Any) -> Any:
    import huggingface_hub

    def fetch() -> Any:
        try:
            return ask(huggingface_hub)
        except Exception as error:
            raise _judge(benchmark, error) from error

    return download(
        f"data set {benchmark.source}",
        fetch,
        attempts=load.attempts,
        wait=load.wait,
        more_space="free some, or move to another folder",
    )


def _judge(benchmark: Benchmark, error: Exception) -> Exception:
    """Turn an error of huggingface_hub into ours: refused for good or passing. Others are returned as they are."""
    from huggingface_hub import constants, errors

    source = benchmark.source
    page = f"{constants.ENDPOINT}/datasets/{source}"
    if isinstance(error, errors.GatedRepoError):
        return NotAvailable(
            f"{benchmark.title}: {source} is gated: accept the terms on {page}, then log in: hf auth login, or HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return DataError(f"{benchmark.title}: there is no data set {source} on the hub (or it is private)")
    if isinstance(error, (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError)):
        return DataError(
            f"{benchmark.title}: the hub has no longer what is pinned of {source}: {first_line(error)}",
            hint="a YAML file of your own can name another revision: --suite FILE.yaml",
        )
    if (fault := hub_fault(error)) is not None:
        return fault
    if isinstance(error, errors.HfHubHTTPError):
        return DataError(f"{benchmark.title}: the hub refuses {source}: {first_line(error)}")
    return error
