"""The command line: one short function a verb. Results go to stdout, progress and notices to stderr."""

from __future__ import annotations

import errno
import os
import sys
import traceback

# Imported for the verbs that they add, in the order that --help has them.
from thinktune.cli import training, rows, models, evaluation, comparison, machine  # noqa: F401  # isort: skip
from thinktune.cli.common import app
from thinktune.errors import DiskFull, LostRank, ThinktuneError, UsageError
from thinktune.files import is_full_disk
from thinktune.training import ranks

__all__ = ["app", "main"]

_WRONG_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip


def main() -> None:
    """Run the CLI: a ThinktuneError becomes its message and its exit code, everything else stays a trace."""
    try:
        if "_THINKTUNE_COMPLETE" in os.environ:  # a shell asks for completions
            from typer._completion_classes import completion_init

            completion_init()
        app()
    except ThinktuneError as error:
        _fail(error)
    except OSError as error:
        _fail_at_file(error)
    except KeyboardInterrupt:
        _fail(ThinktuneError("stopped"))
    except Exception:
        if ranks.here().size == 1:
            raise
        traceback.print_exc()
        ranks.end(1)


def _fail_at_file(error: OSError) -> None:
    """Tell a full disk, missing rights and an unusable name as such; raise anything else, which is a bug."""
    place = error.filename2 or error.filename
    if is_full_disk(error):
        _fail(DiskFull(f"no space left on the disk: {place or error}", hint="free some, then run it again"))
    elif place and error.errno in _WRONG_PLACE:
        _fail(UsageError(f"{place}: {error.strerror}", hint="choose another place, or make this one writable"))
    else:
        raise error


def _fail(error: ThinktuneError) -> None:
    if os.environ.get("THINKTUNE_DEBUG") and ranks.here().size == 1:
        raise error
    if not isinstance(error, LostRank) and ranks.may_speak():
        print(f"thinktune: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  → {error.hint}", file=sys.stderr)
    ranks.end(error.exit_code)
