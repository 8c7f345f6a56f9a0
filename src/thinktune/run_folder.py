"""The run folder: where each part of a run lies, and whether it is there."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from thinktune.config import Config, load_config
from thinktune.errors import RunFolderError
from thinktune.files import is_full_disk
from thinktune.notices import muted
from thinktune.records import DataRecord, read_record

_LIBRARIES = ("thinktune", "torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "vllm")


@dataclass(frozen=True)
class RunFolder:
    """Paths inside `runs/<name>/`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """run.json; written when training has ended, so that its presence says so."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data_report(self) -> Path:
        return self.path / "data_report.json"

    @property
    def plan(self) -> Path:
        """The plan of batches and recomputation, by which a resumed training goes on."""
        return self.path / "plan.json"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        """The completions that a reinforcement drew, a file a step."""
        return self.path / "rollouts"

    @property
    def merged(self) -> Path:
        """The tuned model: the adapter merged into its base, or of full fine-tuning the model itself."""
        return self.path / "merged"

    @property
    def logs(self) -> Path:
        """Of TensorBoard, where `train.report_to` asks for it."""
        return self.path / "logs"

    @property
    def infer(self) -> Path:
        return self.path / "infer"

    @property
    def eval(self) -> Path:
        return self.path / "eval"

    @property
    def suites(self) -> Path:
        """The scores on benchmarks, a folder each; also of a model that no run made."""
        return self.path / "suites"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def exists(self) -> bool:
        return self.path.is_dir() and any(self.path.iterdir())

    @property
    def is_trained(self) -> bool:
        return self.record.exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and hold an exclusive training lock on it.

        Raises:
            RunFolderError: another one does already, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_full_disk(error):
                raise
            raise RunFolderError(f"{self.path} cannot be made: {error.strerror}") from None
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of by the system when the process ends
            except BlockingIOError:
                raise RunFolderError(
                    f"another process trains in {self.path}", hint="wait for it, or choose another output=FOLDER"
                ) from None
            except OSError:
                pass  # a file system that knows no locks, as some of networks do not
            yield
        finally:
            os.close(descriptor)

    def read_config(self) -> Config:
        """Read the recorded config; that an earlier version spelled it otherwise is not the user's concern.

        Raises:
            ConfigError: it is missing or damaged.
        """
        with muted():
            return load_config(self.config)

    def require_same_config(self, config: Config) -> None:
        """Make sure that `config` trains as the recorded config does.

        Raises:
            RunFolderError: a setting differs that changes the training.
        """
        before = self.read_config()
        differing = [name for name in TRAINING_SECTIONS if _outcome(before, name) != _outcome(config, name)]
        if differing:
            raise RunFolderError(
                f"{self.path} was started with other settings of {', '.join(differing)}",
                hint=f"resume with its own: {self.config}; or --overwrite it, or choose another output=FOLDER",
            )

    def require_same_data(self, fingerprint: str) -> None:
        """Make sure that the training was started on the tokens with this fingerprint.

        Raises:
            RunFolderError: it was started on others.
        """
        if not self.data_report.exists():
            return
        before = read_record(self.data_report, DataRecord)["fingerprint"]
        if before != fingerprint:
            raise RunFolderError(
                f"{self.path} was started on other data: its rows have changed since, or how they are rendered",
                hint="bring back the data it was started on; or --overwrite it, or choose another output=FOLDER",
            )


def _outcome(config: Config, section: str) -> Any:
    found = getattr(config, section)
    return found.outcome if hasattr(found, "outcome") else found


TRAINING_SECTIONS = ("method", "model", "seed", "quantize", "load", "data", "format", "lora", "train", "rl", "dpo")
"""The sections of a config that decide what training yields."""


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of every installed library that can change a result."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
