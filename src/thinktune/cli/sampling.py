"""Options of the verbs that ask a model problems and score its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OwnScorer = Annotated[
    str | None,
    typer.Option(
        "--scorer", metavar="MODULE:FUNCTION", help="score with a function of your own: (answer, gold) -> True or False"
    ),
]

TellFormat = Annotated[
    bool | None,
    typer.Option(
        "--tell-format/--no-tell-format", help="explain the format in the prompt; default: only to untuned models"
    ),
]
Gold = Annotated[Path | None, typer.Option(help="references of a batch file: JSON lines {id, type, reference}")]
Split = Annotated[str, typer.Option(help="split of the data")]
Sample = Annotated[int | None, typer.Option(min=1, help="number of problems, drawn by seed; default: all")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="max new tokens", show_default="1024, or the item type's")]
