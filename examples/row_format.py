"""Rows of another shape, read by a function: `data.format: row_format:exam`."""

from __future__ import annotations

from typing import Any

from thinktune.data import Parts, RowFault


def exam(row: dict[str, Any]) -> Parts:
    """Take a row of an exam apart; rows that nobody has checked are dropped, and counted under this reason."""
    if not row["checked"]:
        raise RowFault("not checked")
    question = f"{row['task']}\n\nGive the answer in {row['unit']}."
    return Parts([{"role": "user", "content": question}], reply=row["result"], think=row["why"])
