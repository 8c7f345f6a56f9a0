"""Every error thinktune raises on purpose, on one page.

Each carries a sentence for the person who reads it: the fault and its place, and (`hint`) a way out. The CLI
prints exactly that and leaves with `exit_code`: 2 for wrong use (bad config, bad file, bad argument), 1 for work that
failed. Anything that is not a `ThinktuneError` is a bug and keeps its trace.
"""

from __future__ import annotations


class ThinktuneError(Exception):
    """The work failed for a reason a person can act on."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(ThinktuneError):
    """Wrong use: the call could never have worked as it was written."""

    exit_code = 2


class ConfigError(UsageError):
    """An unknown key, a wrong type, a value out of range, settings that contradict each other."""


class DataError(UsageError):
    """A training or evaluation file that cannot be used: missing, empty, in another format than its name, no usable
    rows."""


class BatchFileError(UsageError):
    """Faults of a batch file; the message lists every one with its line number."""


class ModelError(UsageError):
    """A model reference that cannot become a model: missing, half downloaded, pickled, no chat template."""


class DownloadError(ThinktuneError):
    """A hub that did not answer, after every attempt, and no cached copy to fall back on."""


class DeviceError(UsageError):
    """Hardware that was asked for and is not there."""


class MissingExtra(UsageError):
    """A feature whose optional packages are not installed; the hint is the command that installs them."""


class RunFolderError(UsageError):
    """A run folder that exists already, is not one, or is not whole."""


class OutOfMemory(ThinktuneError):
    """The device ran out of memory; the hint says which settings to change."""


class Diverged(ThinktuneError):
    """A training whose loss is no number any more; the hint says which settings to change."""


class DiskFull(ThinktuneError):
    """No space left where thinktune was writing; nothing half-written was left behind."""


class GenerationError(ThinktuneError):
    """The engine failed as a whole. Faults of a single item become error completions instead."""


class Interrupted(ThinktuneError):
    """Stopped by Ctrl-C or SIGTERM after saving; the hint is the command that goes on."""


class StartAgain(ThinktuneError):
    """One of several processes ran out of memory between two steps; all have to start again, with the lighter plan that
    it has left in the run folder."""

    exit_code = 75  # EX_TEMPFAIL


class LostRank(ThinktuneError):
    """Another process of the same training has ended; it has told why."""

    exit_code = 76
