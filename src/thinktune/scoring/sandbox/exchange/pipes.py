"""The pipes of one side to the scorer, taken over from its standard streams."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # it takes its time to be imported, in each process anew
    from typing import IO


def take_over_pipes() -> tuple[IO[str], IO[str]]:
    """Take over the pipes to the scorer; the code's own standard streams go nowhere."""
    sys.stdout.flush()
    incoming, outgoing = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    return incoming, outgoing
