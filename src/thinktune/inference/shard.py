"""Shards of a batch file, for job arrays without Ray: each answers its part into a journal of its own.

The keys of a journal say all that a completion follows from, so that the journals of shards, and of a call without
`--shard`, add up whatever the number of shards was: that call writes the result, and makes what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinktune.errors import UsageError
from thinktune.inference.batch_file import Item


@dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `3/100`.

        Raises:
            UsageError: it is not so, or out of range.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or int(match[1]) >= int(match[2]):
            raise UsageError(f"--shard {text!r} is not I/N", hint="the first of 100 is 0/100, the last 99/100")
        return cls(int(match[1]), int(match[2]))

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Choose the items of this part, by their ids; faulty ones belong to no part."""
        return [item for item in items if item.problem is None and _number(str(item.id)) % self.count == self.index]

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def journal_of(out: Path, shard: Shard | None = None) -> Path:
    """Return the journal that belongs to a result file, or to a part of it."""
    part = f".{shard.index}-of-{shard.count}" if shard else ""
    return out.with_name(f"{out.stem}.journal{part}.jsonl")


def journals_beside(out: Path, shard: Shard | None = None) -> list[Path]:
    """Return the other journals of a result file; for a shard without those of its siblings, which have none of its
    keys."""
    name = re.compile(re.escape(out.stem) + r"\.journal(\.\d+-of-(\d+))?\.jsonl")
    own = journal_of(out, shard)
    found = [(file, name.fullmatch(file.name)) for file in sorted(out.parent.glob("*.jsonl"))]
    siblings = str(shard.count) if shard else ""
    return [file for file, match in found if match and file != own and match[2] != siblings]


def require_ended(journals: Sequence[Path]) -> None:
    """Make sure that no shard is at work: what it has begun would be made twice.

    Raises:
        UsageError: one is.
    """
    for journal in journals:
        with journal.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(f"another process is writing {journal}", hint="wait until all shards ended") from None
            except OSError:
                continue  # a file system that knows no locks


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8])
